"""Several optimizers whose steps together are one step of the training: Muon for matrices, say, and AdamW for the rest.

The step is about to be made when the first of them is, and has been made when the last of them has stepped, in whatever
order. Between the two, no new gradients come in: optimizers that step in turns, each after a backward pass of its own,
make steps of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from stepscope.clipping.steps import Callback, StepHook, only_calls, unwrapped
from stepscope.errors import UsageError

Broken = Callable[[int], None]


def parts_of(optimizer: Any) -> tuple[Optimizer, ...]:
    """The optimizers that make a step together: those of a list, of a container's ``.optimizers``, or a single one.

    Args:
        optimizer: an optimizer, a wrapper that only calls one (Accelerate's, say), a container of several, or a
            sequence of these. An optimizer that holds one other and changes its steps is taken as it is.

    Raises:
        UsageError: something is no optimizer, or two of them hold the same parameter.

    Example:
        >>> import torch
        >>> w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
        >>> [type(part).__name__ for part in parts_of([torch.optim.Muon([w]), torch.optim.AdamW([b])])]
        ['Muon', 'AdamW']
    """
    parts = _flat(optimizer)
    seen: dict[int, Optimizer] = {}
    for part in parts:
        for parameter in _parameters(part):
            if (other := seen.setdefault(id(parameter), part)) is not part:
                raise UsageError(
                    f"{type(other).__name__} and {type(part).__name__} hold the same parameter, of shape "
                    f"{tuple(parameter.shape)}: optimizers of one step share the parameters out between them"
                )
    return parts


def _flat(optimizer: Any) -> tuple[Optimizer, ...]:
    inside = optimizer if isinstance(optimizer, list | tuple) else getattr(optimizer, "optimizers", None)
    if not isinstance(inside, list | tuple | Mapping):
        wraps = not isinstance(optimizer, Optimizer) or only_calls(optimizer)
        inner = getattr(optimizer, "optimizer", None) if wraps else None
        return (unwrapped(optimizer),) if inner is None else _flat(inner)
    several = inside.values() if isinstance(inside, Mapping) else inside
    parts = tuple(dict.fromkeys(part for one in several for part in _flat(one)))
    if not parts:
        raise UsageError("there is no optimizer among those given")
    return parts


def name_of(optimizers: Sequence[Optimizer]) -> str:
    """The kinds of the optimizers, as one name.

    Example:
        >>> import torch
        >>> w, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
        >>> name_of([torch.optim.Muon([w]), torch.optim.AdamW([b])])
        'Muon + AdamW'
    """
    return " + ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))


class JointStepHook:
    """Calls functions around each step that several optimizers make together, once a step.

    Args:
        optimizers: one or several.
        before: as `StepHook` has it, called when the first of them is about to step.
        after: as `StepHook` has it, called when the last of them has stepped.
        broken: ``broken(in_a_row)``, called when a step turns out not to have been made by all of them, since one steps
            again, or on new gradients, before the others have; with the number of such steps since the last whole one.

    Example:
        >>> import torch
        >>> w, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> one, other = torch.optim.SGD([w], lr=0.5), torch.optim.SGD([b], lr=0.5)
        >>> hook = JointStepHook([one, other], lambda *_: print("before"), lambda *_: print("after"), print)
        >>> w.grad, b.grad = torch.ones(1), torch.ones(1)
        >>> other.step(); print(w.item(), b.item()); one.step()
        before
        1.0 0.5
        after
        >>> hook.remove()
    """

    def __init__(self, optimizers: Sequence[Optimizer], before: Callback, after: Callback, broken: Broken) -> None:
        self._optimizers = tuple(optimizers)
        self._callbacks = before, after, broken
        self._stepped: list[Optimizer] = []
        self._watches: dict[Optimizer, _GradientWatch] = {}
        self._broken_in_a_row = 0
        self._hooks = [StepHook(optimizer, self._before, self._after) for optimizer in self._optimizers]

    def remove(self) -> None:
        """Removes the hooks; removing twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._end_watches()

    def _before(self, optimizer: Optimizer, entered: float) -> None:
        if self._stepped:
            if optimizer not in self._stepped and not self._watches[optimizer].saw():
                return
            self._stepped = []
            self._broken_in_a_row += 1
            self._callbacks[2](self._broken_in_a_row)
        self._end_watches()
        self._callbacks[0](optimizer, entered)
        self._watches = {part: _GradientWatch(part) for part in self._optimizers if part is not optimizer}

    def _after(self, optimizer: Optimizer, entered: float) -> None:
        if optimizer not in self._stepped:
            self._stepped.append(optimizer)
        if len(self._stepped) == len(self._optimizers):
            self._stepped, self._broken_in_a_row = [], 0
            self._end_watches()
            self._callbacks[1](optimizer, entered)

    def _end_watches(self) -> None:
        for watch in self._watches.values():
            watch.end()
        self._watches = {}


class _GradientWatch:
    """Notices gradients that come in for an optimizer, from the step of the first to its own: none in most trainings.

    It can't be seen by the gradients: a scaler and clipping may write to them in between.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._seen = optimizer, False
        given: list[Any] = [p for p in _parameters(optimizer) if p.grad is not None and p.requires_grad]
        self._parameter = given[0] if given else None
        if self._parameter is not None:
            self._hooks = self._parameter._post_accumulate_grad_hooks
            self._handle = self._parameter.register_post_accumulate_grad_hook(self._note)

    def saw(self) -> bool:
        """Whether there were any."""
        return self._seen or (self._parameter is None and any(p.grad is not None for p in _parameters(self._optimizer)))

    def end(self) -> None:
        """Takes the hook off, and leaves no trace of it."""
        if self._parameter is not None:
            self._handle.remove()
            if self._hooks is None and not self._parameter._post_accumulate_grad_hooks:
                self._parameter._post_accumulate_grad_hooks = None

    def _note(self, _: Tensor) -> None:
        self._seen = True


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
