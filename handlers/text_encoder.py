"""TorchServe entry for BERT-family encoders: embeddings, classification, entities, masked words."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from handlers import loading, tasks
from handlers.encoder.packing import TokenBatch
from handlers.protocol.context import Context
from handlers.protocol.interface import Interface
from handlers.protocol.options import yes_or_no
from handlers.protocol.reader import Reader
from handlers.serving.handler import Handler
from handlers.serving.inputs import Inputs, Options
from handlers.serving.metrics import BatchMetrics
from handlers.settings import TextSettings
from handlers.texts import tokenization
from handlers.texts.tokenization import Encoded


class TextEncoder(Handler[TextSettings, Encoded]):
    """Texts in, the task's answers out, one answer a row."""

    def initialize(self, context: Context) -> None:
        """Load the archive. Raises ValueError or OSError with what is wrong and the way out."""
        self.model = loading.load(context, "text-encoder", TextSettings)
        settings = self.model.settings
        config = json.loads((self.model.folder / "config.json").read_text(encoding="utf-8"))
        tokenization.refuse_positions(config, settings.max_tokens)
        self.tokenizer = tokenization.Tokenizer(self.model.folder, settings)
        self.token_types = tokenization.has_token_types(config, self.model.folder)
        self.task = tasks.load(self.model.folder, settings, self.tokenizer, self.model.spec.precision)
        self.reader = Reader(
            Interface(
                wanted=tokenization.wanted(self.task.takes_pairs),
                accepts=tokenization.accepts,
                max_inputs=settings.max_inputs,
                options={"truncate": yes_or_no, **self.task.options},
                other_options=tasks.option_names(),
                media_types=self.task.media_types,
                takes_pairs=self.task.takes_pairs,
                name=context.model_name,
                version=loading.version(context),
                task=settings.task,
                description=self.model.description,
            )
        )
        self.metrics = BatchMetrics(context)
        self.predict([(self.tokenizer.sample, {})])  # the first request shall not pay the first run's cost
        loading.give_back_memory(self.model.device)

    def prepare(self, inputs: Inputs[object]) -> Inputs[Encoded]:
        """Return texts as clients sent them as token ids."""
        most = self.model.settings.max_chars_together
        texts = inputs.each(self.read).checked(lambda texts, _: tokenization.refuse_together(texts, most))
        encoded = texts.together(self.tokenizer.encode).each(lambda item, _: self.task.check(item))
        return encoded.checked(self.task.check_request)

    def read(self, payload: object, options: Options) -> tokenization.Text:
        """Return one payload as a text. Raises RequestError."""
        settings = self.model.settings
        return tokenization.read(payload, settings, self.task.takes_pairs, options.get("truncate", settings.truncate))

    def run(self, encoded: Sequence[Encoded]) -> tuple[torch.Tensor, TokenBatch]:
        """Return the engine's outputs for the task, and the batch that they belong to.

        Args:
            encoded: texts that run together, packed in this order.
        """
        ids = [item.ids for item in encoded]
        types = [item.type_ids if self.token_types else [0] * len(item.ids) for item in encoded]
        batch = TokenBatch.pack(ids, types, self.model.device, self.task.selected(encoded))
        return self.model.engine.run(batch), batch

    def predict(self, inputs: Sequence[tuple[Encoded, Options]]) -> list[object]:
        """Return the task's answers, in order. Texts run sorted by length and cut by the token budget."""
        answers: dict[int, object] = {}
        lengths = [len(encoded.ids) for encoded, _ in inputs]
        engine = self.model.engine
        budget = self.model.settings.token_budget or engine.token_budget
        for indices in tokenization.micro_batches(lengths, budget, engine.pads):
            chosen = [inputs[index] for index in indices]
            outputs, batch = self.run([encoded for encoded, _ in chosen])
            answers |= zip(indices, self.task.answer(outputs, batch, chosen), strict=True)
        return [answers[index] for index in range(len(inputs))]
