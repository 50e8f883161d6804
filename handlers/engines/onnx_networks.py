"""A folded ResNet and a fused encoder as ONNX. Uses onnxruntime's own fused operators if there are any."""

from __future__ import annotations

from handlers.encoder.fused import EncoderConfig, FusedEncoder, FusedLayer
from handlers.engines.folding import Convolution, FoldedResNet
from handlers.engines.onnx_graph import CONTRIB, FLOAT, INT32, Graph

IMAGES = "images"  # the ResNet's input
HIDDEN, LENGTHS = "hidden", "lengths"  # the encoder's inputs
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
OTHERS = {"relu": "Relu", "tanh": "Tanh"}


def resnet(network: FoldedResNet, image_size: int) -> tuple[Graph, bytes]:
    """Write a ResNet. onnxruntime fuses sums and ReLU into convolutions itself.

    Args:
        network: on the CPU.
        image_size: S, in pixels.

    Returns: the weights, and the ONNX file: IMAGES (N, 3, S, S) fp32 -> logits (N, classes) fp32.
    """
    graph = Graph()
    hidden = graph.add("Relu", _convolve(graph, IMAGES, network.stem))
    hidden = graph.add("MaxPool", hidden, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block in network.blocks:
        source, (*first, last) = hidden, block.body
        for conv in first:
            hidden = graph.add("Relu", _convolve(graph, hidden, conv))
        shortcut = source if block.shortcut is None else _convolve(graph, source, block.shortcut)
        hidden = graph.add("Relu", graph.add("Add", _convolve(graph, hidden, last), shortcut))
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", hidden))
    logits = graph.add("Gemm", pooled, graph.weight(network.weight), graph.weight(network.bias), transB=1)
    classes = len(network.bias)
    return graph, graph.model([(IMAGES, FLOAT, ("N", 3, image_size, image_size))], (logits, ("N", classes)))


def _convolve(graph: Graph, images: str, conv: Convolution) -> str:
    weight, bias, size = graph.weight(conv.weight), graph.weight(conv.bias), conv.weight.shape[-1]
    return graph.add(
        *("Conv", images, weight, bias),
        kernel_shape=[size] * 2,
        strides=[conv.stride] * 2,
        pads=[conv.padding] * 4,
        group=conv.groups,
    )


def why_no_encoder(config: EncoderConfig) -> str | None:
    """Return why `encoder` cannot write an encoder of this configuration, or None."""
    if config.norm_first or config.final_norm:
        return "its LayerNorm comes before the attention (pre-norm)"
    known = ("gelu", *TANH_GELUS, *OTHERS)
    return None if config.activation in known else f"its activation is {config.activation}"


def encoder(network: FusedEncoder) -> tuple[Graph, bytes]:
    """Write the layers of an encoder.

    Args:
        network: on the CPU; `why_no_encoder` returns None for its configuration.

    Returns: the weights, and the ONNX file: HIDDEN (N, S, H) fp32, LENGTHS (N,) int32 -> (N, S, H) fp32. Rows after
        a sequence's length are undefined.
    """
    graph, hidden, size = Graph(), HIDDEN, network.config.hidden
    for layer in network.layers:
        hidden = _layer(graph, hidden, layer)  # type: ignore[arg-type]
    inputs = [(HIDDEN, FLOAT, ("N", "S", size)), (LENGTHS, INT32, ("N",))]
    return graph, graph.model(inputs, (hidden, ("N", "S", size)))


def _layer(graph: Graph, hidden: str, layer: FusedLayer) -> str:
    weight, config = graph.weight, layer.config
    qkv = (graph.add("Transpose", weight(layer.qkv_weight)), weight(layer.qkv_bias))
    context = graph.add(
        "Attention", hidden, *qkv, LENGTHS, domain=CONTRIB, num_heads=config.heads, scale=config.scale
    )
    hidden = _add_norm(
        *(graph, _multiply(graph, context, weight(layer.out_weight)), hidden),
        *(weight(layer.attention_norm_weight), weight(layer.attention_norm_bias), weight(layer.out_bias)),
        eps=config.eps,
    )
    inner = _multiply(graph, hidden, weight(layer.up_weight))
    inner = _activate(graph, inner, weight(layer.up_bias), config.activation)
    return _add_norm(
        *(graph, _multiply(graph, inner, weight(layer.down_weight)), hidden),
        *(weight(layer.output_norm_weight), weight(layer.output_norm_bias), weight(layer.down_bias)),
        eps=config.eps,
    )


def _multiply(graph: Graph, hidden: str, weight: str) -> str:
    """hidden W^T. The weight stays (O, I), as it lies in the checkpoint's file, so that it need not be copied."""
    return graph.add("FusedMatMul", hidden, weight, domain=CONTRIB, transB=1)


def _add_norm(graph: Graph, hidden: str, residual: str, weight: str, shift: str, bias: str, eps: float) -> str:
    """norm(hidden + bias + residual)"""
    inputs = (hidden, residual, weight, shift, bias)
    return graph.add("SkipLayerNormalization", *inputs, domain=CONTRIB, epsilon=eps)


def _activate(graph: Graph, hidden: str, bias: str, activation: str) -> str:
    if activation == "gelu":
        return graph.add("BiasGelu", hidden, bias, domain=CONTRIB)
    if activation in TANH_GELUS:
        return graph.add("FastGelu", hidden, bias, domain=CONTRIB)
    return graph.add(OTHERS[activation], graph.add("Add", hidden, bias))
