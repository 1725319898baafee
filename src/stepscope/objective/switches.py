"""The switches of torch that are turned off while a model is measured, and why.

A second derivative needs a deterministic, twice differentiable function in enough precision. For speed or memory torch
evaluates a model as another function. `switched_off` prevents that:

- Autocast is off, also where the loss or the model enters it: second derivatives in half precision are mostly rounding.
- Attention uses the math kernel, compiled modules run eagerly, and cuDNN is off for recurrent layers: fused kernels
  have no second derivative. Where nothing is differentiated, attention uses the kernels that training uses. Compiled
  modules run eagerly there too: they are compared with what is differentiated. Reentrant checkpoints call their
  function directly: they allow no `autograd.grad`.
- Backward hooks on all modules are removed: they could change the gradient that is measured.
- The cache of `parametrize.cached()` is off: it holds the weight of another point.
- The fast path of torch's transformer layers is off: without gradients it computes another function.

Losses alone need none of the first two. `as_trained` leaves them as training has them, except for autocast's cache,
which would hold the weights of another point.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Inside, gradients are computed, whatever the caller's mode; and no layer takes a path that needs none."""
    with _without_fast_path(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def switched_off(modules: Iterable[nn.Module], devices: Iterable[str]) -> Iterator[None]:
    """Inside, some modules are evaluated as they are written: in full precision, eagerly, without fused kernels.

    Args:
        modules: all that the loss reaches.
        devices: the types of device that they are on.
    """
    with ExitStack() as stack:
        for device in devices:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_autocast_without("_enabled"))
        stack.enter_context(_reentrant_checkpointing_off())
        # Backward hooks on all modules can change the gradient that is measured.
        stack.enter_context(emptied(nn.modules.module, "_global_backward_hooks", "_global_backward_pre_hooks"))
        stack.enter_context(_parametrizations_uncached())
        # Fused attention kernels have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in modules):
            # cuDNN's recurrent layers have no second derivative, and in evaluation mode not even a first one.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            # Compiled modules have no second derivative.
            stack.enter_context(eager())
        yield


@contextmanager
def as_trained() -> Iterator[None]:
    """Inside, modules are evaluated as training does, at any point: no cache holds the weights of another."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with _autocast_without("_cache_enabled"), _reentrant_checkpointing_off(), _parametrizations_uncached():
            yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def as_compiled() -> Iterator[None]:
    """Inside, the loss can be differentiated as training does. Compiled code stays as it is: it depends on switches."""
    torch.clear_autocast_cache()  # of weights at another point
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _reentrant_checkpointing_off(),
            _parametrizations_uncached(),
        ):
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled code runs as it is written."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # A compiled module warns of the hook that notices modules when they are called.
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
        yield


def attention_kernels() -> list[SDPBackend]:
    """The kernels that attention may use now, and the math kernel: others don't know all types and dropout."""
    switches: Any = torch.backends.cuda  # they hold on a CPU too
    enabled = {
        SDPBackend.FLASH_ATTENTION: switches.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: switches.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: switches.cudnn_sdp_enabled(),
        SDPBackend.MATH: True,
    }
    return [kernel for kernel, usable in enabled.items() if usable]


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Without gradients, torch's transformer layers take a fused path that computes another function."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _autocast_without(switch: str) -> Iterator[None]:
    """An autocast that the loss or the model enters itself has one of its switches off.

    Args:
        switch: ``"_enabled"``, for gradients would be of half precision, or ``"_cache_enabled"``.
    """
    enter: Any = torch.autocast.__enter__

    def enter_without(self: torch.autocast) -> Any:
        value = getattr(self, switch)
        setattr(self, switch, False)
        try:
            return enter(self)
        finally:
            setattr(self, switch, value)

    torch.autocast.__enter__ = enter_without  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


@contextmanager
def _reentrant_checkpointing_off() -> Iterator[None]:
    """Reentrant checkpoints take no `autograd.grad`, and hide the parameters inside where their inputs need none."""
    module: Any = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        yield
        return
    function = module.CheckpointFunction
    inherited = "apply" not in vars(function)
    apply = None if inherited else vars(function)["apply"]
    function.apply = staticmethod(lambda run, _, *args: run(*args))
    try:
        yield
    finally:
        if inherited:
            del function.apply
        else:
            function.apply = apply


@contextmanager
def emptied(module: Any, *names: str) -> Iterator[None]:
    """Inside, some dictionaries of a module are empty: those in which it registers hooks on all objects of a kind."""
    registries = [registry for name in names if isinstance(registry := getattr(module, name, None), dict)]
    kept = [dict(registry) for registry in registries]
    try:
        for registry in registries:
            registry.clear()
        yield
    finally:
        for registry, hooks in zip(registries, kept, strict=True):
            registry.update(hooks)


@contextmanager
def _parametrizations_uncached() -> Iterator[None]:
    """Inside `parametrize.cached()` a parametrized weight would stay that of another point."""
    module: Any = sys.modules.get("torch.nn.utils.parametrize")
    if module is None:
        yield
        return
    enabled, cache = module._cache_enabled, module._cache
    module._cache_enabled, module._cache = 0, {}
    try:
        yield
    finally:
        module._cache_enabled, module._cache = enabled, cache
