"""Makes a user's model measurable, with all that its loss reaches, and leaves everything exactly as it was found.

Second derivatives need a deterministic, twice differentiable function in enough precision; a model in training is none
of that. What changes while a model is measured, and why:

- What the loss leads to. One walk (`State`) finds modules, tensors, counters, lists and generators of random numbers,
  in closures, defaults, attributes and containers, and the globals that a function of the user's names: a loss calls
  more than its model. All modules are made measurable as the model is. A module that no walk found (a teacher that is
  imported inside the loss) is taken in when it is called; memory that no name leads to is copied just before it is
  first written to.
- State. Each evaluation starts from the state that was found, counters included: a loss with a queue, a running mean,
  or a counter that changes it at each seventh call would otherwise be another function at some points. Iterators are
  copied, or refuse to be read. A loss that writes to a parameter is refused. Tensors of a batch are copied.
- Random numbers. Each evaluation of a micro-batch starts from its own fixed seed, so that dropout that is left on is a
  fixed mask. The global random states are restored at the end: the user's next batch is the same.
- Modes. The ``training`` flags are cleared and restored module by module, not by ``eval()``, which modules override.
  A frozen batch norm in a training model stays one.
- Precision. Half precision is raised to float32 and autocast is off: second derivatives in half precision are mostly
  rounding. Exchanging ``parameter.data`` for another dtype makes autograd forget the node that gathers the gradient,
  and with it the hooks of `DistributedDataParallel`, whose processes then drift apart without an error: where there may
  be hooks, another parameter stands in.
- Memory. Buffers are copied, since modules write to them; so are weights of an embedding with ``max_norm``, which
  rescales them when it is called. Tensors that are views of a parameter move with it.
- Operations without a second derivative. Attention uses the math kernel, compiled modules run eagerly, cuDNN is off
  for recurrent layers, reentrant checkpoints call their function directly. Of a `DistributedDataParallel` the module
  inside is called, since the wrapper waits for the other processes.
- Hooks and caches. Gradients and hooks of parameters and backward hooks of modules are taken off: they run in
  `autograd.grad` too. The fast path of torch's transformer layers is off, since it computes another function without
  gradients; so is the cache of `parametrize.cached()`, which holds the weight of another point.
"""

from __future__ import annotations

import random
import sys
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import _disable_current_modes

from stepscope.errors import UsageError
from stepscope.objective.places import Place, RandomGenerator
from stepscope.objective.state import State
from stepscope.objective.writes import WatchedWrites, memory_of

HALF = (torch.float16, torch.bfloat16)

Output = TypeVar("Output")


def measured_dtype(found: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype that a floating-point tensor is measured in: `wanted`, or its own with half raised to float32."""
    if wanted is not None:
        return wanted
    return torch.float32 if found in HALF else found


class Measurable:
    """A model as a deterministic and twice differentiable function, with everything that its loss reaches.

    Made by `measurable`. Each evaluation starts from the same state: what one of them changes in modules, in what the
    loss holds, in memory of any tensor, is reset before the next and restored at the end.

    Attributes:
        stand_ins: ``{id of a parameter: parameter in its place}``, of those that are measured in another dtype and
            whose gradients are gathered by others' hooks.
        draws: whether an evaluation so far has drawn random numbers.
    """

    def __init__(self, model: nn.Module, roots: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        self.stand_ins: dict[int, nn.Parameter] = {}
        self.draws = False
        self._model = model
        self._dtype = dtype
        self._state = State(roots, through=(Optimizer, LRScheduler))
        # A teacher in half precision beside a model that isn't stays what the loss expects it to be.
        self._raises = dtype is not None or any(p.dtype in HALF for p in model.parameters())
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
        """What `call` gives, from the state that all evaluations start from.

        Args:
            key: what is evaluated; its first evaluation is watched, for what it reaches beside what a walk has found.
            call: evaluates.

        Raises:
            UsageError: it writes to a parameter.
        """
        self._reset()
        if key in self._watched:
            return call()
        writes, before = WatchedWrites(), _drawn()
        self._writes.append(writes)
        try:
            with writes:
                result = call()
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception:
            # Some operations don't run while they are watched (`torch.cond`); what is wrong otherwise is wrong again.
            self._note_moved()
            self._reset()
            result = call()
        finally:
            self._note_moved()
        self._watched.add(key)
        self.draws |= before != _drawn() or any(isinstance(place, RandomGenerator) for place in self._moved)
        self._refuse_written(writes)
        self._refuse_originals(result)
        return result

    def restore(self) -> list[str]:
        """Leaves everything as it was found. Gives what was written to unnoticed, and couldn't be restored."""
        self._reset()
        moved = [path for path, tensor in self._state.written().items() if id(tensor) not in self._may_write]
        # The first that is known of a module is what it was.
        for module, training in reversed(self._modes):
            _set_mode(module, training)
        for reference in self._passing:
            if (passing := reference()) is not None:
                _set_mode(passing, True)
        self._state.restore()
        for parameter, hooks in self._hooks:
            parameter._backward_hooks = hooks
        return moved + self._state.unrestored()

    def _note_moved(self) -> None:
        self._moved += [place for place in self._state.changed() if place not in self._moved]

    def _reset(self) -> None:
        for writes in self._writes:
            writes.restore()
        for place in self._moved:
            place.reset()

    def met(self, module: nn.Module, _: Any) -> None:
        """A module is about to be called: one that no walk has found is taken in before it changes anything."""
        if id(module) in self._modules:
            return
        if type(module).__module__.startswith("torch.nn.") and not _holds_anything(module):
            # A loss or a dropout, which may have been made for this call alone: it has a mode and no more.
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
            known: how many places of the state were known before they were found.
        """
        new = {path: module for path, module in modules.items() if id(module) not in self._modules}
        self._modules |= {id(module): module for module in new.values()}
        self._modes += [(module, module.training) for module in new.values()]
        substitutes: dict[int, Any] = {}
        for module in new.values():
            # Not by `eval()`: modules override it, to merge adapters into weights for one.
            _set_mode(module, False)
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                # A backward hook can change the gradient that is measured.
                if module.__dict__.get(name):
                    module.__dict__[name] = OrderedDict()
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in self._known:
                    self._parameter(parameter, module, substitutes)
            for buffer in module._buffers.values():
                # A module may write into its buffers; one that several share stays shared.
                if buffer is not None and id(buffer) not in substitutes:
                    substitutes[id(buffer)] = self._as_measured(buffer.detach(), copy=True)
        if substitutes:
            self._state.replace(substitutes)
        self._state.spare_iterators()
        self._state.enter(0 if substitutes else known)

    def _parameter(self, parameter: nn.Parameter, module: nn.Module, substitutes: dict[int, Any]) -> None:
        """Its gradient and hooks are taken off, and its data is of the measured dtype.

        Another dtype there makes autograd forget the node that gathers its gradient, and with it the hooks by which
        `DistributedDataParallel` synchronizes: where there may be some, another parameter takes its place.
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
        """Tensors that are neither parameters nor buffers, such as a queue or weights of classes."""
        buffers = {id(buffer) for module in self._state.modules.values() for buffer in module._buffers.values()}
        kept = {id(t) for o in self._state.found(Optimizer) for s in o.state.values() for t in dict(s).values()}
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
        """Refuses a loss that reaches a parameter past the one in its place: its gradient would be lost in silence."""
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
                    "the loss holds parameters where others can't take their places, as half precision in a "
                    "distributed training needs: let it take them from the model"
                )
            nodes += [below for below, _ in node.next_functions]

    def _refuse_written(self, writes: WatchedWrites) -> None:
        """Refuses a loss that writes to a parameter of the model; what it writes elsewhere is reset."""
        if not writes.written:
            return
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in self._may_write and writes.has_kept(parameter):
                raise UsageError(
                    f"{name} is written to when the loss is evaluated: a loss that changes the weights can't be "
                    "measured (RWKV: config.rescale_every = 0)"
                )


def _holds_anything(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers or module._modules)


def _set_mode(module: nn.Module, training: bool) -> None:
    """Not by `eval()`: modules override it, to merge adapters into weights for one. Nor by their ``__setattr__``."""
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


def _drawn() -> tuple[Any, ...]:
    """The states of the global generators, which tell whether numbers were drawn."""
    numpy: Any = sys.modules.get("numpy")
    device = torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    if numpy is None:
        return torch.get_rng_state().tolist(), random.getstate(), device
    legacy = numpy.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), legacy[1].tobytes(), *legacy[2:], device


@contextmanager
def measurable(
    model: nn.Module, roots: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> Iterator[Measurable]:
    """Inside, `model` is a deterministic and twice differentiable function; outside, all is as it was found.

    Args:
        model: the module.
        roots: ``{name: object}`` of all that is evaluated: model, loss function, modules that it calls. ``None``
            for the model alone.
        dtype: the floating-point type to measure in (see `measured_dtype`).

    Raises:
        UsageError: something was written to that couldn't be restored.
    """
    with ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(_without_fast_path())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        measured = Measurable(model, roots or {"model": model}, dtype)
        moved: list[str] = []
        stack.callback(lambda: moved.extend(measured.restore()))
        # Met last, so that it is taken off first.
        stack.callback(register_module_forward_pre_hook(measured.met).remove)
        measured.prepare()
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_autocast_off())
        stack.enter_context(_reentrant_checkpointing_off())
        # Backward hooks on all modules can change the gradient that is measured.
        stack.enter_context(emptied(nn.modules.module, "_global_backward_hooks", "_global_backward_pre_hooks"))
        stack.enter_context(_parametrizations_uncached())
        # Fused attention kernels have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in measured.modules):
            # cuDNN's recurrent layers have no second derivative, and in evaluation mode not even a first one.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            # A compiled module would tell of the hook above.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
            # Compiled modules have no second derivative either.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield measured
    if moved:
        raise UsageError(
            f"measuring has written to {moved[0]}, which the first evaluation of the loss did not: it can't be "
            "restored; take the probe off"
        )


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
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # The same for the CPU alone; the other would note the call for a CUDA that may come, with its whole stack.
        torch.default_generator.manual_seed(seed)
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


@contextmanager
def emptied(module: Any, *names: str) -> Iterator[None]:
    """Inside, dictionaries of a module, in which it registers hooks on all objects of a kind, are empty."""
    registries = [found for name in names if isinstance(found := getattr(module, name, None), dict)]
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
