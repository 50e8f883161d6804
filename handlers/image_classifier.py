"""TorchServe entry for image classifiers: ResNet-101, its family, and what else transformers loads as such."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import torch

from handlers import cpus, loading, tasks
from handlers.engines.graphs import sizes_up_to
from handlers.images import gpu_decoder, preparation
from handlers.protocol.context import Context
from handlers.protocol.errors import RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.options import whole_number
from handlers.protocol.reader import Reader
from handlers.protocol.request import caught
from handlers.serving.handler import Handler
from handlers.serving.inputs import Inputs, Options
from handlers.serving.metrics import BatchMetrics
from handlers.settings import ImageSettings
from handlers.tasks.shared import scores

logger = logging.getLogger(__name__)

Input = preparation.Crop | preparation.Ready | preparation.DeviceCrop
TOGETHER = 4  # of the largest images allowed, that many in one request: more would keep its neighbours waiting


class ImageClassifier(Handler[ImageSettings, Input]):
    """Encoded images in, top-k labels with probabilities out, one answer a row."""

    def initialize(self, context: Context) -> None:
        """Load the archive. Raises ValueError or OSError with what is wrong and the way out."""
        self.model = loading.load(context, "image-classifier", ImageSettings)
        settings = self.model.settings
        self.labels: list[str] = json.loads((self.model.folder / "labels.json").read_text(encoding="utf-8"))
        config = json.loads((self.model.folder / "config.json").read_text(encoding="utf-8"))
        self.function = scores.score_function(config, len(self.labels))
        self.batcher = preparation.Batcher(settings.preprocess, self.model.device, self.model.spec.dtype)
        self.gpu, why = gpu_decoder.load(
            settings.decoder, settings.preprocess, self.model.device, self.model.spec.dtype
        )
        self.model.description["decoder"] = self.gpu.details if self.gpu else {"name": "Pillow", "why": why}
        self.interface = Interface(
            wanted=preparation.MEDIA,
            accepts=lambda media_type: not media_type.startswith("text/"),
            max_inputs=settings.max_inputs,
            options={"top_k": whole_number(1, len(self.labels))},
            other_options=tasks.option_names(),
            name=context.model_name,
            version=loading.version(context),
            task="image-classification",
            description=self.model.description,
        )
        self.reader = Reader(self.interface)
        share = cpus.share(int((context.model_yaml_config or {}).get("maxWorkers", 1)))
        self.decoders = ThreadPoolExecutor(settings.decode_threads or min(8, share))
        self.metrics = BatchMetrics(context)
        self._warm_up()
        loading.give_back_memory(self.model.device)

    def _warm_up(self) -> None:
        """Run what can come, so that no request pays for a first run: on a GPU kernels are chosen, graphs captured.

        The largest batch comes first, into whose memory the others then fit. One that memory does not suffice for is
        never run: at_once is the largest that was.
        """
        self.at_once = self.model.spec.batch_size
        sizes = sizes_up_to(self.at_once) if self.model.device.type == "cuda" else [1]
        if self.model.device.type == "cuda":
            self.at_once = sizes[-1]
        for smaller, size in reversed(list(pairwise([0, *sizes]))):
            try:
                self.run([preparation.blank(self.model.settings.preprocess)] * size)
            except torch.OutOfMemoryError:
                if not smaller:
                    raise
                torch.cuda.empty_cache()
                self.at_once = smaller
                logger.warning("memory is short: batches of more than %d images are cut", smaller)

    def prepare(self, inputs: Inputs[object]) -> Inputs[Input]:
        """Return files as clients sent them as crops and ready tensors; a .npy file may hold several."""
        files = inputs.each(lambda payload, _: preparation.file_of(payload)).checked(self._refuse_files)
        return files.together(self.prepare_all).flattened()

    def _refuse_files(self, files: Sequence[bytes], options: Options) -> None:
        """Raises RequestError if the files of one request are too many, or too much together."""
        counts = list(map(preparation.inputs_in, files))
        self.interface.refuse_many(sum(counts))
        preparation.refuse_stack_in_list(counts)
        preparation.refuse_together(files, TOGETHER * self.model.settings.max_pixels)

    def run(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the logits of crops and ready tensors: (N, classes), on the device."""
        size = self.at_once
        parts = [self.model.engine.run(self.batcher(inputs[i : i + size])) for i in range(0, len(inputs), size)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def predict(self, inputs: Sequence[tuple[Input, Options]]) -> list[object]:
        """Return the likeliest classes of each image, with probabilities."""
        logits = self.run([item for item, _ in inputs])
        default = min(self.model.settings.top_k, len(self.labels))
        counts = [options.get("top_k", default) for _, options in inputs]
        return scores.top_k(logits, counts, self.labels, self.function)

    def prepare_all(self, files: Sequence[bytes]) -> list[list[Input] | RequestError]:
        """Return the crops or ready tensors of each file, in order; the CPU decodes what the GPU does not."""
        jpegs = [self.gpu.accept(data, self.model.settings.max_pixels) if self.gpu else None for data in files]
        on_cpu = {index: self._submit(files[index]) for index, jpeg in enumerate(jpegs) if jpeg is None}
        prepared: dict[int, list[Input] | RequestError] = {}
        if self.gpu and len(on_cpu) < len(files):
            indices = [index for index, jpeg in enumerate(jpegs) if jpeg is not None]
            crops = self.gpu([jpeg for jpeg in jpegs if jpeg is not None])
            prepared = {index: [crop] for index, crop in zip(indices, crops, strict=True) if crop is not None}
            on_cpu |= {index: self._submit(files[index]) for index in indices if index not in prepared}
        prepared |= {index: future.result() for index, future in on_cpu.items()}
        return [prepared[index] for index in range(len(files))]

    def _submit(self, data: bytes) -> Future[list[Input] | RequestError]:
        return self.decoders.submit(caught(self.prepare_one), data)

    def prepare_one(self, payload: object) -> list[Input]:
        """Return one payload, prepared on the CPU: one crop, or the tensors of a .npy file. Raises RequestError."""
        settings = self.model.settings
        return list(preparation.prepare(preparation.file_of(payload), settings.preprocess, settings.max_pixels))
