"""How far outputs may be from fp32: of each precision at packaging, and of an engine before it serves.

| | fp32 | fp16 | bf16 | fp8 |
|---|---|---|---|---|
| relative error of logits (norm of the difference over the reference's), worst sample | 1e-4 | 1e-2 | 5e-2 | 0.2 |
| agreement of the likeliest class, among samples that fp32 decides | 1 | 0.999 | 0.99 | 0.995 |
| cosine of embeddings, worst sample | 0.99999 | 0.9999 | 0.999 | 0.999 |

fp32 decides a sample if the probabilities of its two likeliest classes differ by at least DECIDED_MARGIN. A nearer
tie says nothing about precision.
"""

MAX_RELATIVE_ERROR = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "fp8": 0.2}
MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.999, "bf16": 0.99, "fp8": 0.995}
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "fp8": 0.999}
DECIDED_MARGIN = 0.01
