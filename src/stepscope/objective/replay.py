"""The training's own loss on a batch that it has just used, evaluated again as training evaluates it.

`Objective` makes a model deterministic and twice differentiable. Here nothing of that is wanted: what was computed is
to be computed again, at the same weights and at those after the step, with the same dropout masks, in training mode, in
the precision that autocast chose, by compiled code where there is some. What the evaluation moves (running statistics,
counters, queues, random numbers) is put back.

Where ranks train together, the batch of a step is that of all of them, and its loss the mean of theirs, as in training:
each evaluates its own part, those of a sharded model together.

A walk through all that the loss leads to takes longer than the forward pass of a small model, so it is done once: later
evaluations ask its places alone whether something new has come in. The first evaluation is watched for modules and
memory that no walk finds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import _disable_current_modes

from stepscope.errors import UsageError
from stepscope.objective import dtensors, vectors
from stepscope.objective.batches import mapped, moved, tensors
from stepscope.objective.interrupts import held
from stepscope.objective.loss_calls import LossFunction, loss_in, loss_of, scalar, without_communication
from stepscope.objective.measurable import is_compiled
from stepscope.objective.plain_model import PlainModel
from stepscope.objective.process_group import Ranks
from stepscope.objective.randomness import RandomState, random_state
from stepscope.objective.sharded_model import ShardedModel
from stepscope.objective.state import State
from stepscope.objective.switches import as_compiled, eager, emptied
from stepscope.objective.vectors import Direction
from stepscope.objective.writes import WatchedWrites, memory_of

Autocast = tuple[tuple[str, bool, torch.dtype], ...]
"""Of each type of device: whether autocast is on, and to what."""


@dataclass(frozen=True)
class Arguments:
    """What the model was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Pass:
    """One forward pass of a training: what is needed to evaluate its loss again.

    Attributes:
        given: a batch, or the arguments of a call of the model. Its tensors are the training's own.
        random: the random state at its beginning.
        autocast: as it was when the model was called.
        versions: how often each tensor had been written to.
        loss: what the model itself said that its loss was, where it did.
        factors: what ``backward`` has multiplied the gradient of that loss by, each time.
    """

    given: Any
    random: RandomState
    autocast: Autocast
    versions: list[int]
    loss: Tensor | None = None
    factors: list[Tensor] = field(default_factory=list)

    @classmethod
    def beginning(cls, given: Any) -> Pass:
        """The pass that begins now. Containers are copied, since a loss may take labels out of its batch."""
        kept = mapped(given, lambda tensor: tensor)
        return cls(kept, RandomState(), autocast_now(), _versions(kept))

    @property
    def is_as_given(self) -> bool:
        """Whether nothing has been written to its tensors since."""
        return self.versions == _versions(self.given)


def _versions(given: Any) -> list[int]:
    # Inference tensors don't count.
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors(given)]


def autocast_now() -> Autocast:
    """The state of autocast, of the devices that are there."""
    devices = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
    return tuple((device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices)


@dataclass(frozen=True)
class Evaluation:
    """A loss that was evaluated again.

    Attributes:
        loss: the mean of the passes' losses.
        eps: the precision of the loss.
        eps_inside: the coarsest precision that it is computed in, by autocast or half-precision weights.
        gradient: of that mean, where it was asked for.
    """

    loss: float
    eps: float
    eps_inside: float
    gradient: Direction | None = None


class Replay:
    """Evaluates the losses of forward passes again, at the present weights, and leaves everything as it was found.

    Args:
        model: the module that is trained.
        loss_fn: ``loss_fn(model, batch)`` gives the loss that is trained on; ``None``: the ``loss`` in the output of
            the model.
        modules: see `Objective`.
        how: how ranks that train together evaluate the model; ``None`` for this process alone.

    Attributes:
        ranks: those that train together.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> replay = Replay(model, lambda model, batch: model(batch).square().mean())
        >>> batch = torch.ones(4, 2); begun = Pass.beginning(batch); loss = model(batch).square().mean()
        >>> replay.evaluated([begun]).loss == loss.item()
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        modules: Iterable[nn.Module] = (),
        how: PlainModel | ShardedModel | None = None,
    ) -> None:
        self._how = how or PlainModel(Ranks(None, next(model.parameters()).device))
        self.ranks = self._how.ranks
        self._model = model
        self._called = without_communication(model)
        self._loss_fn = loss_fn
        self._roots: dict[str, Any] = {"model": model, "loss_fn": loss_fn}
        self._roots |= {f"modules[{index}]": module for index, module in enumerate(modules)}
        self._state: State | None = None
        self._watched = False
        self._dtypes: set[torch.dtype] = set()
        self._unfound: list[Tensor] = []

    def evaluated(self, passes: Sequence[Pass], *, differentiate: bool = False) -> Evaluation:
        """The mean loss of some passes at the present weights.

        Args:
            passes: at least one, as many on all ranks.
            differentiate: whether its gradient is wanted too.

        Raises:
            UsageError: the loss isn't a scalar, or evaluating it changes a weight, or what can't be put back.
        """
        with (
            self.ranks.agreed("the loss of the step's batch"), held(), random_state(),
            self._how.measuring(as_trained=True), self._left_as_found(), as_compiled(),
        ):  # fmt: skip
            if self._watched:
                own = self._evaluated(passes, differentiate)
            else:
                own = self._watch(lambda: self._evaluated(passes, differentiate))
        return self._of_all(own)

    def reached(self, apart: Iterable[Tensor]) -> list[Tensor]:
        """The tensors that the loss reaches, as far as is known: none before the first evaluation.

        Args:
            apart: tensors that are left out, with all that shares their memory.
        """
        if self._state is None:
            return []
        known = {memory_of(dtensors.part(tensor)) for tensor in apart}
        tensors = (tensor for tensor in self._state.tensors.values() if not tensor.is_inference())
        return [tensor for tensor in tensors if memory_of(dtensors.part(tensor)) not in known]

    def _of_all(self, own: Evaluation) -> Evaluation:
        """The mean of what all ranks have evaluated; the same on all, to the bit."""
        if self.ranks.alone:
            return own
        everyone = self.ranks.concatenated([own.loss, own.eps, own.eps_inside])
        losses, eps, inside = (everyone[kind::3] for kind in range(3))
        gradient = own.gradient
        if gradient is not None:
            parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
            gradient = self._how.pooled(gradient, parameters)
        return Evaluation(math.fsum(losses) / len(losses), max(eps), max(inside), gradient)

    def _evaluated(self, passes: Sequence[Pass], differentiate: bool) -> Evaluation:
        parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        loss, gradient = 0.0, Direction()
        dtypes, inside = set[torch.dtype](), {*self._dtypes, *(p.dtype for p in parameters.values())}
        for index, one in enumerate(passes):
            self._how.deliver()
            with self._how.evaluating(), self._as_then(one) as given:
                # With its graph, wanted or not: without, compiled code would be compiled again.
                value = scalar(self._loss(given), index)
            loss += float(value.detach()) / len(passes)
            dtypes.add(value.dtype)
            inside |= {dtype for _, enabled, dtype in one.autocast if enabled}
            if differentiate:
                vectors.absorb(gradient, self._how.gradient(value / len(passes) / self.ranks.parts, parameters), 1.0)
        return Evaluation(loss, _eps(dtypes), _eps(inside), gradient if differentiate else None)

    def _loss(self, given: Any) -> Tensor:
        if not isinstance(given, Arguments):
            return loss_of(self._called, self._loss_fn, given)
        if self._loss_fn is not None:
            if given.args or not given.kwargs:
                raise ValueError("the model was called with something else than a batch of names")
            return self._loss_fn(self._called, given.kwargs)
        return loss_in(self._called(*given.args, **given.kwargs))

    @contextmanager
    def _as_then(self, one: Pass) -> Iterator[Any]:
        """Random numbers and autocast are as they were in that pass; gives a copy of what it was given."""
        device = next(self._model.parameters()).device
        given = moved(one.given, device, lambda dtype: dtype)
        with ExitStack() as stack:
            for kind, enabled, dtype in one.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, torch.is_autocast_cache_enabled()))
            one.random.resume()
            yield given

    def _watch(self, evaluate: Callable[[], Evaluation]) -> Evaluation:
        """The first evaluation: what no walk found and it moves is put back too, from now on."""
        assert self._state is not None
        spared = self._how.memories() if self._how.memories is not None else ()
        writes, compiled = WatchedWrites(spared), is_compiled(self._state)
        handle = register_module_forward_pre_hook(self._meet)
        try:
            # Compiled code can't be watched.
            with eager() if compiled else ExitStack(), writes:
                evaluation = evaluate()
        finally:
            handle.remove()
            writes.restore()
        weights = {memory_of(dtensors.part(p)): name for name, p in self._model.named_parameters()}
        scaled = {memory_of(p) for p in _scaled(self._state)}
        for tensor in writes.written:
            if (memory := memory_of(tensor)) in weights and memory not in scaled:
                raise UsageError(f"{weights[memory]} is written to when the loss is evaluated")
        self._unfound, self._watched = writes.written, True
        # Autocast may be entered in the model itself.
        self._dtypes = {dtype for dtype in writes.dtypes if dtype.is_floating_point}
        if compiled:
            return evaluate()
        return replace(evaluation, eps_inside=max(evaluation.eps_inside, _eps(self._dtypes)))

    def _meet(self, module: nn.Module, _: Any) -> None:
        """A module that no walk found is about to be called."""
        assert self._state is not None
        if id(module) in {*map(id, self._state.modules.values())} or type(module).__module__.startswith("torch.nn."):
            return
        with _disable_current_modes():
            name = type(module).__name__
            self._roots[name] = module
            self._state.add({name: module})

    @contextmanager
    def _left_as_found(self) -> Iterator[None]:
        if self._state is None or not self._state.renew():
            self._state = State(self._roots, through=(Optimizer, LRScheduler))
        state = self._state
        memory = self._may_be_written(state)
        with ExitStack() as stack:
            stack.callback(_restore, state, [(here, here.clone()) for here in memory])  # type: ignore[no-untyped-call]
            state.spare_iterators()
            stack.enter_context(_without_backward_hooks(state))
            yield
        if unrestored := state.unrestored():
            raise UsageError(f"evaluating the loss has written to {unrestored[0]}, which can't be put back")

    def _may_be_written(self, state: State) -> list[torch.UntypedStorage]:
        """The memory that an evaluation may write to: that of all tensors but weights."""
        tensors = [tensor for tensor in state.exchangeable() if not isinstance(tensor, nn.Parameter)]
        found = {memory_of(tensor): tensor for tensor in (*tensors, *self._unfound)}
        for parameter in self._model.parameters():
            found.pop(memory_of(dtensors.part(parameter)), None)  # of which an attribute may be a view
        found |= {memory_of(parameter): parameter for parameter in _scaled(state)}
        return [tensor.untyped_storage() for memory, tensor in found.items() if memory is not None]


def _eps(dtypes: Iterable[torch.dtype]) -> float:
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _scaled(state: State) -> list[nn.Parameter]:
    """Weights of embeddings with a largest norm, which a call of theirs scales."""
    modules = [module for module in state.modules.values() if getattr(module, "max_norm", None) is not None]
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def _restore(state: State, kept: list[tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> None:
    written = {path for path, tensor in state.written().items() if isinstance(tensor, nn.Parameter)}
    copied = {here._cdata for here, _ in kept}
    lost = [path for path in written if memory_of(state.tensors[path]) not in copied]
    state.restore()
    for here, content in kept:
        here.copy_(content)
    state.forget_gradients()
    if lost:
        raise UsageError(f"{lost[0]} was written to when the loss was evaluated, and can't be put back")


@contextmanager
def _without_backward_hooks(state: State) -> Iterator[None]:
    """Inside, no hook of somebody's changes a gradient, or counts it. Those of modules come back with the state."""
    for module in state.modules.values():
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            if module.__dict__.get(name):
                module.__dict__[name] = OrderedDict()
    hooked = [(p, p._backward_hooks) for m in state.modules.values() for p in m.parameters(recurse=False)]
    try:
        for parameter, _ in hooked:
            parameter._backward_hooks = None
        with emptied(nn.modules.module, "_global_backward_hooks", "_global_backward_pre_hooks"):
            yield
    finally:
        for parameter, hooks in hooked:
            parameter._backward_hooks = hooks
