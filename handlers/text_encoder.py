"""TorchServe entry for BERT-family encoders: dense and sparse embeddings, classification, entities, masked words."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from handlers import digests, load_errors

digests.start(Path(__file__).parent / "model.safetensors")  # read while the imports go on; loading checks it

with load_errors.explained():
    import torch

    from handlers import loading, phases, tasks
    from handlers.encoder.packing import TokenBatch
    from handlers.protocol import zero_shot
    from handlers.protocol.context import Context
    from handlers.protocol.errors import RequestError
    from handlers.protocol.interface import Interface
    from handlers.protocol.options import one_of, yes_or_no
    from handlers.protocol.reader import Reader
    from handlers.protocol.request import TokenIds, caught
    from handlers.serving.handler import Handler
    from handlers.serving.hang_limit import load_watchdog
    from handlers.serving.inputs import Inputs, Options
    from handlers.serving.layers import LayerSearch
    from handlers.serving.memory_limit import MemoryLimit
    from handlers.serving.metrics import BatchMetrics
    from handlers.settings import TextSettings
    from handlers.tasks.shared.task import Answers
    from handlers.texts import network_inputs, payloads, token_ids, tokenization
    from handlers.texts.micro_batches import micro_batches
    from handlers.texts.prompts import Prompts
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
        self.prompts = Prompts(settings, self.tokenizer)
        self.known_ids = caught(token_ids.reader(self.tokenizer))
        self.token_types = network_inputs.has_token_types(config, self.model.folder)
        self.task = tasks.load(self.model.folder, settings, self.tokenizer, self.model.spec.precision)
        self.model.description.update({**self.task.details, **self.prompts.details})
        self.reader = Reader(
            Interface(
                wanted=payloads.wanted(self.task.takes_pairs),
                accepts=payloads.accepts,
                max_inputs=settings.max_inputs,
                options={
                    "truncate": yes_or_no,
                    "truncation_direction": _side,
                    **self.prompts.options,
                    **self.task.options,
                },
                other_options=tasks.option_names(),
                media_types=self.task.media_types,
                takes_pairs=self.task.takes_pairs,
                labels=self.task.labels,
                max_tokens=settings.max_tokens,
                truncates=settings.truncate,
                pooling=_pooling(settings),
                normalizes=settings.pooling.normalize,
                name=context.model_name,
                version=loading.version(context),
                task=settings.task,
                description=self.model.description,
            )
        )
        self.metrics = BatchMetrics(context, self.model)
        self.memory = MemoryLimit(self.model.description, "tokens")
        self.search = LayerSearch(self.model.engine.layers)
        self.watchdog = load_watchdog(context, settings.hang_timeout, self.model.device, self.model.description)
        with phases.phase("first run"):
            self.predict([(self.tokenizer.sample, {})])  # the first request shall not pay the first run's cost
        loading.give_back_memory(self.model.device)
        self.start_serving()

    def prepare(self, inputs: Inputs[object]) -> Inputs[Encoded]:
        """Return texts as clients sent them as token ids."""
        most = self.model.settings.max_chars_together
        texts = inputs.each(self.read).checked(lambda texts, _: payloads.refuse_together(texts, most))
        encoded = texts.together(self.encode).each(lambda item, _: self.task.check(item))
        return encoded.checked(self.task.check_request).sized(lambda item: len(item.ids))

    def size_of(self, value: Encoded) -> int:
        """Return the number of its tokens."""
        return len(value.ids)

    def answer(self, inputs: Inputs[Encoded]) -> None:
        """Run the network, and refuse answers that are too large."""
        super().answer(inputs)
        inputs.check_answers(self.task.check_answers)

    def read(self, payload: object, options: Options) -> payloads.Text | Ids:
        """Return one payload as a text, or as token ids that came instead of one. Raises RequestError."""
        settings = self.model.settings
        truncate, side = options.get("truncate", settings.truncate), options.get("truncation_direction")
        from_left = None if side is None else side == "left"
        if isinstance(payload, TokenIds):
            self.prompts.refuse_ids(options)
            token_ids.refuse_many(len(payload), settings.max_chars)
            return Ids(payload, truncate, from_left)
        text = payloads.read(payload, settings, self.task.takes_pairs, truncate)
        if options:
            text = text._replace(from_left=from_left, only_first=zero_shot.LABELS in options)
        return self.prompts.before(text, options)

    def encode(self, inputs: Sequence[payloads.Text | Ids]) -> list[Encoded | RequestError]:
        """Return the tokens of each input, or its error, in order; texts are tokenized in one call."""
        plain = [item for item in inputs if isinstance(item, payloads.Text)]
        texts = iter(self.tokenizer.encode(plain, self.task.reads_offsets))
        return [self.known_ids(item) if isinstance(item, Ids) else next(texts) for item in inputs]

    def batch_of(self, values: Sequence[Encoded]) -> TokenBatch:
        """Return texts as one batch, packed in this order."""
        ids = [item.ids for item in values]
        types = [item.type_ids if self.token_types else [0] * len(item.ids) for item in values]
        return TokenBatch.pack(ids, types, self.model.device, self.task.selected(values))

    def run(self, encoded: Sequence[Encoded]) -> tuple[torch.Tensor, TokenBatch]:
        """Return the engine's outputs for the task, and the batch that they belong to.

        Args:
            encoded: texts that run together, packed in this order.
        """
        batch = self.batch_of(encoded)
        return self.model.engine.run(batch), batch

    def predict(self, inputs: Sequence[tuple[Encoded, Options]]) -> list[object]:
        """Return the task's answers, in order. Texts run sorted by length and cut by the token budget.

        Answers of a micro-batch are written while the GPU works on later ones.
        """
        answers: dict[int, object] = {}
        lengths = [len(encoded.ids) for encoded, _ in inputs]
        engine = self.model.engine
        budget = self.model.settings.token_budget or engine.token_budget
        begun: deque[tuple[list[int], Answers]] = deque()
        for indices in micro_batches(lengths, budget, engine.pads):
            chosen = [inputs[index] for index in indices]
            outputs, batch = self.run([encoded for encoded, _ in chosen])
            if len(begun) == self.task.ahead:
                answers |= _finished(*begun.popleft())
            begun.append((indices, self.task.begin(outputs, batch, chosen)))
            del outputs, batch  # the next micro-batch can have their memory
            self.metrics.count_tokens([lengths[index] for index in indices], engine.pads)
        for indices, answers_of in begun:
            answers |= _finished(indices, answers_of)
        return [answers[index] for index in range(len(inputs))]


def _finished(indices: Sequence[int], answers_of: Answers) -> dict[int, object]:
    """Return the answers of one micro-batch by the index of the input. Waits for their download."""
    return dict(zip(indices, answers_of(), strict=True))


def _pooling(settings: TextSettings) -> str:
    """Return how embeddings are pooled, in text-embeddings-inference's words; "" for other tasks."""
    head = tasks.head(settings.task)
    if head.pools_logits:
        return "splade"
    return "+".join(settings.pooling.modes) if head.is_embedding else ""


def _side(value: object) -> object:
    """Read the option truncation_direction; text-embeddings-inference has capitals too: Left, Right."""
    return one_of(("left", "right"))(value.lower() if isinstance(value, str) else value)
