"""The moments of an optimizer's step: once before the update, its gradients in place, and once after it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer


class StepHook:
    """Calls functions around each step of an optimizer, once a step.

    A class whose `step` calls that of its base class is hooked twice by torch, and one with a closure may call it
    several times: only the outermost step and the first call count.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        before: called when the gradients of the step are on the parameters and it hasn't moved them.
        after: called when it has; not if the step raised.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1)); w.grad = torch.ones(1)
        >>> optimizer = torch.optim.SGD([w], lr=0.5)
        >>> hook = StepHook(optimizer, lambda: print("before", w.item()), lambda: print("after", w.item()))
        >>> optimizer.step()
        before 1.0
        after 0.5
        >>> hook.remove()
    """

    def __init__(self, optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before = before
        self._after = after
        # A compiled step calls the hooks as they are; tracing into them would record what they do but once.
        pre, post = _untraced(self._pre_hook), _untraced(self._post_hook)
        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]

    def remove(self) -> None:
        """Takes the hooks off; removing twice does nothing."""
        for handle in self._handles:
            handle.remove()

    def _pre_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if _is_nested(sys._getframe(2), optimizer):
            return None
        position = 1 if len(args) > 1 else None
        closure = args[1] if position else kwargs.get("closure")
        if closure is None:
            self._before()
            return None
        called = False

        def first_call_noticed(*inner: Any, **named: Any) -> Any:
            nonlocal called
            result = closure(*inner, **named)
            if not called:
                called = True
                self._before()
            return result

        if position:
            return (args[0], first_call_noticed, *args[2:]), kwargs
        return args, {**kwargs, "closure": first_call_noticed}

    def _post_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not _is_nested(sys._getframe(2), optimizer):
            self._after()


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        return hook(*args)

    # What torch.compiler.disable sets; calling that would import the compiler.
    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


def _is_nested(caller: FrameType, optimizer: Optimizer) -> bool:
    """Whether the step whose hook is called from `caller` runs inside another step of the same optimizer."""
    step = caller.f_code
    frame = caller.f_back
    while frame is not None:
        if frame.f_code is step and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False
