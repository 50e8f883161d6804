"""TorchServe entry for BERT-family encoders: embeddings, classification, entities, masked words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from handlers import load_errors

with load_errors.explained():
    import torch

    from handlers import loading, tasks
    from handlers.encoder.packing import TokenBatch
    from handlers.protocol.context import Context
    from handlers.protocol.errors import RequestError
    from handlers.protocol.interface import Interface
    from handlers.protocol.options import one_of, yes_or_no
    from handlers.protocol.reader import Reader
    from handlers.protocol.request import TokenIds, caught
    from handlers.serving.handler import Handler
    from handlers.serving.inputs import Inputs, Options
    from handlers.serving.metrics import BatchMetrics
    from handlers.settings import TextSettings
    from handlers.texts import network_inputs, payloads, token_ids, tokenization
    from handlers.texts.micro_batches import micro_batches
    from handlers.texts.token_ids import Ids
    from handlers.texts.tokenization import Encoded


class TextEncoder(Handler[TextSettings, Encoded]):
    """Texts in, the task's answers out, one answer a row."""

    def initialize(self, context: Context) -> None:
        """Load the archive. Raises ValueError or OSError with what is wrong and the way out, in one line."""
        with load_errors.explained():
            self._load(context)

    def _load(self, context: Context) -> None:
        self.model = loading.load(context, "text-encoder", TextSettings)
        settings = self.model.settings
        config = json.loads((self.model.folder / "config.json").read_text(encoding="utf-8"))
        network_inputs.refuse_positions(config, settings.max_tokens)
        self.tokenizer = tokenization.Tokenizer(self.model.folder, settings)
        self.known_ids = caught(token_ids.reader(self.tokenizer))
        self.token_types = network_inputs.has_token_types(config, self.model.folder)
        self.task = tasks.load(self.model.folder, settings, self.tokenizer, self.model.spec.precision)
        self.reader = Reader(
            Interface(
                wanted=payloads.wanted(self.task.takes_pairs),
                accepts=payloads.accepts,
                max_inputs=settings.max_inputs,
                options={
                    "truncate": yes_or_no,
                    "truncation_direction": _side,
                    **self.task.options,
                },
                other_options=tasks.option_names(),
                media_types=self.task.media_types,
                takes_pairs=self.task.takes_pairs,
                labels=self.task.labels,
                max_tokens=settings.max_tokens,
                truncates=settings.truncate,
                pooling="+".join(settings.pooling.modes) if tasks.head(settings.task).is_embedding else "",
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
        texts = inputs.each(self.read).checked(lambda texts, _: payloads.refuse_together(texts, most))
        encoded = texts.together(self.encode).each(lambda item, _: self.task.check(item))
        return encoded.checked(self.task.check_request).sized(lambda item: len(item.ids))

    def read(self, payload: object, options: Options) -> payloads.Text | Ids:
        """Return one payload as a text, or as token ids that came instead of one. Raises RequestError."""
        settings = self.model.settings
        truncate, side = options.get("truncate", settings.truncate), options.get("truncation_direction")
        from_left = None if side is None else side == "left"
        if isinstance(payload, TokenIds):
            token_ids.refuse_many(len(payload), settings.max_chars)
            return Ids(payload, truncate, from_left)
        text = payloads.read(payload, settings, self.task.takes_pairs, truncate)
        return dataclasses.replace(text, from_left=from_left)

    def encode(self, inputs: Sequence[payloads.Text | Ids]) -> list[Encoded | RequestError]:
        """Return the tokens of each input, or its error, in order; texts are tokenized in one call."""
        texts = iter(self.tokenizer.encode([item for item in inputs if isinstance(item, payloads.Text)]))
        return [self.known_ids(item) if isinstance(item, Ids) else next(texts) for item in inputs]

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
        for indices in micro_batches(lengths, budget, engine.pads):
            chosen = [inputs[index] for index in indices]
            outputs, batch = self.run([encoded for encoded, _ in chosen])
            answers |= zip(indices, self.task.answer(outputs, batch, chosen), strict=True)
        return [answers[index] for index in range(len(inputs))]


def _side(value: object) -> object:
    """Read the option truncation_direction; text-embeddings-inference has capitals too: Left, Right."""
    return one_of(("left", "right"))(value.lower() if isinstance(value, str) else value)
