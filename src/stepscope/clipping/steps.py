"""Hooks around an optimizer's step: once before the update, when the gradients are there, and once after it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from stepscope.errors import UsageError

Callback = Callable[[Optimizer, float], None]


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer that makes the step: the one inside Accelerate's and Lightning's wrappers, which only call it.

    An optimizer that holds another and changes its steps, such as Lookahead, is returned itself.

    Raises:
        UsageError: it is no optimizer.
    """
    while not isinstance(optimizer, Optimizer) or only_calls(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise UsageError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
        optimizer = inner
    return optimizer


def only_calls(wrapper: Optimizer) -> bool:
    """Whether an optimizer is a wrapper of Accelerate's or Lightning's, which calls the one inside."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(wrapper).__mro__}
    known = {"accelerate.AcceleratedOptimizer", "lightning.LightningOptimizer", "pytorch_lightning.LightningOptimizer"}
    return bool(names & known)


class StepHook:
    """Calls functions around each step of an optimizer, once a step.

    torch hooks a step twice where a class calls the `step` of its base class, and an optimizer may call a closure
    several times. Only the outermost step and the first call count.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        before: ``before(optimizer, entered)``, called when the parameters have the gradients of the step and haven't
            moved; `entered` is the time (`time.perf_counter`) at which torch called the hook.
        after: ``after(optimizer, entered)``, called when the parameters have moved; not if the step raised.
        every_call: whether `before` is called after each call of a closure, for rules that evaluate the loss several
            times a step (LBFGS).

    Raises:
        UsageError: the optimizer was made without torch's constructor, which puts the hooks there.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1)); w.grad = torch.ones(1)
        >>> optimizer = torch.optim.SGD([w], lr=0.5)
        >>> hook = StepHook(optimizer, lambda *_: print("before", w.item()), lambda *_: print("after", w.item()))
        >>> optimizer.step()
        before 1.0
        after 0.5
        >>> hook.remove()
    """

    def __init__(self, optimizer: Optimizer, before: Callback, after: Callback, *, every_call: bool = False) -> None:
        self._before = before
        self._after = after
        self._every_call = every_call
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise UsageError(
                f"{type(optimizer).__name__} has no hooks around its step: call torch.optim.Optimizer.__init__ in its "
                "constructor, or give the optimizer that it holds"
            )
        pre, post = _untraced(self._pre_hook), _untraced(self._post_hook)
        self._handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]

    def remove(self) -> None:
        """Removes the hooks; removing twice does nothing."""
        for handle in self._handles:
            handle.remove()

    def _pre_hook(self, entered: float, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if _is_nested(optimizer):
            return None
        position = 1 if len(args) > 1 else None
        closure = args[1] if position else kwargs.get("closure")
        if closure is None:
            self._before(optimizer, entered)
            return None
        called = False

        def observed(*inner: Any, **named: Any) -> Any:
            nonlocal called
            result = closure(*inner, **named)
            if self._every_call or not called:
                called = True
                self._before(optimizer, time.perf_counter())
            return result

        if position:
            return (args[0], observed, *args[2:]), kwargs
        return args, {**kwargs, "closure": observed}

    def _post_hook(self, entered: float, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not _is_nested(optimizer):
            self._after(optimizer, entered)


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, never traced: a compiled step would record its effects once and repeat them."""
    untraced: list[Callable[..., Any]] = []

    def called(*args: Any) -> Any:
        entered = time.perf_counter()
        if "torch._dynamo" not in sys.modules:  # importing it takes seconds
            return hook(entered, *args)
        if not untraced:
            untraced.append(torch.compiler.disable(hook))  # type: ignore[no-untyped-call]
        return untraced[0](entered, *args)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


_STEP = Optimizer.profile_hook_step(lambda *_: None).__code__
"""The code of the wrapper that calls an optimizer's hooks, the same for all."""


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether the step whose hook is being called runs inside another step of the same optimizer."""
    steps = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and steps < 2:
        steps += frame.f_code is _STEP and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps > 1
