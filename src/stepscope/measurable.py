"""Makes a user's model measurable, and leaves it exactly as it was found.

Second derivatives need a deterministic, twice differentiable function in enough precision; a model in training is none
of that. What is changed, and put back: `docs/architecture.md` lists each with its reason.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.float16, torch.bfloat16)


def measured_dtype(found: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype that a floating-point tensor is measured in: `wanted`, or its own with half raised to float32."""
    if wanted is not None:
        return wanted
    return torch.float32 if found in HALF else found


@contextmanager
def measurable(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Inside, `model` is a deterministic and twice differentiable function; outside, it is as it was found.

    Parameters and buffers become stand-ins, so that nothing is ever written to the originals: an interruption at
    any moment leaves them untouched, and a graph that the user still holds stays valid.

    Args:
        model: the module.
        dtype: the floating-point type to measure in (see `measured_dtype`).
    """
    with ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(_without_fast_path())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_autocast_off())
        stack.enter_context(_reentrant_checkpointing_off())
        # Fused attention kernels have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            # cuDNN's recurrent layers have no second derivative, and in evaluation mode not even a first one.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            # Compiled modules have no second derivative either.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _evaluation_mode(model, stack)
        _without_backward_hooks(model, stack)
        _buffer_stand_ins(model, dtype, stack)
        _parameter_stand_ins(model, dtype, stack)
        yield


@contextmanager
def random_state() -> Iterator[None]:
    """Puts the random state of torch (CPU and CUDA), Python and numpy back at the end."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(legacy)


def seed_everything(seed: int) -> None:
    """Seeds torch, Python and numpy; only inside `random_state`."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


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
def _autocast_off() -> Iterator[None]:
    """An autocast that the loss or the model enters itself has no effect: gradients would be of half precision."""
    enter: Any = torch.autocast.__enter__

    def enter_disabled(self: torch.autocast) -> Any:
        enabled, self._enabled = self._enabled, False
        try:
            return enter(self)
        finally:
            self._enabled = enabled

    torch.autocast.__enter__ = enter_disabled  # type: ignore[method-assign]
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


def _without_backward_hooks(model: nn.Module, stack: ExitStack) -> None:
    """A module's backward hook can change the gradient that is measured, as a tensor's can."""
    names = ("_backward_hooks", "_backward_pre_hooks")
    found = [(module, name, module.__dict__[name]) for module in model.modules() for name in names]
    found = [(module, name, hooks) for module, name, hooks in found if hooks]

    def put_back() -> None:
        for module, name, hooks in found:
            module.__dict__[name] = hooks

    stack.callback(put_back)
    for module, name, _ in found:
        module.__dict__[name] = OrderedDict()


def _evaluation_mode(model: nn.Module, stack: ExitStack) -> None:
    modes = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        for module, training in modes:
            module.training = training

    stack.callback(put_back)
    # Not by `eval()`: modules override it, to merge adapters into weights for one.
    for module in model.modules():
        module.training = False


def _buffer_stand_ins(model: nn.Module, dtype: torch.dtype | None, stack: ExitStack) -> None:
    """A module may write into its buffers, and may replace them; one that several share stays shared."""
    found = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]

    def put_back() -> None:
        for module, named in found:
            module._buffers.clear()
            module._buffers.update(named)

    stack.callback(put_back)
    stand_ins: dict[Tensor, Tensor] = {}
    for module, named in found:
        for name, buffer in named.items():
            if buffer is not None:
                if buffer not in stand_ins:
                    stand_ins[buffer] = _as_measured(buffer.detach(), dtype, copy=True)
                module._buffers[name] = stand_ins[buffer]


def _parameter_stand_ins(model: nn.Module, dtype: torch.dtype | None, stack: ExitStack) -> None:
    """Gradients and tensor hooks are taken off too: a hook would change the gradient that is measured."""
    found: list[tuple[nn.Parameter, Tensor, Tensor | None, Any]] = [
        (parameter, parameter.data, parameter.grad, parameter._backward_hooks) for parameter in model.parameters()
    ]

    def put_back() -> None:
        for parameter, data, grad, hooks in found:
            parameter.grad = None
            parameter.data = data
            parameter.grad = grad
            parameter._backward_hooks = hooks

    stack.callback(put_back)
    # Such an embedding rescales its weights when it is called.
    written = {id(p) for m in model.modules() if getattr(m, "max_norm", None) is not None for p in m.parameters()}
    for parameter, data, _, _ in found:
        parameter.grad = None
        parameter._backward_hooks = None
        parameter.data = _as_measured(data, dtype, copy=id(parameter) in written)


def _as_measured(data: Tensor, dtype: torch.dtype | None, *, copy: bool) -> Tensor:
    if data.is_floating_point():
        return data.to(measured_dtype(data.dtype, dtype), copy=copy)
    return data.clone() if copy else data
