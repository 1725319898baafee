"""Who has sharded a model or parameters over processes; `sharded_model` measures what torch's DTensor is made of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def sharded_module(model: nn.Module) -> str | None:
    """Who shards a module of the model as a whole, whatever its parameters look like; ``None``: nobody."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    first = any(k.__name__ == "FullyShardedDataParallel" and k.__module__.startswith("torch.") for k in kinds)
    return "FSDP" if first else None


def sharded(parameters: Iterable[Tensor]) -> str | None:
    """Who has sharded one of the parameters; ``None``: nobody.

    Example:
        >>> sharded([nn.Parameter(Tensor([1.0]))]) is None
        True
    """
    for parameter in parameters:
        if type(parameter).__name__ == "DTensor":
            return "FSDP or tensor parallelism"
        # FSDP's first version: its flat parameters, and the original ones, which are views of parts of them.
        if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
            return "FSDP"
        if hasattr(parameter, "ds_id"):
            return "DeepSpeed's ZeRO"
    return None
