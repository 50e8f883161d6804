"""The network of a text encoder's folder: transformers' own model for the task, and whether it can be fused.

Functions import transformers' modelling code and handlers.encoder.swap themselves: that takes seconds, which workers
of image classifiers need not spend.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from handlers import LOCAL, phases, tasks
from handlers.encoder.packing import TokenBatch
from handlers.engines import bert_folders, sparse_logits
from handlers.engines.base import EngineSpec
from handlers.engines.placing import place
from handlers.tasks.shared.sparse_pooling import SparsePooling

# transformers' class for each task.
AUTO_MODELS = {name: tasks.head(name).auto_model for name in tasks.names()}


def load_transformer(folder: Any, task: str, **options: Any) -> Any:
    """Load the transformers model for a task, without the pooling layer, which no task here reads.

    Args:
        folder: holds config.json and model.safetensors.
        task: a key of AUTO_MODELS.
        options: for `from_pretrained`; dtype, for instance.
    """
    with phases.phase("transformers"):
        import transformers

        transformers.utils.logging.disable_progress_bar()  # it is drawn for a terminal, and this is a log
        config = _config(folder)
        options |= without_pooling(config, task)
        auto_model = getattr(transformers, AUTO_MODELS[task])
    with phases.phase("weights"):
        return auto_model.from_pretrained(folder, config=config, **LOCAL, **options)


def packed_model(spec: EngineSpec) -> Any:
    """Load a network as a handlers.encoder.packed.PackedModel, in eval mode, on the spec's device and in its dtype.

    Raises ValueError for what cannot be fused exactly.
    """
    return bert_folders.load(spec) or swapped_transformer(spec)


def swapped_transformer(spec: EngineSpec) -> Any:
    """Do the same for any network, through transformers."""
    from handlers.encoder.packed import PackedModel

    network = load_transformer(spec.model_dir, spec.task, dtype=torch.float32).eval()
    with phases.phase("weights"):
        model = PackedModel(network, spec.task, tasks.head(spec.task).rows).eval()
        return place(model, spec.device, spec.dtype)


def empty_transformer(folder: Any, task: str) -> Any:
    """Build the same model with random weights, in eval mode. On the meta device this only shows its structure."""
    with phases.phase("transformers"):
        import transformers

        config = _config(folder)
        options = {"trust_remote_code": False, **without_pooling(config, task)}
        return getattr(transformers, AUTO_MODELS[task]).from_config(config, **options).eval()


def without_pooling(config: Any, task: str) -> dict[str, bool]:
    """Return the option to build the task's model without its pooling layer; {} if its class has no such option."""
    import transformers

    if not tasks.head(task).is_embedding:
        return {}
    model_class: Any = transformers.MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class  # Funnel has two, both without
    takes = "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if takes else {}


def why_not_fused(spec: EngineSpec) -> str | None:
    """Return why handlers.encoder cannot fuse the network, or None.

    Builds it on the meta device, without weights, unless it is one that is read without transformers.
    """
    if bert_folders.read(spec):
        return None
    from handlers.encoder.packed import check_embeddings
    from handlers.encoder.swap import swap_encoder

    if not (spec.model_dir / "config.json").is_file():
        return f"{spec.model_dir} has no config.json"
    try:
        with torch.device("meta"):
            network = empty_transformer(spec.model_dir, spec.task)
            swap_encoder(network)
            check_embeddings(network)
    except ValueError as error:
        return str(error)
    return None


def fused_config(spec: EngineSpec) -> Any:
    """Return the handlers.encoder.fused.EncoderConfig of a network that can be fused, without reading its weights."""
    if folder := bert_folders.read(spec):
        return folder.config
    from handlers.encoder.swap import fused_encoder, swap_encoder

    with torch.device("meta"):
        return fused_encoder(swap_encoder(empty_transformer(spec.model_dir, spec.task))).config


def sparse_pooling(spec: EngineSpec) -> SparsePooling | None:
    """Return how the engine has to pool logits; None for a task that reads the network's own outputs."""
    return spec.sparse_pooling if tasks.head(spec.task).pools_logits else None


class Packed:
    """Runs a handlers.encoder.packed.PackedModel on packed tokens: TokenBatch -> the task's outputs.

    Args:
        model: a PackedModel.
        pooling: how logits become sparse embeddings; None leaves them as they are.
    """

    def __init__(self, model: Any, pooling: SparsePooling | None = None) -> None:
        self.model, self.pooling = model, pooling

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        hidden = self.hidden(batch)
        if self.pooling is not None:
            return sparse_logits.per_text(
                lambda part, tokens: self.model.outputs(hidden[tokens], part), batch, self.vocabulary, self.pooling
            )
        outputs: torch.Tensor = self.model.outputs(hidden, batch)
        return outputs

    @property
    def vocabulary(self) -> int:
        """Logits of a token, for a network that predicts tokens."""
        return int(self.model.head.config.vocab_size)

    def budget(self, usual: int) -> int:
        """Return the tokens of one run: `usual`, or fewer if sparse embeddings would fill the memory."""
        return usual if self.pooling is None else sparse_logits.token_budget(usual, self.vocabulary)

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Return the last layer's outputs (T, H)."""
        hidden: torch.Tensor = self.model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
        return hidden


def _config(folder: Any) -> Any:
    """Read the folder's config, without the extra outputs for training that it may ask for.

    transformers chooses the attention itself: a name in the file could make it fetch and run a kernel.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    config._attn_implementation, config._experts_implementation = None, None
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config
