"""TorchServe entry for image classifiers and encoders: ResNet-101, its family, and others of transformers."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from handlers import digests, load_errors

digests.start(Path(__file__).parent / "model.safetensors")  # read while the imports go on; loading checks it

with load_errors.explained():
    import torch
    from PIL import Image

    from handlers import cpus, image_tasks, loading, phases, tasks
    from handlers.engines.graphs import sizes_up_to
    from handlers.images import gpu_decoder, npy_files, payloads, pipelines
    from handlers.protocol.context import Context
    from handlers.protocol.errors import RequestError
    from handlers.protocol.interface import Interface
    from handlers.protocol.reader import Reader
    from handlers.protocol.request import caught
    from handlers.serving.handler import Handler
    from handlers.serving.hang_limit import load_watchdog
    from handlers.serving.inputs import Inputs, Options
    from handlers.serving.isolation import exit_if_gpu_lost
    from handlers.serving.layers import LayerSearch
    from handlers.serving.memory_limit import MemoryLimit
    from handlers.serving.metrics import BatchMetrics
    from handlers.settings import ImageSettings

logger = logging.getLogger(__name__)

REHEARSED = (500, 375)  # width and height of the JPEG that each worker answers before its first request
Input = Any  # what the pipeline prepares, or a batching.DeviceCrop
TOGETHER = 4  # of the largest images allowed, that many in one request: more would keep its neighbours waiting


class ImageClassifier(Handler[ImageSettings, Input]):
    """Encoded images in, the task's answers out (labels with probabilities, or embeddings), one answer a row."""

    def initialize(self, context: Context) -> None:
        """Load the archive. Raises ValueError or OSError with what is wrong and the way out, in one line."""
        with load_errors.explained():
            self._load(context)

    def _load(self, context: Context) -> None:
        self.model = loading.load(context, "image-classifier", ImageSettings)
        settings = self.model.settings
        self.task = image_tasks.load(self.model.folder, settings, self.model.spec.precision)
        self.pipeline = pipelines.load(
            self.model.folder, settings.preprocess, settings.max_pixels, self.model.device, self.model.spec.dtype
        )
        self.model.description["preprocessing"] = self.pipeline.description
        gate = loading.provenance_of(self.model.folder).get("jpegs", {}).get(self.model.spec.precision)
        self.gpu, why = gpu_decoder.load(
            settings.decoder, settings.preprocess, self.model.device, self.model.spec.dtype, gate
        )
        self.model.description["decoder"] = (
            {**self.gpu.details, "parityGate": why} if self.gpu else {"name": "Pillow", "why": why}
        )
        self.interface = Interface(
            wanted=payloads.WANTED,
            accepts=lambda media_type: not media_type.startswith("text/"),
            max_inputs=settings.max_inputs,
            options=self.task.options,
            other_options=tasks.option_names(),
            media_types=self.task.media_types,
            name=context.model_name,
            version=loading.version(context),
            task=f"image-{settings.task}",
            description=self.model.description,
        )
        self.reader = Reader(self.interface)
        share = cpus.share(int((context.model_yaml_config or {}).get("maxWorkers", 1)))
        self.decoders = ThreadPoolExecutor(settings.decode_threads or min(8, share))
        self.metrics = BatchMetrics(context, self.model)
        self.memory = MemoryLimit(self.model.description, "images")
        self.search = LayerSearch(self.model.engine.layers)
        self.watchdog = load_watchdog(context, settings.hang_timeout, self.model.device, self.model.description)
        with phases.phase("first run"):
            self._warm_up()
            self._rehearse()
        loading.give_back_memory(self.model.device)
        self.start_serving()

    def close(self) -> None:
        """Report no more, and end the threads that decode."""
        super().close()
        self.decoders.shutdown()

    def _warm_up(self) -> None:
        """Run what can come, so that no request pays for a first run: on a GPU kernels are chosen, graphs captured.

        The largest batch comes first, into whose memory the others then fit. One that memory does not suffice for is
        never run: at_once is the largest that was.
        """
        self.pipeline.probe(self.model.engine.run)
        self.at_once = self.model.spec.batch_size
        sizes = sizes_up_to(self.at_once) if self.model.device.type == "cuda" else [1]
        if self.model.device.type == "cuda":
            self.at_once = sizes[-1]
        for smaller, size in reversed(list(pairwise([0, *sizes]))):
            try:
                self.run([self.pipeline.blank()] * size)
            except torch.OutOfMemoryError:
                if not smaller:
                    raise
                torch.cuda.empty_cache()
                self.at_once = smaller
                logger.warning("memory is short: batches of more than %d images are cut", smaller)

    def _rehearse(self) -> None:
        """Answer one JPEG, from the file to the answer: decoders and answers have first runs of their own.

        A model that refuses a picture of this size, or fails on it, may do well on those of its clients.
        """
        try:
            (found,) = self.prepare_all([_jpeg()])
            if not isinstance(found, RequestError):
                self.predict([(item, {}) for item in found])
        except Exception as error:
            exit_if_gpu_lost()
            logger.info("a picture of %d x %d was not answered: %s", *REHEARSED, type(error).__name__)

    def prepare(self, inputs: Inputs[object]) -> Inputs[Input]:
        """Return files as clients sent them as inputs of the network; a .npy file may hold several."""
        files = inputs.each(lambda payload, _: payloads.file_of(payload)).checked(self._refuse_files)
        return files.together(self.prepare_all).flattened()

    def _refuse_files(self, files: Sequence[bytes], options: Options) -> None:
        """Raises RequestError if the files of one request are too many, or too much together."""
        counts = list(map(npy_files.images_in, files))
        self.interface.refuse_many(sum(counts))
        payloads.refuse_stack_in_list(counts)
        payloads.refuse_together(files, TOGETHER * self.model.settings.max_pixels)

    def batch_of(self, values: Sequence[Input]) -> object:
        """Return the network's input of prepared images."""
        return self.pipeline.batch(values)

    def run(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the network's outputs: (N, classes) logits or (N, features), on the device."""
        return pipelines.run(self.pipeline, self.model.engine.run, inputs, self.at_once)

    def predict(self, inputs: Sequence[tuple[Input, Options]]) -> list[object]:
        """Return the task's answers, in order."""
        outputs = self.run([item for item, _ in inputs])
        return self.task.answer(outputs, [options for _, options in inputs])

    def prepare_all(self, files: Sequence[bytes]) -> list[list[Input] | RequestError]:
        """Return the inputs of the network in each file, in order; the CPU decodes what the GPU does not."""
        jpegs = [self.gpu.accept(data, self.model.settings.max_pixels) if self.gpu else None for data in files]
        on_cpu = {index: self._submit(files[index]) for index, jpeg in enumerate(jpegs) if jpeg is None}
        prepared: dict[int, list[Input] | RequestError] = {}
        if self.gpu and len(on_cpu) < len(files):
            indices = [index for index, jpeg in enumerate(jpegs) if jpeg is not None]
            with self.watchdog.watching("decoding on the GPU"):
                crops = self.gpu([jpeg for jpeg in jpegs if jpeg is not None])
            prepared = {index: [crop] for index, crop in zip(indices, crops, strict=True) if crop is not None}
            on_cpu |= {index: self._submit(files[index]) for index in indices if index not in prepared}
        prepared |= {index: future.result() for index, future in on_cpu.items()}
        return [prepared[index] for index in range(len(files))]

    def _submit(self, data: bytes) -> Future[list[Input] | RequestError]:
        return self.decoders.submit(caught(self.prepare_one), data)

    def prepare_one(self, payload: object) -> list[Input]:
        """Return one payload, prepared on the CPU: one input, or those of a .npy file. Raises RequestError."""
        return self.pipeline.prepare(payloads.file_of(payload))


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", REHEARSED, (124, 116, 104)).save(stream, "JPEG")
    return stream.getvalue()
