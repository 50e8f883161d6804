"""Options that adapters alone set. No request can name them, because no task has a reader for them."""

from __future__ import annotations

# Entities as transformers' pipeline has them: entity_group (or entity), score, index, word, start, end.
PIPELINE_FORM = "pipeline_form"
# The network's logits themselves, as an array in the order of the model's labels.
LOGITS = "logits"
