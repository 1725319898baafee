"""A step that an optimizer takes on trial: what it would add to the parameters is known, and nothing has changed.

The optimizer itself steps, on copies of everything that it leads to; then all is restored. A copy of the optimizer
would lose, or advance, what rules keep elsewhere than in ``state``: attributes of parameters, dictionaries by identity,
closures, counters on a class, views and flat buffers. The objects stay the same, so identities hold; only the data of
tensors is exchanged, with one copy for all that share memory, in the same dtype (another one would take the hooks of
`DistributedDataParallel` off). What no walk finds is copied just before it is first written to.

The step's arithmetic is the optimizer's own; the rounding of the weights is not part of it. In float64 it would be
another step where a rule rounds or decomposes inside: Muon's was 2% off, SPlus' 18%. So the step runs in its own
precision, and each operation that writes to a parameter is also carried out on a float64 mirror of its memory. The
direction is a difference of rounded weights only where an operation can't be followed (it draws, or its kernel is the
user's own), or where the weights are further from the mirror than rounding explains (memory that is replaced, writes by
pointers).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import ClipHandle, StepHook
from stepscope.errors import UsageError
from stepscope.objective import (
    HALF,
    Direction,
    State,
    WatchedWrites,
    accumulator,
    dtensors,
    emptied,
    held,
    memory_of,
    random_state,
    vectors,
)

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@contextmanager
def unnoticed() -> Iterator[None]:
    """Inside, optimizers may take steps that nobody outside notices, if their state is restored."""
    with ExitStack() as stack:
        stack.enter_context(held())
        stack.enter_context(random_state())
        # Hooks on every optimizer (`register_optimizer_step_pre_hook`) are for steps of the training.
        optim = sys.modules[Optimizer.__module__]
        stack.enter_context(emptied(optim, "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"))
        if "torch._dynamo" in sys.modules:
            # Compiled code writes where nobody sees it.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def state_of(optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]) -> State:
    """Everything that steps of some optimizers can change, the state of their hooks included."""
    hooks = [hook for optimizer in optimizers for name in _HOOKS for hook in vars(optimizer).get(name, {}).values()]
    roots = {"optimizers": list(optimizers), "hooks": hooks, **parameters}
    return State(roots, through=(Optimizer, StepHook, ClipHandle))


def without_hooks(state: State) -> None:
    """Until the state is restored, its optimizers have no hooks on their steps."""
    for optimizer in state.instances(Optimizer):
        # Other dictionaries in their place: torch may be iterating over these.
        vars(optimizer).update({name: OrderedDict() for name in _HOOKS})


def trial_step(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    *,
    hooks: bool = False,
    as_found: bool = True,
) -> tuple[Direction, bool]:
    """The direction of a step of some optimizers, which share the parameters out between them.

    They take the step themselves, in their own precision, on copies of all that they lead to. All that they write to
    the parameters is also written to float64 mirrors of them, without the rounding of the weights.

    Args:
        optimizers: any.
        parameters: ``{name: parameter}``, all that are known by name.
        gradients: ``{name: gradient}`` of the step. A named parameter that is left out has no gradient; parameters
            without a name keep theirs.
        hooks: whether the hooks on their steps are run.
        as_found: whether to call a ``step`` that is set on the object itself, or that of its class.

    Returns:
        The direction, for the parameters that have a gradient, in their dtype or float32, whichever is wider; and
        whether some of it is a difference of rounded weights.
    """
    with unnoticed():
        state, writes = state_of(optimizers, parameters), None
        before = {name: dtensors.part(parameters[name]) for name in gradients}
        try:
            given = {
                name: gradient if _is_there(gradient, parameters[name]) else as_gradient(gradient, parameters[name])
                for name, gradient in gradients.items()
            }
            copies = stand_in(state, [parameters[name] for name in given])
            state.spare_iterators()
            give(parameters, given)
            if not hooks:
                without_hooks(state)
            by_lists(optimizers)
            writes = _MirroredWrites([dtensors.part(parameters[name]) for name in given], copies)
            with writes:
                make_step(optimizers, as_found=as_found)
            changes = writes.changes({name: parameters[name] for name in given}, before)
        finally:
            if writes is not None:
                writes.restore()
            state.restore()
        if lost := state.unrestored():
            raise UsageError(f"a step changes {lost[0]}, which can't be restored: it can't be taken on trial")
        return changes


def followed_step(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    *,
    as_found: bool = True,
) -> tuple[Direction, bool]:
    """The direction of a step that is not on trial: the optimizers and the parameters stay as it leaves them.

    Args:
        optimizers: see `trial_step`.
        parameters: see `trial_step`; nobody else's.
        gradients: see `trial_step`; nobody else's.
        before: where the parameters are, elsewhere.
        as_found: see `trial_step`.
    """
    give(parameters, gradients)
    moved = {name: parameters[name] for name in gradients}
    writes = _MirroredWrites(list(map(dtensors.part, moved.values())), keeping=False)
    with writes:
        make_step(optimizers, as_found=as_found)
    return writes.changes(moved, {name: dtensors.part(x) for name, x in before.items()})


def make_step(optimizers: Sequence[Optimizer], *, as_found: bool = True) -> None:
    """Steps optimizers by the ``step`` of the object, or by that of its class."""
    for optimizer in optimizers:
        step: Any = optimizer.step if as_found else partial(type(optimizer).step, optimizer)
        step()


_SAME_BY_LISTS = frozenset({"SGD", "Adam", "AdamW", "Adamax", "RMSprop", "Adadelta", "Rprop"})
"""The rules of torch whose step is the same, to the bit, whether they work on lists or on one tensor after another."""


def by_lists(optimizers: Sequence[Optimizer]) -> None:
    """Lets rules of torch's own work on lists of tensors where they would take one tensor after another.

    Each operation is then noticed and mirrored once for all parameters, not once for each.
    """
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if name not in _SAME_BY_LISTS or type(optimizer) is not getattr(torch.optim, name):
            continue
        for group in optimizer.param_groups:
            # In half precision the results differ; a learning rate in a tensor is refused with lists.
            plain = all(type(p) in (Tensor, nn.Parameter) and p.dtype not in HALF for p in group["params"])
            special = (
                group.get("fused") or group["differentiable"] or any(isinstance(v, Tensor) for v in group.values())
            )
            if group["foreach"] is None and plain and not special:
                group["foreach"] = True


def stand_in(state: State, moving: Sequence[nn.Parameter]) -> list[Tensor]:
    """Until the state is restored, its tensors have copies of their data; returns these tensors.

    Frozen parameters without gradient need no copy, unless they are among the moving ones: no step moves them.
    """
    state.spare_iterators()
    frozen = {id(p) for p in state.instances(nn.Parameter) if not p.requires_grad and p.grad is None}
    return state.stand_in(excluded=frozen - set(map(id, moving)))


def as_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device, in its dtype and its order in memory: fused kernels take both to lie alike."""
    copy = gradient.detach().to(parameter.device, parameter.dtype, copy=True)
    if copy.layout == torch.strided and copy.stride() != parameter.stride():
        copy = torch.empty_like(parameter, requires_grad=False).copy_(copy)
    return copy


def give(parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]) -> None:
    """Puts gradients on parameters; the other parameters have none.

    A gradient that is a view of a flat buffer stays and gets the values: the rule may read the buffer.
    """
    for name, parameter in parameters.items():
        gradient, there = gradients.get(name), parameter.grad
        flat = there is not None and type(there) is Tensor and there.is_leaf and there._is_view()
        if gradient is None or gradient is there or not flat or gradient.layout != torch.strided:
            parameter.grad = gradient
        else:
            assert there is not None
            there.data.copy_(gradient)


def _is_there(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether a gradient is the parameter's own, without a graph: a rule that needs it would free it."""
    return gradient is parameter.grad and gradient.grad_fn is None


class _MirroredWrites(WatchedWrites):  # type: ignore[no-untyped-call]
    """Carries out each operation that writes to a parameter in float64 as well, on a mirror of the parameter's memory.

    Args:
        parameters: those that are mirrored.
        copies: tensors whose memory needn't be restored.
        keeping: whether any needs to be.
    """

    def __init__(self, parameters: Sequence[Tensor], copies: Sequence[Tensor] = (), *, keeping: bool = True) -> None:
        super().__init__()
        self._keeping = keeping
        self._made.update(memory for tensor in copies if (memory := memory_of(tensor)) is not None)
        self._mirrors: dict[int | None, _Mirror] = {}
        for parameter in parameters:
            if memory_of(parameter) not in self._mirrors:
                self._mirrors[memory_of(parameter)] = _Mirror(parameter)

    def _keep(self, tensor: Tensor) -> None:
        if self._keeping:
            super()._keep(tensor)

    def perform(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[Tensor]) -> Any:
        """Performs an operation, first in float64 where it writes to a parameter."""
        mirrored = [
            (mirror, tensor) for tensor in written if (mirror := self._mirrors.get(memory_of(tensor))) is not None
        ]
        followed = bool(mirrored) and self._follow(function, args, kwargs, set(map(id, written)))
        result = function(*args, **kwargs)
        for mirror, tensor in mirrored:
            mirror.writes += 1
            if not followed:
                mirror.take(tensor)
        return result

    def changes(self, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> tuple[Direction, bool]:
        """The change of the parameters, and whether it is a difference of rounded weights, on any rank.

        Args:
            parameters: the parameters, which may lie in parts on several ranks.
            before: where they were; this rank's parts.
        """
        wide, rounded = Direction(), False
        for name, parameter in parameters.items():
            now = dtensors.part(parameter)
            mirror = self._mirrors.get(memory_of(now))
            exact = mirror.place_of(now) if mirror is not None else None
            if mirror is None or exact is None or not mirror.explains(now, exact, before[name]):
                rounded, exact = True, now.to(torch.promote_types(now.dtype, accumulator(now)), copy=True)
            else:
                rounded |= mirror.rounded
            change = exact.sub_(before[name]).to(torch.promote_types(now.dtype, torch.float32))
            wide[name] = dtensors.from_parts(change, parameter)
        return wide, dtensors.on_any_rank(rounded, wide.values())

    def _follow(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: set[int]) -> bool:
        """Performs an operation on mirrors; returns whether that was possible."""
        # An operation that draws would draw again, and custom kernels may read a float64 tensor as another dtype.
        if function.namespace != "aten" or torch.Tag.nondeterministic_seeded in function.tags:
            return False
        names = [argument.name for argument in function._schema.arguments]
        try:
            for part, named in _in_parts(args, kwargs):
                function(
                    *(self._wide(name, value, written) for name, value in zip(names, part, strict=False)),
                    **{name: self._wide(name, value, written) for name, value in named.items()},
                )
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False
        return True

    def _wide(self, name: str, value: Any, written: set[int]) -> Any:
        if isinstance(value, list | tuple):
            return [self._wide(name, item, written) for item in value]
        if not isinstance(value, Tensor):
            return value
        mirror = self._mirrors.get(memory_of(value))
        place = mirror.place_of(value) if mirror is not None else None
        if place is not None:
            return place
        wide = value.is_floating_point() and name not in _NARROW
        dtype = torch.promote_types(value.dtype, accumulator(value)) if wide else value.dtype
        return value.detach().to(dtype, copy=id(value) in written)


def _in_parts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The arguments of an operation, and where it takes lists of tensors, those of parts of the lists.

    What is raised to float64 for one part is gone before the next: it stays in the processor's cache.
    """
    listed = args[0] if args and isinstance(args[0], list | tuple) else ()
    for start, end in _bounds(listed):
        part = partial(_part_of, slice(start, end), len(listed))
        yield [part(value) for value in args], {name: part(value) for name, value in kwargs.items()}


def _bounds(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    start = size = 0
    most = vectors.PIECE if all(tensor.device.type == "cpu" for tensor in tensors) else vectors.PIECE_ON_DEVICE
    for index, tensor in enumerate(tensors):
        if size and size + tensor.numel() > most:
            yield start, index
            start, size = index, 0
        size += tensor.numel()
    yield start, len(tensors)


def _part_of(part: slice, length: int, value: Any) -> Any:
    return value[part] if isinstance(value, list | tuple) and len(value) == length else value


_NARROW = frozenset({"lr", "state_steps", "grad_scale", "found_inf"})
"""Arguments of fused kernels whose dtype doesn't depend on that of the parameters."""


class _Mirror:
    """The memory of a parameter, in float64.

    Attributes:
        writes: how many operations wrote to it.
        rounded: whether it took rounded results.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.writes, self.rounded = 0, False
        self._dtype, self._memory = (
            parameter.dtype,
            parameter.untyped_storage(),
        )  # kept, so that no other gets its address
        self._narrow = torch.empty(0, dtype=parameter.dtype, device=parameter.device).set_(self._memory)
        self._wide = self._narrow.to(torch.promote_types(parameter.dtype, accumulator(parameter)), copy=True)

    def place_of(self, tensor: Tensor) -> Tensor | None:
        """The mirror of a tensor in the memory; ``None`` for a tensor that reads it as numbers of another type."""
        if tensor.dtype != self._dtype:
            return None
        return self._wide.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def take(self, tensor: Tensor) -> None:
        """Copies a tensor in the memory, to which an operation that doesn't run on mirrors has written."""
        self.rounded = True
        place = self.place_of(tensor)
        if place is not None:
            place.copy_(tensor)
        else:
            self._wide.copy_(self._narrow)

    def explains(self, now: Tensor, exact: Tensor, before: Tensor) -> bool:
        """Whether rounding, once at each write, explains the difference of the memory from its mirror."""
        limits, dtype = torch.finfo(now.dtype), torch.promote_types(now.dtype, torch.float32)
        missed = torch.linalg.vector_norm(exact - now)
        # The norms in between are at most the sum of both; below `tiny`, floating-point numbers are equally spaced.
        size = torch.linalg.vector_norm(before, dtype=dtype) + torch.linalg.vector_norm(now, dtype=dtype)
        return not missed > self.writes * limits.eps * (size + limits.tiny * now.numel() ** 0.5)
