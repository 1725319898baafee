"""Makes a user's model measurable, with all that its loss reaches, and leaves everything exactly as it was.

Second derivatives need a deterministic, twice differentiable function in enough precision. A model in training isn't
one. These things change while a model is measured, and are restored (switches of libraries: see `switches`):

- Everything that the loss leads to. A loss calls more than its model. One walk (`State`) finds modules, tensors,
  counters, lists and generators of random numbers, in closures, defaults, attributes and containers, and the globals
  that a function of the user's names. All modules are made measurable as the model is. A module that no walk found (a
  teacher that is imported inside the loss) is taken in when it is called. Memory that no name leads to is copied just
  before it is first written to.
- State. Each evaluation starts from the same state, counters included. Otherwise a loss with a queue, a running mean,
  or a counter that changes it at each seventh call would be another function at some points. Iterators are copied, or
  refuse to be read. A loss that writes to a parameter is refused. Tensors of a batch are copied.
- Random numbers. Each evaluation of a micro-batch starts from its own fixed seed, so that dropout that is left on is a
  fixed mask. The global random states are restored at the end: the user's next batch is the same.
- Modes. The ``training`` flags are cleared and restored module by module, not by ``eval()``, which modules override.
  A frozen batch norm in a training model stays frozen.
- Precision. Half precision is raised to float32: second derivatives in half precision are mostly rounding. Data of
  another dtype makes autograd forget the node that gathers a parameter's gradient, and with it the hooks of
  `DistributedDataParallel`, whose processes then drift apart without an error. Where there may be hooks, another
  parameter stands in.
- Memory. Buffers are copied, since modules write to them. Weights of an embedding with ``max_norm`` are copied too: it
  rescales them when it is called. Tensors that are views of a parameter move with it.
- Hooks. Gradients and hooks of parameters and backward hooks of modules are removed: they run in `autograd.grad` too.
- Communication. The module inside a `DistributedDataParallel` is called: the wrapper would wait for other processes.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import _disable_current_modes

from stepscope.errors import UsageError
from stepscope.objective import dtensors, switches
from stepscope.objective.randomness import random_state, random_states
from stepscope.objective.state import State
from stepscope.objective.state_kinds import Place, RandomGenerator
from stepscope.objective.switches import eager, gradients_enabled
from stepscope.objective.writes import WatchedWrites, memory_of

HALF = (torch.float16, torch.bfloat16)

Output = TypeVar("Output")


def measured_dtype(own: torch.dtype, chosen: torch.dtype | None) -> torch.dtype:
    """The dtype that a floating-point tensor is measured in: `chosen`, or its own with half raised to float32."""
    if chosen is not None:
        return chosen
    return torch.float32 if own in HALF else own


class Measurable:
    """A model as a deterministic and twice differentiable function, with everything that its loss reaches.

    Use `measurable` to get one. Each evaluation starts from the same state: modules, objects that the loss holds and
    memory of any tensor are reset before each evaluation, and restored at the end.

    Attributes:
        stand_ins: ``{id of a parameter: parameter in its place}``, for parameters that are measured in another dtype
            and may have hooks of others on the nodes that gather their gradients.
        draws: whether an evaluation so far has drawn random numbers.
        compiled: whether compiled code is evaluated compiled.
        eps: the relative rounding of the coarsest type that evaluations so far have computed in.
    """

    def __init__(
        self,
        model: nn.Module,
        roots: Mapping[str, Any],
        dtype: torch.dtype | None,
        as_trained: bool = False,
        spared: Callable[[], set[int]] | None = None,
    ) -> None:
        self.stand_ins: dict[int, nn.Parameter] = {}
        self.draws = False
        self.eps = 0.0
        self._model = model
        self._dtype = dtype
        self._spared = spared
        self._state = State(roots, through=(Optimizer, LRScheduler))
        # A teacher in half precision beside a model in float32 stays in half precision: its loss expects that.
        self._raises = not as_trained and (dtype is not None or any(p.dtype in HALF for p in model.parameters()))
        self.compiled = as_trained and is_compiled(self._state)
        self._modules: dict[int, nn.Module] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._passing: list[weakref.ref[nn.Module]] = []
        self._hooks: list[tuple[nn.Parameter, Any]] = []
        self._known: set[int] = set()
        self._may_write: set[int] = set()
        self._aliases: dict[int, list[Tensor]] | None = None
        self._watched: set[Hashable] = set()
        self._writes: list[WatchedWrites] = []
        self._moved: list[Place] = []

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that the loss is known to reach, the model's own among them."""
        return list(self._modules.values())

    def prepare(self) -> None:
        """Everything that is reached becomes measurable."""
        if self._raises:
            self._raise_tensors()
        self._take_in(self._state.modules)

    def aliases_of(self, parameter: nn.Parameter) -> list[Tensor]:
        """Other tensors that lie in a parameter's memory, such as an attribute that is a view of it."""
        if self._aliases is None:
            own = [p for p in self._model.parameters() if p.requires_grad]
            ids = set(map(id, own))
            by_memory: dict[int | None, list[Tensor]] = {}
            for tensor in self._state.exchangeable():
                if id(tensor) not in ids:
                    by_memory.setdefault(memory_of(tensor), []).append(tensor)
            self._aliases = {id(p): [t for t in by_memory.get(memory_of(p), []) if _lies_within(t, p)] for p in own}
        return self._aliases.get(id(parameter), [])

    def evaluate(self, key: Hashable, call: Callable[[], Output]) -> Output:
        """The result of a call, from the state that all evaluations start from.

        Args:
            key: the evaluated micro-batch. Its first evaluation is watched: it may write to memory that no walk found.
            call: the evaluation.

        Raises:
            UsageError: it writes to a parameter.
        """
        self._reset()
        if key in self._watched:
            return call()
        if not self.compiled:
            return self._watch(key, call)
        # Compiled code can't be watched, and a hook that notices modules would have it compiled again.
        with eager(), self.noticing():
            self._watch(key, call)
        self._reset()
        return call()

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Inside, a module that no walk found is taken in when it is called."""
        handle = register_module_forward_pre_hook(self._meet)
        try:
            yield
        finally:
            handle.remove()

    def _watch(self, key: Hashable, call: Callable[[], Output]) -> Output:
        """The first evaluation of a micro-batch."""
        writes, before = WatchedWrites(self._spared() if self._spared is not None else ()), random_states()
        self._writes.append(writes)
        try:
            with writes:
                result = call()
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception:
            if self._spared is not None:
                raise  # other ranks wouldn't evaluate it again
            # Some operations don't run while they are watched (`torch.cond`). Any other error is raised again here.
            self._note_moved()
            self._reset()
            result = call()
        finally:
            self._note_moved()
        self._watched.add(key)
        self.eps = max(self.eps, *(torch.finfo(dtype).eps for dtype in writes.dtypes if dtype.is_floating_point), 0.0)
        self.draws |= before != random_states() or any(isinstance(place, RandomGenerator) for place in self._moved)
        self._refuse_written(writes)
        self._refuse_originals(result)
        return result

    def restore(self) -> list[str]:
        """Restores everything. Returns the paths of all that was written to unnoticed, and couldn't be restored."""
        self._reset()
        unnoticed = [path for path, tensor in self._state.written().items() if id(tensor) not in self._may_write]
        # The mode that was noted first for a module is its own.
        for module, training in reversed(self._modes):
            _set_mode(module, training)
        for reference in self._passing:
            if (passing := reference()) is not None:
                _set_mode(passing, True)
        self._state.restore()
        for parameter, hooks in self._hooks:
            parameter._backward_hooks = hooks
        return unnoticed + self._state.unrestored()

    def _note_moved(self) -> None:
        self._moved += [place for place in self._state.changed() if place not in self._moved]

    def _reset(self) -> None:
        for writes in self._writes:
            writes.restore()
        for place in self._moved:
            place.reset()

    def _meet(self, module: nn.Module, _: Any) -> None:
        """Called before each call of a module: one that no walk found becomes measurable before it changes anything."""
        if id(module) in self._modules:
            return
        if type(module).__module__.startswith("torch.nn.") and _is_empty(module):
            # A loss or a dropout, perhaps created for this call alone: its mode is all that it has.
            if module.training:
                self._passing.append(weakref.ref(module))
                _set_mode(module, False)
            return
        with _disable_current_modes():
            name, known = type(module).__name__, len(self._state)
            self._take_in({name: module} | self._state.add({name: module}), known)

    def _take_in(self, modules: Mapping[str, nn.Module], known: int = 0) -> None:
        """Makes modules measurable, and remembers how they were.

        Args:
            modules: by path; those that are known already are left alone.
            known: how many places of the state were known before these modules.
        """
        new = {path: module for path, module in modules.items() if id(module) not in self._modules}
        self._modules |= {id(module): module for module in new.values()}
        self._modes += [(module, module.training) for module in new.values()]
        substitutes: dict[int, Any] = {}
        for module in new.values():
            _set_mode(module, False)
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                # A backward hook can change the gradient that is measured.
                if module.__dict__.get(name):
                    module.__dict__[name] = OrderedDict()
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in self._known:
                    self._parameter(parameter, module, substitutes)
            for buffer in module._buffers.values():
                # A module may write into its buffers. A buffer that several modules share stays shared.
                if buffer is not None and id(buffer) not in substitutes:
                    substitutes[id(buffer)] = self._as_measured(buffer.detach(), copy=True)
        if substitutes:
            self._state.replace(substitutes)
        self._state.spare_iterators()
        self._state.enter(0 if substitutes else known)

    def _parameter(self, parameter: nn.Parameter, module: nn.Module, substitutes: dict[int, Any]) -> None:
        """Removes a parameter's gradient and hooks, and gives its data the measured dtype.

        Data of another dtype makes autograd forget the node that gathers the gradient, and the hooks on that node by
        which `DistributedDataParallel` synchronizes. Where there may be such hooks, another parameter takes its place.
        """
        self._known.add(id(parameter))
        self._hooks.append((parameter, parameter._backward_hooks))
        parameter.grad = None
        parameter._backward_hooks = None
        data = self._as_measured(parameter.detach())
        if data.dtype != parameter.dtype and not _is_gathered_elsewhere(parameter):
            parameter.data = data
        elif data.dtype != parameter.dtype:
            stand_in = nn.Parameter(data, parameter.requires_grad)
            stand_in.__dict__.update(vars(parameter))
            self.stand_ins[id(parameter)] = substitutes[id(parameter)] = stand_in
            self._known.add(id(stand_in))
        elif getattr(module, "max_norm", None) is not None:
            # Such an embedding rescales its weights when it is called.
            self._may_write.add(id(parameter))
            parameter.data = data.clone()

    def _raise_tensors(self) -> None:
        """Gives other tensors than parameters and buffers the measured dtype: a queue, weights of classes."""
        buffers = {id(buffer) for module in self._state.modules.values() for buffer in module._buffers.values()}
        kept = {id(t) for o in self._state.instances(Optimizer) for s in o.state.values() for t in dict(s).values()}
        for tensor in self._state.exchangeable():
            if id(tensor) not in buffers | kept and not isinstance(tensor, nn.Parameter):
                measured = self._as_measured(tensor.detach())
                if measured.dtype != tensor.dtype:
                    tensor.data = measured

    def _as_measured(self, data: Tensor, *, copy: bool = False) -> Tensor:
        if self._raises and data.is_floating_point():
            return data.to(measured_dtype(data.dtype, self._dtype), copy=copy)
        return data.clone() if copy else data

    def _refuse_originals(self, result: Any) -> None:
        """Refuses a loss that reaches a parameter that has a stand-in: its gradient would be lost in silence."""
        if not self.stand_ins or not isinstance(result, Tensor):
            return
        seen: set[Any] = set()
        nodes = [result.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self.stand_ins:
                raise UsageError(
                    "the loss holds parameters itself, and in a distributed training parameters in half precision are "
                    "replaced while measuring: let the loss take them from the model"
                )
            nodes += [below for below, _ in node.next_functions]

    def _refuse_written(self, writes: WatchedWrites) -> None:
        """Refuses a loss that writes to a parameter of the model; other memory is reset."""
        if not writes.written:
            return
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in self._may_write and writes.has_kept(dtensors.part(parameter)):
                raise UsageError(
                    f"{name} is written to when the loss is evaluated: a loss that changes the weights can't be "
                    "measured (RWKV: config.rescale_every = 0)"
                )


def is_compiled(state: State) -> bool:
    """Whether something that objects lead to was given to `torch.compile`."""
    return any("_torchdynamo_orig_callable" in vars(function) for function in state.instances(FunctionType)) or any(
        module._compiled_call_impl is not None for module in state.modules.values()
    )


def _is_empty(module: nn.Module) -> bool:
    held = (*module._parameters.values(), *module._buffers.values(), *module._modules.values())
    return all(value is None for value in held)  # a cross-entropy without weights of classes


def _set_mode(module: nn.Module, training: bool) -> None:
    """Sets the ``training`` flag alone: modules override `eval` and ``__setattr__``, to merge adapters for one."""
    if "training" in vars(module):
        vars(module)["training"] = training
    else:
        module.training = training


def _lies_within(tensor: Tensor, parameter: Tensor) -> bool:
    start, end = parameter.storage_offset(), parameter.storage_offset() + parameter.numel()
    return (
        tensor.dtype == parameter.dtype
        and start <= tensor.storage_offset()
        and tensor.storage_offset() + tensor.numel() <= end
    )


def _is_gathered_elsewhere(parameter: nn.Parameter) -> bool:
    """Whether somebody may have hooks on the node that gathers a parameter's gradient."""
    if not parameter.requires_grad:
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return True
    return sys.getrefcount(torch.autograd.graph.get_gradient_edge(parameter).node) > _UNSHARED


_UNSHARED = 1
"""References to a node that nobody else holds."""


@contextmanager
def measurable(
    model: nn.Module,
    roots: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    as_trained: bool = False,
    spared: Callable[[], set[int]] | None = None,
) -> Iterator[Measurable]:
    """Inside, `model` is a deterministic and twice differentiable function; outside, all is as before.

    Args:
        model: the module.
        roots: ``{name: object}``: model, loss function and the modules that it calls. ``None`` for the model alone.
        dtype: the floating-point type to measure in (see `measured_dtype`).
        as_trained: whether it keeps training's precision and kernels instead, and need not be differentiable.
        spared: of a sharded model, the memories (`memory_of`) that are no state though they are written to.

    Raises:
        UsageError: memory was written to that couldn't be restored.
    """
    unrestored: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(gradients_enabled())
        measured = Measurable(model, roots or {"model": model}, dtype, as_trained, spared)
        stack.callback(lambda: unrestored.extend(measured.restore()))
        # Entered after `restore`, so that it is left first.
        if not measured.compiled:
            stack.enter_context(measured.noticing())
        measured.prepare()
        devices = {"cpu", *(parameter.device.type for parameter in model.parameters())}
        stack.enter_context(switches.as_trained() if as_trained else switches.switched_off(measured.modules, devices))
        yield measured
    if unrestored:
        raise UsageError(
            f"measuring has written to {unrestored[0]}, which the first evaluation of the loss did not: it can't be "
            "restored; take the probe off"
        )
