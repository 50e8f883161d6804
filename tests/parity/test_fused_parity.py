"""The fused engine against transformers' own modules, in fp32 on the same checkpoints: packed, the same comes out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, ErnieConfig
from transformers.models.bert.modeling_bert import BertEmbeddings

from handlers import engines
from handlers.encoder.packed import PackedEmbeddings, check_embeddings
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine
from handlers.engines.text_networks import AUTO_MODELS
from handlers.selection import candidates
from handlers.text_encoder import TextEncoder

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]

CPU = torch.device("cpu")
# Tokens of 512 positions; RoBERTa counts them from 2 on, behind its padding token's id.
POSITIONS = {"bert": 512, "roberta": 514, "electra": 512, "distilbert": 512}
PADDING = 1  # of RoBERTa
IDS = range(5, 300)  # known to every family's tokenizer, and none of RoBERTa's special tokens
# fp32 rounds at 6e-8 of a value. Two sums of the same some hundred terms in another order, through a few layers
# with LayerNorm behind each, come to some 1e-6 of a token's vector, 5e-6 at worst.
TOLERANCE = 2e-5

LENGTHS = {
    "1": (1,),
    "2": (2,),
    "127": (127,),
    "128": (128,),
    "129": (129,),
    "511": (511,),
    "512": (512,),
    "all equal": (16,) * 5,
    "one long among many short": (*[2, 3] * 3, 400, *[1, 4] * 3),
    "256 short": tuple(1 + place % 7 for place in range(256)),
    "in no order": (5, 1, 64, 63, 2, 65, 1, 130),
}


class Pair(NamedTuple):
    """The same checkpoint loaded twice."""

    fused: LoadedEngine
    reference: LoadedEngine


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So small networks only wait for a second one, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair_of(checkpoint: Checkpoint) -> Callable[..., Pair]:
    """pair_of(family, task) -> both engines, loaded once each."""
    loaded: dict[tuple[str, str], Pair] = {}

    def load(family: str, task: str = "embeddings") -> Pair:
        if (family, task) not in loaded:
            found = spec(checkpoint(family, AUTO_MODELS[task], **extra(family)), task)
            loaded[family, task] = Pair(engines.load("fused", found), engines.load("torch_eager", found))
        return loaded[family, task]

    return load


def extra(family: str) -> dict[str, Any]:
    return {"max_position_embeddings": POSITIONS[family], "id2label": {0: "bad", 1: "fair", 2: "good"}}


def spec(folder: Path, task: str = "embeddings") -> EngineSpec:
    return EngineSpec("text-encoder", folder, CPU, "fp32", task=task)


def ids_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    chooser = random.Random(seed)
    return [chooser.choices(IDS, k=length) for length in lengths]


def pack(ids: Sequence[Sequence[int]], types: bool = False, selected: Sequence[int] | None = None) -> TokenBatch:
    """types: the second half of each sequence is of type 1."""
    kinds = [[int(types and 2 * place >= len(row)) for place in range(len(row))] for row in ids]
    return TokenBatch.pack(ids, kinds, CPU, selected)


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """(T, H) or (N, labels), row by row."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == torch.float32
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < TOLERANCE


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("family", POSITIONS)
def test_token_vectors(pair_of: Callable[..., Pair], family: str, lengths: tuple[int, ...]) -> None:
    fused, reference = pair_of(family)
    batch = pack(ids_of(lengths))
    assert_same(fused.run(batch), reference.run(batch))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 31, 100])
def test_every_number_of_sequences(pair_of: Callable[..., Pair], count: int) -> None:
    fused, reference = pair_of("bert")
    batch = pack(ids_of([1 + place * 5 % 17 for place in range(count)]))
    assert_same(fused.run(batch), reference.run(batch))


@pytest.mark.parametrize("family", POSITIONS)
def test_packed_is_one_by_one(pair_of: Callable[..., Pair], family: str) -> None:
    fused, _ = pair_of(family)
    ids = ids_of(LENGTHS["in no order"])
    assert_same(fused.run(pack(ids)), torch.cat([fused.run(pack([row])) for row in ids]))


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_token_types_count(pair_of: Callable[..., Pair], family: str) -> None:
    fused, reference = pair_of(family)
    plain, typed = (pack(ids_of((7, 1, 12)), types=types) for types in (False, True))
    assert_same(fused.run(typed), reference.run(typed))
    assert (fused.run(typed) - fused.run(plain)).abs().max() > 0.01


# A text may hold the literal "<pad>": its tokenizer makes the padding token of it, which RoBERTa does not count.
PADDED = {"first": [0], "last": [-1], "among others": [2, 5], "several in a row": [3, 4, 5], "all": range(8)}


@pytest.mark.parametrize("places", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_a_padding_token_inside_a_text(
    pair_of: Callable[..., Pair], checkpoint: Checkpoint, family: str, places: Sequence[int]
) -> None:
    fused, reference = pair_of(family)
    padding = PADDING if family == "roberta" else 0
    ids = ids_of((8, 8, 8))
    for place in places:
        ids[1][place] = padding
    assert_same(fused.run(pack(ids)), reference.run(pack(ids)))


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_any_lengths_and_tokens(pair_of: Callable[..., Pair], family: str) -> None:
    """RoBERTa's padding token among them."""
    fused, reference = pair_of(family)
    rows = st.lists(st.lists(st.integers(0, IDS[-1]), min_size=1, max_size=70), min_size=1, max_size=9)

    @settings(deadline=None, max_examples=40, database=None)
    @given(rows)
    def check(ids: list[list[int]]) -> None:
        batch = pack(ids)
        assert_same(fused.run(batch), reference.run(batch))

    check()


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
@pytest.mark.parametrize("family", POSITIONS)
def test_logits_of_every_head(pair_of: Callable[..., Pair], family: str, task: str) -> None:
    fused, reference = pair_of(family, task)
    ids = ids_of(LENGTHS["in no order"])
    logits = fused.run(pack(ids))
    assert logits.shape == ((len(ids), 3) if task == "sequence-classification" else (sum(map(len, ids)), 3))
    assert_same(logits, reference.run(pack(ids)))
    assert_same(logits, torch.cat([fused.run(pack([row])) for row in ids]))


@pytest.mark.parametrize("family", POSITIONS)
def test_logits_at_the_selected_tokens(pair_of: Callable[..., Pair], family: str) -> None:
    fused, reference = pair_of(family, "fill-mask")
    ids = ids_of(LENGTHS["in no order"])
    starts = [0, *accumulate(map(len, ids))]
    selected = [0, starts[1], starts[2] + 63, starts[3] + 3, starts[3] + 60, starts[-1] - 1]
    logits = fused.run(pack(ids, selected=selected))
    assert len(logits) == len(selected)
    assert_same(logits, reference.run(pack(ids, selected=selected)))
    assert_same(logits, fused.run(pack(ids))[selected])


def test_outputs_are_their_own(pair_of: Callable[..., Pair]) -> None:
    """A later batch changes no earlier one's, and a batch gives the same again."""
    for task in ("embeddings", "sequence-classification"):
        fused, _ = pair_of("bert", task)
        first = fused.run(pack(ids_of((9, 4))))
        kept = first.clone()
        fused.run(pack(ids_of((100, 30), seed=1)))
        assert torch.equal(first, kept)
        assert torch.equal(fused.run(pack(ids_of((9, 4)))), kept)


TEXTS = ["Ada Lovelace wrote to Charles Babbage from London.", "x", "The ferry leaves at seven, and Mr. Olsen waits."]
PAIRS: list[Any] = [{"text": "how tall is the tower", "text_pair": "330 metres."}, {"text": "q", "text_pair": "a"}]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("task", AUTO_MODELS)
def test_handlers_give_the_same_answers(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str, task: str
) -> None:
    folder = checkpoint(family, AUTO_MODELS[task], **extra(family))
    options = ["--task", task, *(["--pooling", "mean"] if task == "embeddings" else [])]
    fused, reference = (
        serve_texts(folder, *options, engine=engine, cpuThreads=1) for engine in ("fused", "torch_eager")
    )
    assert fused.model.description["engine"]["name"] == "fused"
    mask = "[MASK]" if family == "bert" else "<mask>"
    texts = {
        "fill-mask": [f"The {mask} ran past {mask}.", mask],
        "sequence-classification": [*TEXTS, *PAIRS],
    }.get(task, TEXTS)
    assert_same_answers(ask(fused, texts), ask(reference, texts))


def assert_same_answers(found: Any, wanted: Any) -> None:
    """Labels, places and tokens alike, numbers nearly."""
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for mine, theirs in zip(found, wanted, strict=True):
            assert_same_answers(mine, theirs)
    elif isinstance(wanted, dict):
        assert found == {
            key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            for key, value in wanted.items()
        }
    else:
        assert found == pytest.approx(wanted, abs=1e-5)


def test_what_cannot_be_fused_is_refused_by_name_and_passed_over(checkpoint: Checkpoint) -> None:
    mpnet = spec(checkpoint("mpnet", "AutoModel"))
    with pytest.raises(ValueError, match=r"fused cannot run here: MPNetModel .* its attention looks at relative pos"):
        candidates.choose("fused", mpnet)
    assert candidates.choose("auto", mpnet) == ["torch_eager"]
    assert candidates.choose("fused", spec(checkpoint("bert", "AutoModel"))) == ["fused"]


def test_embeddings_of_a_fourth_table_are_passed_over(tmp_path: Path) -> None:
    """ERNIE 3.0 adds an embedding of the task; its encoder is BERT's. The config says so, without weights."""
    ErnieConfig(use_task_id=True, **SMALL).save_pretrained(tmp_path)
    said = "ErnieEmbeddings has other parameters than BERT's embeddings: task_type_embeddings.weight"
    assert candidates.choose("auto", spec(tmp_path)) == ["torch_eager"]
    with pytest.raises(ValueError, match=said):
        candidates.choose("fused", spec(tmp_path))
    ErnieConfig(use_task_id=False, **SMALL).save_pretrained(tmp_path)
    assert candidates.choose("fused", spec(tmp_path)) == ["fused"]


def test_a_network_without_embeddings() -> None:
    network = SimpleNamespace(base_model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="SimpleNamespace has no embeddings where BERT has them"):
        check_embeddings(network)


SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


class Scaled(BertEmbeddings):
    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        hidden: torch.Tensor = super().forward(*arguments, **options)
        return hidden * 1.01


class Reversed(BertEmbeddings):
    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        options["position_ids"] = torch.arange(options["input_ids"].shape[1]).flip(0).unsqueeze(0)
        hidden: torch.Tensor = super().forward(*arguments, **options)
        return hidden


@pytest.mark.parametrize("kind", [Scaled, Reversed])
def test_embeddings_that_are_more_than_tables_are_refused(kind: type[BertEmbeddings]) -> None:
    """Their parameters are BERT's: that they compute something else shows in numbers only."""
    torch.manual_seed(0)
    config = BertConfig(**SMALL)
    assert PackedEmbeddings(BertEmbeddings(config), None).positions.skipped == -1
    with pytest.raises(ValueError, match=f"{kind.__name__} is more than a sum of word, token type and position"):
        PackedEmbeddings(kind(config), None)
