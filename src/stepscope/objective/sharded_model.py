"""A model whose parameters lie in parts on several ranks: by `fully_shard` (FSDP2), tensor parallelism, or both.

All ranks evaluate it together, each data rank on a micro-batch of its own; ranks of one data rank, as tensor
parallelism has them, bring the same. What differs from a model in one process, and is silently wrong otherwise:

- Parameters are moved in place, in this rank's parts, and copied back to the bit: FSDP gathers from memory that it
  knows, so other data in a parameter's place has no effect.
- FSDP keeps gathered weights from one forward pass to the next. They are freed (`reshard`) after each evaluation and
  each displacement, or the loss would be that of another point.
- FSDP divides a gradient by the number of data ranks, or by a factor that was set. The loss is multiplied by it.
- FSDP's mixed precision is off while something is differentiated: differences of gradients would be rounding.
- The memory that FSDP gathers into isn't state: it is empty in between.
- Gradients are accumulated by `backward`, since `autograd.grad` knows no parts; what is on the parameters is put aside,
  and hooks on accumulated gradients (an optimizer in the backward pass) don't run.
- A rank that fails in a forward or backward pass leaves the others waiting there. What ranks tell one another goes
  through a process group of its own, so that they can find out: the error is handled if all have it, in the same place.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective import dtensors, interrupts
from stepscope.objective.fsdp import (
    begin_anew,
    exchanged,
    fsdp_modules,
    groups_of,
    in_full_precision,
    refuse_untried,
    refuse_waiting,
    state_of,
    without_forward_hooks,
)
from stepscope.objective.plain_model import AliasesOf, PlainModel
from stepscope.objective.process_group import Ranks, checksum, number_of
from stepscope.objective.vectors import Direction
from stepscope.objective.writes import memory_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ShardedModel:
    """How a sharded model is evaluated, moved and differentiated; see `sharded_model`.

    Attributes:
        ranks: all ranks; what ranks with the same micro-batches bring counts once.
        device: of this rank's parts.
        is_data_parallel: whether each rank has batches of its own, and could hold the whole model.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._modules = fsdp_modules(model)
        self._states = list({id(state): state for state in map(state_of, self._modules)}.values())
        self._groups = [group for state in self._states for group in groups_of(state)]
        self._check(model, parameters)
        self.device = next(iter(parameters.values())).device
        part, self._factor = self._data_rank()
        self.ranks = Ranks(_group_apart(self.device), self.device, part)
        self.is_data_parallel = all(group.mesh_info.mesh.size() == self.ranks.size for group in self._groups)
        self.is_data_parallel &= bool(self._groups)
        self._begun = False

    def rounds(
        self, own: Sequence[tuple[Any, float]], weighted: Sequence[tuple[Any, float]]
    ) -> tuple[list[tuple[Any, float]], list[float], list[float]]:
        """Rounds, in each of which all data ranks evaluate one micro-batch together.

        A rank with fewer micro-batches than others evaluates one of them again, which counts nothing.

        Args:
            own: this rank's micro-batches, with their weights in the pooled loss.
            weighted: those whose weight isn't 0.

        Returns:
            What this rank evaluates, with the weights of the rounds; these weights; and this rank's part of each.

        Raises:
            UsageError: a rank has no micro-batch at all.
        """
        count = int(max(self.ranks.concatenated([float(len(weighted))])))
        if not all(self.ranks.concatenated([float(len(own))])):
            raise UsageError(
                "a rank has no batches, and a sharded model is evaluated by all ranks together: give each one, which "
                "may have the weight 0"
            )
        evaluated = [*weighted, *[((weighted or own)[0][0], 0.0)] * (count - len(weighted))]
        everyone = self.ranks.concatenated([weight for _, weight in evaluated])
        weights = [math.fsum(everyone[number::count]) for number in range(count)]
        shares = [weight / whole for (_, weight), whole in zip(evaluated, weights, strict=True)]
        return [(batch, whole) for (batch, _), whole in zip(evaluated, weights, strict=True)], weights, shares

    def of_rounds(self, values: Sequence[float]) -> list[float]:
        """The sum over data ranks of numbers, as many on each; the same on all ranks, to the bit."""
        everyone = self.ranks.concatenated(values)
        return [math.fsum(everyone[number :: len(values)]) for number in range(len(values))]

    @contextmanager
    def measuring(self, *, as_trained: bool) -> Iterator[None]:
        """Inside, the parameters are sharded between evaluations, and losses can be differentiated.

        Args:
            as_trained: whether FSDP's mixed precision stays as it is.
        """
        with ExitStack() as stack:
            with self.ranks.agreed("gradients that wait"):
                for group in self._groups:
                    refuse_waiting(group)
            self._begin()
            stack.callback(self.reshard)
            for state in self._states:
                stack.enter_context(exchanged(state._state_ctx, is_last_backward=True))
                if not as_trained:
                    stack.enter_context(in_full_precision(state))
            for group in self._groups:
                stack.enter_context(exchanged(group, reduce_grads=True, all_reduce_grads=True))
            if not as_trained:
                self._gather_once()
            yield

    def _begin(self) -> None:
        """FSDP begins as it does in the first forward pass, and allocates what it gathers into."""
        self.reshard()
        if not self._begun:
            inside: set[int] = set()
            for module in self._modules:
                if id(module) not in inside and state_of(module)._is_root is None:
                    state_of(module)._lazy_init()
                inside |= {id(inner) for inner in module.modules()}
            self._gather_once()
            self._begun = True

    def _gather_once(self) -> None:
        for module in self._modules:
            if any(
                not parameter.all_gather_outputs for g in groups_of(state_of(module)) for parameter in g.fsdp_params
            ):
                module.unshard()
                module.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each rank holds all of the model, which is evaluated without FSDP. Only in `measuring`."""
        with ExitStack() as stack:
            stack.callback(self.reshard)
            for module in self._modules:
                module.unshard()
            for state in self._states:
                stack.enter_context(without_forward_hooks(state))
            yield

    def check_copies(self, what: str, tensors: Mapping[str, Tensor], remedy: str) -> None:
        """Refuses tensors of which ranks that have the same part have other numbers.

        Args:
            what: they are.
            tensors: the same names on all ranks.
            remedy: what to do where they differ.

        Raises:
            UsageError: they differ, on all ranks.
        """
        by_place: dict[Any, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if dtensors.holders(tensor) > 1:
                by_place.setdefault(getattr(tensor, "placements", None), {})[name] = tensor
        for held in by_place.values():
            place = number_of(dtensors.place_of(next(iter(held.values()))))
            parts = {name: dtensors.part(tensor) for name, tensor in held.items()}
            self.ranks.check_same(what, checksum(parts), remedy, among=place)

    def memories(self) -> set[int]:
        """The memories that FSDP gathers into."""
        kept = (p.all_gather_outputs for group in self._groups for p in group.fsdp_params)
        return {memory for tensors in kept for tensor in tensors if (memory := memory_of(tensor)) is not None}

    def reshard(self) -> None:
        """Frees all gathered weights: what is evaluated next gathers them again."""
        for module in self._modules:
            module.reshard()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation or a backward pass. FSDP starts from a clean state after it, even after an exception.

        Raises:
            OutOfStepError: this rank has failed, and others haven't, or elsewhere.
        """
        try:
            yield
        except BaseException as error:
            place = self._place(error)
            begin_anew(self._modules, self._states, self._groups)
            self.ranks.check_failed_alike(error, place)
            raise
        finally:
            self.reshard()
            for group in self._groups:
                group.comm_ctx.post_forward_order.clear()
                group._post_forward_indices.clear()

    def _place(self, error: BaseException) -> Any:
        """Where an error was raised: the lines of the program, and how far FSDP was."""
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        states = [str(owner._training_state) for owner in (*self._states, *self._groups)]
        passed = [len(group.comm_ctx.post_forward_order) for group in self._groups]
        return lines, states, passed

    def deliver(self) -> None:
        """Ctrl-C takes effect here, on all ranks that are about to evaluate together."""
        with self.ranks.agreed("an evaluation"):
            interrupts.deliver()

    def pooled(self, direction: Direction, parameters: Mapping[str, nn.Parameter]) -> Direction:
        """What `gradient` gives is the sum over ranks."""
        del parameters
        return direction

    @contextmanager
    def moved(
        self, parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], step: float, aliases_of: AliasesOf
    ) -> Iterator[None]:
        """Inside, parameters are ``x + step · direction``; outside ``x``, bit for bit, of which a copy is kept."""
        del aliases_of  # what shares their memory sees what is written there
        here = {name: dtensors.part(parameters[name]) for name in direction}
        kept = {name: x.clone() for name, x in here.items()}
        try:
            for name, x in here.items():
                _write(x, torch.add(x, dtensors.part(direction[name]).to(x.device), alpha=step))
            self.reshard()
            yield
        finally:
            for name, x in here.items():
                _write(x, kept[name])
            self.reshard()

    def gradient(
        self, loss: Tensor, parameters: Mapping[str, nn.Parameter], *, create_graph: bool = False
    ) -> Direction:
        """The gradient of the sum of all data ranks' `loss`; a parameter that none of them uses is left out."""
        assert not create_graph
        with torch.enable_grad(), self.evaluating():
            found: list[Tensor | None]
            if not self._groups:
                found = list(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
            else:
                with _without_gradients(parameters):
                    (loss * self._factor).backward()  # type: ignore[no-untyped-call]
                    found = [parameter.grad for parameter in parameters.values()]
        return {
            name: dtensors.placed_like(gradient.detach(), parameters[name])
            for name, gradient in zip(parameters, found, strict=True)
            if gradient is not None
        }

    def _data_rank(self) -> tuple[int, float]:
        """Which data rank this one belongs to, and what FSDP divides gradients by."""
        if not self._groups:
            return 0, 1.0  # of tensor parallelism alone, all ranks bring the same
        mesh = self._groups[0].mesh_info.mesh
        place = 0
        for coordinate, size in zip(mesh.get_coordinate(), mesh.shape, strict=True):
            place = place * size + coordinate
        return place, float(self._groups[0].gradient_divide_factor or mesh.size())

    def _check(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Refuses what isn't known to be right; see `sharded_model`."""
        spread: list[Any] = [p for p in parameters.values() if dtensors.is_spread(p)]
        if not dtensors.spans_all(spread):
            raise UsageError(
                "the parameters are spread over some of the ranks only (a pipeline?): a model is measured by all ranks "
                "of the default process group together"
            )
        if any(placement.is_partial() for p in spread for placement in p.placements):
            raise UsageError("a parameter lies in terms of a sum on several ranks (Partial): redistribute it")
        if any(type(dtensors.part(p)) is not Tensor for p in spread):
            raise UsageError("parameters lie in a tensor class of their own: sharded, they can't be measured")
        compiled = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in model.modules())
        if compiled:
            raise UsageError("a model that is sharded and compiled can't be measured: give the one that isn't compiled")
        if not self._groups:
            return
        if len(spread) < len(parameters):
            name = next(name for name, p in parameters.items() if not dtensors.is_spread(p))
            raise UsageError(f"{name} isn't sharded as the others are: its gradient is another on each rank")
        refuse_untried(self._groups)


def sharded_model(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> ShardedModel | None:
    """How a model is evaluated whose parameters are sharded; ``None`` where they aren't.

    Raises:
        UsageError: it is sharded in a way that isn't known to be measured right.
    """
    if not any(map(dtensors.is_spread, parameters.values())):
        return None
    try:
        return ShardedModel(model, parameters)
    except AttributeError as error:  # FSDP keeps nothing of this for others
        raise UsageError(f"how this version of torch shards a model isn't known here ({error})") from error


class GatheredModel(PlainModel):
    """A sharded model while each rank holds all of it; in `ShardedModel.whole`.

    Args:
        sharded: the model.
        parameters: its parameters, in parts.
    """

    def __init__(self, sharded: ShardedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(sharded.ranks)
        self._sharded, self._parts = sharded, parameters
        self.memories = sharded.memories

    def of_rounds(self, values: Sequence[float]) -> list[float]:
        """As of the sharded model."""
        return self._sharded.of_rounds(values)

    def pooled(self, direction: Direction, parameters: Mapping[str, nn.Parameter]) -> Direction:
        """The sum over ranks, in parts."""
        total = super().pooled(direction, parameters)
        return {name: dtensors.cut_like(tensor, self._parts[name]) for name, tensor in total.items()}


def model_of_ranks(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], process_group: ProcessGroup | None
) -> PlainModel | ShardedModel:
    """How ranks evaluate a model together: those of a group, or all of them where it is sharded.

    Raises:
        UsageError: see `sharded_model`; or a group of some ranks is given for a model that is sharded.
    """
    sharded = sharded_model(model, parameters)
    if sharded is None:
        return PlainModel(Ranks(process_group, next(iter(parameters.values())).device))
    if process_group is not None and process_group.size() != torch.distributed.get_world_size():
        raise UsageError("a sharded model is measured by all ranks: give no process_group")
    return sharded


_APART: WeakKeyDictionary[ProcessGroup, ProcessGroup] = WeakKeyDictionary()
"""By the default process group, the one of what ranks tell one another."""


def _group_apart(device: torch.device) -> ProcessGroup:
    """A process group of all ranks, in which nothing of a model's own is exchanged; with the time-out of theirs."""
    world: Any = torch.distributed.group.WORLD
    if world not in _APART:
        timeout = getattr(world._get_backend(device).options, "_timeout", None)
        _APART[world] = torch.distributed.new_group(timeout=timeout)
    return _APART[world]


@contextmanager
def _without_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, parameters have no gradients, and no hooks on those that come in."""
    kept = [(p, p.grad, p._post_accumulate_grad_hooks) for p in parameters.values()]
    try:
        for parameter, _, _ in kept:
            parameter.grad = parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        yield
    finally:
        for parameter, gradient, hooks in kept:
            parameter.grad, parameter._post_accumulate_grad_hooks = gradient, hooks


def _write(place: Tensor, content: Tensor) -> None:
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(place):  # type: ignore[attr-defined]
        place.copy_(content)
