"""Where and in which types the fused encoder's operations are launched: the right GPU, and no autocast in Triton.

There is no GPU here: devices are fakes, and operations are PyTorch's that do what Triton's would do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers

from handlers.encoder import PackedModel, Segments, TokenBatch, fp8, fused, ops, packed, padded, run_padded
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import Norm, TorchEncoderOps

CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)
SEGMENTS = Segments(torch.tensor([0, 3, 5], dtype=torch.int32), (3, 2))
NAMES = {"linear", "linear_activation", "linear_add_norm", "attention", "prepare_packed", "embed_norm"}
NAMES8 = {"quantise", "linear8", "attention8", "linear_activation8", "add_norm8"}


def encoder(norm_first: bool = False) -> FusedEncoder:
    torch.manual_seed(0)
    built = FusedEncoder(EncoderConfig(2, 16, 2, 32, "gelu", 1e-12, norm_first, norm_first))
    for name, parameter in built.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_weight" in name else 0.0, std=0.3)
    return built


class Current:
    """Stands in for launch_context: knows for which device, if any, it is open."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []
        self.outside: list[str] = []

    @contextlib.contextmanager
    def __call__(self, hidden: torch.Tensor, ops: object) -> Iterator[None]:
        self.devices.append(hidden.device)
        yield
        self.devices.pop()

    def watched(self, kind: type[TorchEncoderOps]) -> Any:
        """Operations that note which of their calls come while it is not open."""

        def watch(name: str) -> Any:
            def call(this: Any, *arguments: Any) -> Any:
                if not self.devices:
                    self.outside.append(name)
                called.add(name)
                return getattr(kind, name)(this, *arguments)

            return call

        called: set[str] = set()
        own = {name: watch(name) for name in (NAMES | NAMES8) if hasattr(kind, name)}
        return type("Watched", (kind,), {**own, "called": called})()


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Current:
    fake = Current()
    for module in (fused, fp8, packed, padded):
        monkeypatch.setattr(module, "launch_context", fake)
    return fake


def test_an_encoder_launches_on_its_inputs_device(current: Current) -> None:
    watched = current.watched(TorchEncoderOps)
    encoder()(torch.randn(5, 16), SEGMENTS, watched)
    assert watched.called >= {"linear", "attention", "linear_add_norm", "linear_activation"}
    assert current.outside == []


def test_a_padded_batch_is_prepared_there_too(current: Current) -> None:
    built, watched = encoder(), current.watched(TorchEncoderOps)
    built.ops = watched
    run_padded(built, torch.randn(2, 3, 16), torch.tensor([[True, True, True], [False, True, True]]), first_too=True)
    assert "prepare_packed" in watched.called
    assert current.outside == []


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_a_packed_model_is_embedded_there_too(current: Current, precision: str) -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = PackedModel(transformers.BertModel(config).eval(), "embeddings")
    batch = TokenBatch.pack([[1, 2, 3], [4]], [[0, 0, 0], [0]], CPU)
    if precision == "fp8":
        model.to_fp8(model.calibrate_fp8([batch]))
    watched = current.watched(fp8.Fp8TorchOps if precision == "fp8" else TorchEncoderOps)
    model.encoder.ops = watched
    model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
    assert watched.called >= {"prepare_packed", "embed_norm", "linear8" if precision == "fp8" else "linear"}
    assert current.outside == []


def test_the_gpu_of_the_input_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before, current[0] = current[0], chosen.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    hidden: Any = SimpleNamespace(is_cuda=True, device=SECOND)
    with ops.launch_context(hidden, TorchEncoderOps()):
        assert current == [1]
    assert current == [0]


class Strict(TorchEncoderOps):
    """Casts nothing, as Triton's kernels do not."""

    follows_autocast = False


@pytest.mark.parametrize("kind", [TorchEncoderOps, Strict])
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_autocast_is_for_pytorch_alone(kind: type[TorchEncoderOps], norm_first: bool) -> None:
    """Its casts would give Triton's kernels activations in bf16 beside weights in another type."""
    built, hidden = encoder(norm_first), torch.randn(5, 16)
    wanted = built(hidden.clone(), SEGMENTS, kind())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = built(hidden.clone(), SEGMENTS, kind())
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, wanted) == (kind is Strict)
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_a_padded_batch_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    built, hidden = encoder(), torch.randn(2, 3, 16)
    monkeypatch.setattr(padded, "ops_for", lambda encoder, hidden: Strict())
    wanted = run_padded(built, hidden, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run_padded(built, hidden, None), wanted)


HALF, BF16, SINGLE = torch.float16, torch.bfloat16, torch.float32
CHOICES = {
    "fp16": (HALF, HALF, True, True),
    "bf16": (BF16, BF16, True, True),
    "fp32": (SINGLE, SINGLE, True, False),
    "fp16, weights in fp32": (HALF, SINGLE, True, False),
    "fp16, weights in bf16": (HALF, BF16, True, False),
    "fp32, weights in fp16": (SINGLE, HALF, True, False),
    "on a CPU": (HALF, HALF, False, False),
}


@pytest.mark.parametrize(("dtype", "weights", "is_cuda", "fast"), CHOICES.values(), ids=CHOICES)
def test_tritons_kernels_get_one_half_precision_type(
    dtype: torch.dtype, weights: torch.dtype, is_cuda: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, triton = encoder().to(weights), Strict()
    monkeypatch.setattr(padded, "_triton_ops", lambda device: triton)
    hidden: Any = SimpleNamespace(dtype=dtype, is_cuda=is_cuda, device=SECOND)
    assert padded.ops_for(built, hidden) is (triton if fast else built.ops)
    built.ops = Strict()
    assert padded.ops_for(built, hidden) is built.ops  # whoever sets operations gets them


@pytest.fixture(scope="module")
def triton_ops() -> Any:
    module = cast("Any", pytest.importorskip("handlers.encoder.triton_ops", reason="needs Triton"))
    return module.TritonEncoderOps(CPU, programs=3)


def test_triton_refuses_activations_and_weights_of_two_types(triton_ops: Any) -> None:
    x, weight, vector = torch.randn(3, 64).half(), torch.randn(64, 64), torch.randn(64)
    norm, half_norm = Norm(vector, vector, 1e-5), Norm(vector.half(), vector.half(), 1e-5)
    ids = (torch.zeros(3, dtype=torch.int64),)
    calls: dict[str, tuple[Any, ...]] = {
        "linear": (x, weight, vector),
        "linear_activation": (x, weight, vector, "gelu"),
        "linear_add_norm": (x, weight.half(), vector, x.float(), half_norm),
        "norm": (x, norm),
        "embed_norm": ((weight.half(),), ids, norm),
    }
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match=rf"{name}: tensors of several types came, torch\.float(16|32), .*cast"):
            getattr(triton_ops, name)(*arguments)


def test_triton_does_not_follow_autocast(triton_ops: Any) -> None:
    assert triton_ops.follows_autocast is False
