"""Whose an object is: a user's own, an installed package's, or of a package whose objects are no state."""

from __future__ import annotations

import collections
import functools
import sys
import sysconfig
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils import weak

ATOMS = {
    type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), torch.dtype, torch.device,
    torch.Size, torch.layout, torch.memory_format,
}  # fmt: skip

# Packages whose objects are no state of a loss: they log, load data, schedule, or run threads of their own. They aren't
# walked into: what another thread writes meanwhile would be undone.
FOREIGN = frozenset(sys.stdlib_module_names) | {
    "accelerate", "aim", "clearml", "comet_ml", "dask", "datasets", "deepspeed", "filelock", "huggingface_hub",
    "joblib", "lightning", "lightning_fabric", "loguru", "matplotlib", "mlflow", "neptune", "numpy", "pandas",
    "pyarrow", "pytest", "_pytest", "pytorch_lightning", "ray", "rich", "safetensors", "scipy", "stepscope",
    "tensorboard", "tensorboardX", "tokenizers", "torch", "tqdm", "wandb",
}  # fmt: skip
FOREIGN_MODULES = (
    "transformers.trainer",
    "transformers.integrations",
    "transformers.data",
    "transformers.tokenization",
)

# Containers of the standard library and of torch that are plain objects inside.
CONTAINERS = (
    types.SimpleNamespace, threading.local, collections.UserDict, collections.UserList, collections.ChainMap,
    weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weak.WeakIdKeyDictionary, weak.WeakTensorKeyDictionary,
)  # fmt: skip


@functools.lru_cache(maxsize=4096)
def is_foreign(kind: Any) -> bool:
    """Whether objects of a class are no state: they log, load data, schedule, or run threads of their own."""
    module = str(kind.__module__)
    return module.partition(".")[0] in FOREIGN or module.startswith(FOREIGN_MODULES)


@functools.lru_cache(maxsize=4096)
def is_users(kind: Any) -> bool:
    """Whether a class is the user's own, and not from an installed package."""
    if kind.__module__ == "builtins" or is_foreign(kind):
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is None or written_by_user(file)


@functools.lru_cache(maxsize=4096)
def written_by_user(file: str) -> bool:
    """Whether a file belongs to no installed package."""
    if file.startswith("<frozen"):
        return False
    path = Path(file)
    installed = {"site-packages", "dist-packages"}
    return not (installed & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
                or path.is_relative_to(Path(__file__).parent))  # fmt: skip


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals and attributes in a function and those inside it, and the globals that it sets."""
    import dis

    names = set(code.co_names)
    stored = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, inner_stored = names_in(constant)
            names |= inner
            stored |= inner_stored
    return frozenset(names), frozenset(stored)
