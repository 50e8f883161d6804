"""Small checkpoints, and the archives made from them, each packaged once."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from archive.__main__ import main
from tests.warm_trials import warm_trials

ARCHIVE = Path(__file__).parents[2] / "archive"
MODULES = ("Transformer", "Pooling", "Normalize")


@pytest.fixture(scope="session", autouse=True)
def _warm_trials() -> Iterator[None]:
    """tests/e2e/test_faults.py, test_docs_run.py and test_scripts.py package with trials in fresh processes."""
    with warm_trials():
        yield


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[int, str]]:
    """run(*arguments) of the packaging command -> its exit status and all that it printed."""

    def run_command(*arguments: object) -> tuple[int, str]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = main([str(argument) for argument in arguments])
        return status, printed.getvalue()

    return run_command


@pytest.fixture(scope="session")
def package(run: Callable[..., tuple[int, str]]) -> Callable[..., str]:
    """package(*arguments) -> what the command printed; the test fails where it refuses."""

    def package_archive(*arguments: object) -> str:
        status, printed = run(*arguments)
        assert status == 0, printed
        return printed

    return package_archive


@pytest.fixture(scope="session")
def digits() -> Path:
    """The demo's trained digit classifier."""
    return ARCHIVE / "digits"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: two layers, random weights, a vocabulary learnt from the sample texts."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-bert"
    learner = BertWordPieceTokenizer()
    lines = (ARCHIVE / "samples" / "texts.txt").read_text(encoding="utf-8").splitlines()
    learner.train_from_iterator(lines, 400, show_progress=False)
    vocabulary: dict[str, int] = json.loads(learner.to_str())["model"]["vocab"]
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if name == "Transformer" else f"{index}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def digits_mar(tmp_path_factory: pytest.TempPathFactory, package: Callable[..., str], digits: Path) -> Path:
    """The digit classifier's archive. Leave it as it is."""
    store = tmp_path_factory.mktemp("image") / "store"
    samples = digits / "samples"
    package("image-classifier", "--weights", digits, "--parity-data", samples, "--export-path", store)
    return store / "digits.mar"


@pytest.fixture(scope="session")
def tiny_mar(tmp_path_factory: pytest.TempPathFactory, package: Callable[..., str], tiny_bert: Path) -> Path:
    """The tiny text encoder's archive. Leave it as it is."""
    store = tmp_path_factory.mktemp("text") / "store"
    package("text-encoder", "--weights", tiny_bert, "--name", "tiny", "--export-path", store)
    return store / "tiny.mar"
