"""A fused BERT-style encoder for inference, swapped into models of transformers, PyTorch and fairseq.

It takes the encoder out of a model, rearranges its weights, and runs it packed: padding tokens are not computed. On
an NVIDIA GPU in half precision it runs cuBLAS and Triton's kernels, on anything else plain PyTorch. It needs torch.
Models of transformers also need transformers, and the kernels on a GPU need Triton.

transformers, with any head:

    from handlers.encoder import swap_encoder, unswap_encoder

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to("cuda", torch.float16)
    swap_encoder(model)               # in place; the model is called, saved and loaded as before
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt").to("cuda")).logits
    unswap_encoder(model)             # the vanilla encoder again, with the same weights bit for bit

PyTorch: `swap_encoder` returns the replacement if the model itself is the encoder.

    encoder = swap_encoder(torch.nn.TransformerEncoder(layer, num_layers=6).eval())
    hidden = encoder(src, src_key_padding_mask=padding)

fairseq: from the state_dict of a model.

    encoder = encoder_from_fairseq(torch.load("model.pt", weights_only=True)["model"], heads=12)
    hidden = run_padded(encoder, embeddings, valid=tokens != padding)     # (N, S, H)

Without padding at all, from token ids to a head's outputs:

    model = PackedModel(AutoModelForTokenClassification.from_pretrained(folder).eval(), "token-classification")
    batch = TokenBatch.pack([[101, 7592, 102], [101, 102]], [[0, 0, 0], [0, 0]], torch.device("cpu"))
    with torch.inference_mode():
        hidden = model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)     # (T, H)
        logits = model.outputs(hidden, batch)                                            # (T, labels)

A model or a call that the fused encoder would not compute exactly raises `UnsupportedError`, which names the reason;
the model has not changed then. Everything that is not listed in `__all__` may change without notice.
"""

from handlers.encoder.errors import UnsupportedError
from handlers.encoder.fairseq import encoder_from_fairseq, fairseq_state
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import Segments
from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch, pad, unpad
from handlers.encoder.padded import run_padded
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder

__all__ = [
    "EncoderConfig",
    "FusedEncoder",
    "PackedModel",
    "Segments",
    "TokenBatch",
    "UnsupportedError",
    "encoder_from_fairseq",
    "fairseq_state",
    "fused_encoder",
    "pad",
    "run_padded",
    "swap_encoder",
    "unpad",
    "unswap_encoder",
]
