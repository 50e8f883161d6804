"""TorchServe entry for BERT-family encoders: embeddings, classification, entities, masked words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from handlers import loading, tasks
from handlers.encoder.packing import TokenBatch
from handlers.protocol.context import Context
from handlers.protocol.options import yes_or_no
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request, caught, gather, gather_options, gather_owners, scatter
from handlers.serving.handler import Handler
from handlers.serving.isolation import run_isolated
from handlers.serving.metrics import BatchMetrics
from handlers.settings import TextSettings
from handlers.texts import network_inputs, payloads, tokenization
from handlers.texts.micro_batches import micro_batches

Input = tuple[tokenization.Encoded, Mapping[str, Any]]


class TextEncoder(Handler[TextSettings]):
    """Texts in, the task's answers out, one answer a row."""

    def initialize(self, context: Context) -> None:
        """Load the archive. Raises ValueError or OSError with what is wrong and the way out."""
        self.model = loading.load(context, "text-encoder", TextSettings)
        settings = self.model.settings
        config = json.loads((self.model.folder / "config.json").read_text(encoding="utf-8"))
        network_inputs.refuse_positions(config, settings.max_tokens)
        self.tokenizer = tokenization.Tokenizer(self.model.folder, settings)
        self.token_types = network_inputs.has_token_types(config, self.model.folder)
        self.task = tasks.load(self.model.folder, settings, self.tokenizer, self.model.spec.precision)
        self.reader = Reader(
            options={"truncate": yes_or_no, **self.task.options},
            media=payloads.media(settings.task),
            accepts=payloads.accepts,
            max_inputs=settings.max_inputs,
            forms=self.task.forms,
        )
        self.metrics = BatchMetrics(context)
        self.inference([(self.tokenizer.sample, {})])  # the first request shall not pay the first run's cost
        loading.give_back_memory(self.model.device)

    def preprocess(self, batch: Sequence[Request]) -> None:
        """Payloads -> token ids."""
        sent = zip(gather(batch, "payloads"), gather_options(batch, "payloads"), strict=True)
        scatter(batch, map(caught(self.read), sent), "payloads", "inputs")
        for request in batch:
            if request.open:
                request.check(payloads.refuse_together, request.inputs, self.model.settings.max_chars_together)
        scatter(batch, self.tokenizer.encode(gather(batch, "inputs")), "inputs", "inputs")
        checked = map(caught(self.task.check), gather(batch, "inputs"))
        scatter(batch, checked, "inputs", "inputs")
        for request in batch:
            if request.open:
                request.check(self.task.check_request, request.inputs, request.options)

    def inference(self, inputs: Sequence[Input]) -> list[object]:
        """Token ids -> the task's answers, in order; sorted by length and cut by the token budget."""
        answers: dict[int, object] = {}
        lengths = [len(encoded.ids) for encoded, _ in inputs]
        engine = self.model.engine
        budget = self.model.settings.token_budget or engine.token_budget
        for places in micro_batches(lengths, budget, engine.pads):
            chosen = [inputs[place] for place in places]
            outputs, batch = self.forward([encoded for encoded, _ in chosen])
            answers |= zip(places, self.task.answer(outputs, batch, chosen), strict=True)
        return [answers[place] for place in range(len(inputs))]

    def postprocess(self, batch: Sequence[Request]) -> None:
        """Token ids -> the task's answers."""
        inputs = zip(gather(batch, "inputs"), gather_options(batch, "inputs"), strict=True)
        results = run_isolated(self.inference, list(inputs), gather_owners(batch, "inputs"))
        scatter(batch, results, "inputs", "results")

    def forward(self, encoded: Sequence[tokenization.Encoded]) -> tuple[torch.Tensor, TokenBatch]:
        """Token ids -> the engine's outputs for the task, and the batch that they belong to."""
        ids = [item.ids for item in encoded]
        types = [item.type_ids if self.token_types else [0] * len(item.ids) for item in encoded]
        batch = TokenBatch.pack(ids, types, self.model.device, self.task.selected(encoded))
        return self.model.engine.run(batch), batch

    def read(self, sent: tuple[object, Mapping[str, Any]]) -> payloads.Text:
        """One payload with its request's options -> a text. Raises RequestError."""
        payload, options = sent
        settings = self.model.settings
        return payloads.read(payload, settings, self.task.takes_pairs, options.get("truncate", settings.truncate))
