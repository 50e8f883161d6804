"""The usual TorchServe handler for a Hugging Face encoder: tokenize and pad the batch, run it in fp32, mean pooling.

It travels in an archive of its own, so it imports nothing of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class HuggingFaceText:
    """Embeddings, of length 1 if model-config.yaml says `normalize`."""

    def initialize(self, context: Any) -> None:
        """Load tokenizer and network."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        properties, config = context.system_properties, context.model_yaml_config
        gpu = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device("cuda", int(gpu)) if on_gpu else torch.device("cpu")
        self.most, self.normalize = int(config["maxTokens"]), bool(config["normalize"])
        self.tokenizer = AutoTokenizer.from_pretrained(properties["model_dir"])
        self.model = AutoModel.from_pretrained(properties["model_dir"]).eval().to(self.device)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """A vector for one text, a list of vectors for a list."""
        import torch

        asked = [_texts(row.get("data") or row.get("body")) for row in rows]
        texts = [text for one in asked for text in (one if isinstance(one, list) else [one])]
        with torch.inference_mode():
            inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.most, return_tensors="pt")
            inputs = inputs.to(self.device)
            hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors)
        found = iter(vectors.cpu().tolist())
        return [[next(found) for _ in one] if isinstance(one, list) else next(found) for one in asked]


def _texts(body: Any) -> Any:
    """A text, or a list of texts. JSON comes parsed, or as bytes."""
    if isinstance(body, (bytes, bytearray)):
        body = body.decode()
    if isinstance(body, str) and body.startswith("["):
        return json.loads(body)
    return body
