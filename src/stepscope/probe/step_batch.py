"""The batch whose gradient makes a step: what the model was called with, or what the loop says that it is.

It is kept for the steps alone that are to be measured, by reference, with what is needed to evaluate it again: the
random state and autocast. The hooks that notice it are put on just before such a step begins, and taken off when it is
about to be made. Other hooks note the length of the gradient that ``backward`` leaves on each parameter: clipping and
gradient scalers change it before the step, and averaging over processes makes it that of another batch. Where ranks
measure together, that is the batch of all: the lengths are noted when `DistributedDataParallel` has averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import said
from stepscope.objective import dtensors
from stepscope.objective.batches import rows
from stepscope.objective.loss_calls import LossFunction, loss_of
from stepscope.objective.replay import Arguments, Pass, autocast_now


@dataclass(frozen=True)
class StepBatch:
    """The forward passes whose gradients made a step.

    Attributes:
        passes: in order; several where gradients are accumulated.
        norms: by the name of each parameter, the norm of its gradient as ``backward`` left it, or of this rank's part
            of that. None of a parameter without one, or with a sparse one.
        is_named: whether the loop has said that this is the batch, and not only called the model with it.
        backwards: how many backward passes have added to its gradient.
        adds: whether they have added to what the step before had left there, as far as that can be seen: a loop that
            clears gradients unseen by torch's counter of writes looks the same.
    """

    passes: tuple[Pass, ...]
    norms: Mapping[str, Tensor]
    is_named: bool
    backwards: int = 1
    adds: bool = False

    @property
    def loss(self) -> float | None:
        """The mean of what the model said that the losses were, as `Replay` takes it; ``None`` where it didn't."""
        told = [one.loss for one in self.passes]
        if any(loss is None for loss in told):
            return None
        return sum(float(loss) / len(told) for loss in told if loss is not None)

    @property
    def factors(self) -> list[float]:
        """What the gradients of these losses were multiplied by, as far as the losses are known."""
        return [float(sum(one.factors)) for one in self.passes if one.factors]

    @property
    def size(self) -> int | None:
        """How many rows the first tensors of the forward passes have, in all; ``None`` where one has no rows."""
        counts = [rows(one.given) for one in self.passes]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


class BatchWatch:
    """Keeps what a step is made of, between `begin` and `end`.

    Args:
        model: the module that is trained.
        reached: gives the tensors that its loss reaches.
        averaged: whether gradients count as they are when all of ``backward`` is done.

    Attributes:
        lacking: why there is no batch where `end` gave none.
    """

    def __init__(
        self, model: nn.Module, reached: Callable[[], Iterable[Tensor]] = tuple, averaged: bool = False
    ) -> None:
        self._model, self._reached, self._averaged = model, reached, averaged
        self._handles: list[Any] = []
        self._hooked: list[tuple[nn.Parameter, Any]] = []
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._awaits = False
        self._passes: list[Pass] = []
        self._norms: dict[str, Tensor] = {}
        self._found: tuple[Tensor | None, int] = None, 0
        self._accumulation = _Accumulation()
        self._named = False
        self._entered: Pass | None = None
        self._called: Pass | None = None
        self._weights: list[list[int]] = []
        self.lacking = ""

    @property
    def is_on(self) -> bool:
        """Whether a batch would be kept now."""
        return bool(self._handles)

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """A step that is to be measured begins.

        Args:
            parameters: those whose gradients make it.
        """
        self._forget()
        self.lacking = "the batch that made the step isn't known"
        self._parameters = parameters
        if self._model._compiled_call_impl is None:  # else a hook would have the model compiled again
            on_call = _Hook(self._on_call)
            self._handles.append(self._model.register_forward_pre_hook(on_call, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(_Hook(self._on_output)))
        # One gradient speaks for all: the smallest, since it stays in memory when the loop clears it.
        there = [p.grad for p in parameters.values() if p.grad is not None]
        if there:
            least = min(there, key=Tensor.numel)
            self._found = least, dtensors.part(least)._version
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            self._hooked.append((parameter, parameter._post_accumulate_grad_hooks))
            hook = _Hook(self._on_gradient, name)
            register: Any = parameter.register_post_accumulate_grad_hook
            self._handles.append(register(hook))

    def end(self) -> StepBatch | None:
        """The step is about to be made, or won't be: hooks are taken off. Gives its batch, where it is known."""
        self._take_off()
        passes, made = tuple(self._passes), self._accumulation
        kept = StepBatch(passes, self._norms, self._named, made.backwards, made.adds) if passes else None
        if not all(one.is_as_given for one in passes):
            kept, self.lacking = None, "the batch was written to after the model was called with it"
        if any(then != self._written() for then in self._weights):
            for one in passes:
                one.loss = None  # it was that of other weights
        self._forget()
        return kept

    @contextmanager
    def given(self, batch: Any) -> Iterator[None]:
        """Inside, the loop computes the loss of this batch."""
        if not self._named:
            self._named, self._passes = True, []  # calls that were none of the step's: of a generator, for its critic
        if not self._handles:
            yield
            return
        if isinstance(batch, Iterator):
            self._passes, self.lacking = [], "the batch is an iterator, which can't be read twice"
        else:
            self._keep(batch)
            self._entered = self._passes[-1] if self._passes else None
        try:
            yield
        except BaseException:
            self._passes = []
            raise
        finally:
            self._entered = None

    def loss(self, loss_fn: LossFunction | None, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, computed by the loop's own function; both are kept.

        Args:
            loss_fn: see `Replay`.
            model: what the loop calls it with.
            batch: the batch.
        """
        if not self._handles or not torch.is_grad_enabled():
            return loss_of(model, loss_fn, batch)
        with self.given(batch):
            one = self._entered
            loss = loss_of(model, loss_fn, batch)
        if one is not None:
            self._told(one, loss)
        return loss

    def _on_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._entered is not None:
            # The random state is that of the entry, before a loss that draws numbers itself.
            self._entered.autocast = autocast_now()
            self._called, self._entered = self._entered, None
        elif not self._named and model.training and torch.is_grad_enabled():
            self._keep(Arguments(args, kwargs))
            self._called = self._passes[-1] if self._passes else None

    def _on_output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        called, self._called = self._called, None
        if called is not None:
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            self._told(called, loss)

    def _told(self, one: Pass, loss: Any) -> None:
        if isinstance(loss, Tensor) and loss.numel() == 1:
            if one.loss is None and loss.requires_grad:
                self._handles.append(loss.register_hook(_Hook(one.factors.append)))  # type: ignore[no-untyped-call]
            one.loss = loss.detach().clone()  # the loop may divide it in place
            self._weights.append(self._written())

    def _written(self) -> list[int]:
        """How often each weight has been written to, and what else the loss reaches."""
        return [tensor._version for tensor in (*self._model.parameters(), *self._reached())]

    def _on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if self._accumulation.is_new(name, gradient):
            del self._passes[: self._accumulation.passes]
            self._accumulation = _Accumulation()
        self._accumulation.note(name, gradient, len(self._passes))
        found, version = self._found
        self._accumulation.adds |= gradient is found and dtensors.part(gradient)._version == version + 1
        self._measure(name, parameter, gradient)
        if self._averaged and not self._awaits:
            self._awaits = True
            # Behind what others have queued by the end of the backward pass.
            _after_backward(lambda: _after_backward(self._on_averaged))

    def _on_averaged(self) -> None:
        """A backward pass is over, and its gradients have been averaged."""
        self._awaits = False
        for name, parameter in self._parameters.items() if self._handles else ():
            if parameter.grad is not None:
                self._accumulation.see(name, parameter.grad)
                self._measure(name, parameter, parameter.grad)

    def _measure(self, name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        if gradient.is_sparse:
            return
        if dtensors.is_spread(parameter):
            gradient = dtensors.placed_like(gradient.detach(), parameter)
        self._norms[name] = torch.linalg.vector_norm(dtensors.part(gradient), dtype=_wide(gradient))

    def _keep(self, given: Any) -> None:
        try:
            self._passes.append(Pass.beginning(given))
        except Exception as error:  # a container that can't be copied
            self.lacking = said(error)

    def _forget(self) -> None:
        self._take_off()
        self._passes, self._norms, self._accumulation, self._entered = [], {}, _Accumulation(), None
        self._called, self._weights, self._parameters, self._awaits = None, [], {}, False
        self._found = None, 0

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, hooks in self._hooked:
            if hooks is None and not parameter._post_accumulate_grad_hooks:  # else somebody's own came in meanwhile
                parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        self._handles, self._hooked = [], []


class _Accumulation:
    """Whether a backward pass adds to the gradients of the one before: those that were cleared made no step."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._gradient: Tensor | None = None
        self._version = 0
        self._counts = Counter[str]()
        self.passes, self.adds = 0, False

    @property
    def backwards(self) -> int:
        """How many backward passes have added to the gradients."""
        return max(self._counts.values(), default=0)

    def is_new(self, name: str, gradient: Tensor) -> bool:
        """Whether the gradient holds nothing of the backward pass before. The first parameter speaks for all."""
        if name != self._name:
            return False
        return gradient is not self._gradient or dtensors.part(gradient)._version != self._version + 1

    def note(self, name: str, gradient: Tensor, passes: int) -> None:
        """A backward pass has added to a gradient, after so many forward passes."""
        if self._name in (None, name):
            self._name, self.passes = name, passes
        self.see(name, gradient)
        self._counts[name] += 1

    def see(self, name: str, gradient: Tensor) -> None:
        """This is what a backward pass has left."""
        if self._name == name:
            self._gradient, self._version = gradient, dtensors.part(gradient)._version


class _Hook:
    """A hook of a step's. Copies of a model, and those that are stored, get one that does nothing."""

    def __init__(self, function: Callable[..., None], *before: Any) -> None:
        self._function, self._before = function, before

    def __call__(self, *args: Any) -> None:
        """Called by torch."""
        if not torch.compiler.is_compiling():
            self._function(*self._before, *args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _Hook, (_nothing,)


def _after_backward(call: Callable[[], None]) -> None:
    """Calls a function at the end of the backward pass that goes on."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def _nothing(*_: Any) -> None:
    pass


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)
