"""Update directions of any optimizer: what it would add to the parameters at its next step.

Pan and Li (appendix B.3) call them pseudo-update steps: many optimizers see the gradients of one run and keep their own
state; none but the training optimizer moves the weights.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.errors import UsageError, said
from stepscope.interrupts import held
from stepscope.measurable import random_state
from stepscope.vectors import Direction

Factory = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
"""``parameters -> optimizer``, or several optimizers that share the parameters out between them."""

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class PseudoUpdates:
    """Optimizers that follow the gradients of one run on shared shadow parameters.

    Args:
        parameters: ``{name: parameter}`` of the model that is trained, such as `Objective.parameters`. They are read
            at each step, never written.
        optimizers: ``{label: factory}`` or ``{label: optimizer}``. A factory makes an optimizer from a list of
            parameters (or several optimizers, each for a part). A live optimizer of those parameters is
            forked with its state.

    Raises:
        UsageError: an optimizer has parameters of another model, or isn't an optimizer.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> updates = PseudoUpdates({"w": w}, {"sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5)})
        >>> updates.step({"w": torch.tensor([4.0, -2.0])}, capture=True)["sgd"]["w"].tolist(), w.tolist()
        ([-2.0, 1.0], [1.0, 2.0])
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizers: Mapping[str, Factory | Optimizer]) -> None:
        _check_named(parameters)
        if not isinstance(optimizers, Mapping):
            raise UsageError(f"optimizers is a {type(optimizers).__name__}: give {{label: optimizer or factory}}")
        self._parameters = dict(parameters)
        self._shadows = {name: nn.Parameter(p.detach().clone()) for name, p in self._parameters.items()}
        with random_state():
            self._optimizers = {label: self._adopt(label, made) for label, made in optimizers.items()}

    def peek(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Direction]:
        """What the optimizers would do of these gradients (see `next_update`); none of them takes the step.

        Args:
            gradients: as for `step`.

        Returns:
            ``{label: direction}``.
        """
        gradients = _checked(gradients, self._parameters)
        return {
            label: _captured(label, parts, self._shadows, self._parameters, gradients)
            for label, parts in self._optimizers.items()
        }

    def step(self, gradients: Mapping[str, Tensor | None], *, capture: bool = False) -> dict[str, Direction]:
        """Feeds each optimizer the gradients at the present parameters.

        Args:
            gradients: ``{name: gradient}``; a parameter without one has no gradient in this step.
            capture: whether to say what the optimizers would do (see `next_update`), which costs more.

        Returns:
            ``{label: direction}`` if `capture`, else empty. The parameters stay as they are.
        """
        directions = self.peek(gradients) if capture else {}
        gradients = _checked(gradients, self._parameters)
        with held(), random_state(), _without_global_hooks():
            for parts in self._optimizers.values():
                # Copied anew for each: a rule may write to its weights and, weight decay say, to its gradients.
                for name, shadow in self._shadows.items():
                    shadow.data.copy_(self._parameters[name].detach())
                    # A new tensor: a rule may keep it.
                    shadow.grad = gradients[name].detach().clone() if name in gradients else None
                for optimizer in parts:
                    optimizer.step()
        return directions

    def _adopt(self, label: str, made: Factory | Optimizer) -> list[Optimizer]:
        if isinstance(made, Optimizer):
            shadow_of = {id(p): self._shadows[name] for name, p in self._parameters.items()}
            _check_parameters(label, made, shadow_of)
            return [_fork(made, shadow_of, keep_hooks=False)]
        if not callable(made):
            raise UsageError(f"optimizer {label!r} is a {type(made).__name__}, neither a factory nor an optimizer")
        built = made(list(self._shadows.values()))
        parts = [built] if isinstance(built, Optimizer) else list(built)
        known = {id(shadow): shadow for shadow in self._shadows.values()}
        for part in parts:
            if not isinstance(part, Optimizer):
                raise UsageError(f"the factory of {label!r} gave a {type(part).__name__}, not a torch.optim.Optimizer")
            _check_parameters(label, part, known)
        return parts


def next_update(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor | None] | None = None
) -> Direction:
    """What a live optimizer would add to the parameters at its next step, which it does not take.

    The step is taken in float64 by a fork of the optimizer on copies of the parameters, and the copies are compared: a
    difference of two float32 weights would keep no more digits of the update than the weight's own rounding leaves (at
    a learning rate of 1e-5 half of the direction can be rounding). The relative error is about
    ``10⁻¹⁶ ‖x‖/‖d‖``. Neither the optimizer nor the parameters change.

    Args:
        optimizer: any `torch.optim.Optimizer`, at any point of its life. Its own step hooks are not run.
        parameters: ``{name: parameter}``: those that the direction is wanted of. Others that it holds take part in the
            step with the gradients that are on them.
        gradients: ``{name: gradient}`` that the step would see; a parameter without one is left out. ``None`` takes
            what ``backward`` left on the parameters.

    Returns:
        ``d`` with the parameters' dtype, for the parameters that the optimizer holds and that have a gradient; where
        several optimizers share the parameters out, their updates together are that of a step.

    Raises:
        UsageError: the optimizer holds none of the parameters, needs a closure, can't be copied or writes to its
            parameters past ``param_groups``, or there is no gradient.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0])); adam = torch.optim.Adam([w], lr=1e-3)
        >>> round(next_update(adam, {"w": w}, {"w": torch.tensor([9.0])})["w"].item(), 6)
        -0.001
    """
    _check_named(parameters)
    if gradients is None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    checked = _checked(gradients, parameters)
    parameters = {name: p for name, p in parameters.items() if id(p) in ids}
    if not parameters:
        raise UsageError(f"{type(optimizer).__name__} holds none of the parameters: is it another model's?")
    checked = {name: gradient for name, gradient in checked.items() if name in parameters}
    if not checked:
        raise UsageError("no parameter has a gradient: call this after backward() and before step()")
    return _captured(type(optimizer).__name__, [optimizer], parameters, parameters, checked, keep_hooks=False)


def _check_named(parameters: Any) -> None:
    if not isinstance(parameters, Mapping):
        raise UsageError(
            f"parameters is a {type(parameters).__name__}: give {{name: parameter}}, dict(model.named_parameters())"
        )


def _checked(gradients: Mapping[str, Tensor | None], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that are there, each of a parameter's shape; ``None`` stands for none."""
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        if name not in parameters:
            raise UsageError(f"a gradient names {name!r}, which is not among the parameters")
        if gradient.shape != parameters[name].shape:
            shapes = f"{tuple(gradient.shape)}, the parameter {tuple(parameters[name].shape)}"
            raise UsageError(f"the gradient of {name} has shape {shapes}")
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _captured(
    label: str,
    parts: Sequence[Optimizer],
    owned: Mapping[str, nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    *,
    keep_hooks: bool = True,
) -> Direction:
    try:
        return _stepped(parts, owned, parameters, gradients, torch.float64, keep_hooks)
    except UsageError:
        raise
    except Exception as error:
        if "closure" in str(error):
            raise UsageError(f"optimizer {label!r} needs a closure: its update can't be known in advance") from error
        if any(sign in str(error) for sign in ("does not require grad", "grad_fn", "create_graph")):
            raise UsageError(
                f"optimizer {label!r} needs gradients with their graph (create_graph=True), which copies of them don't "
                "have: its update can't be known in advance"
            ) from error
        warnings.warn(
            f"optimizer {label!r} does not run in float64 ({error}): its direction is a difference of rounded weights",
            RuntimeWarning,
            stacklevel=4,
        )
        return _stepped(parts, owned, parameters, gradients, None, keep_hooks)


def _stepped(
    parts: Sequence[Optimizer],
    owned: Mapping[str, nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    keep_hooks: bool,
) -> Direction:
    """Steps forks of `parts`, whose parameters are `owned`, from the values of `parameters`: the change in each."""
    twins = {name: _twin(parameter, gradients.get(name), dtype) for name, parameter in parameters.items()}
    twin_of = {id(owned[name]): twin for name, twin in twins.items()}
    for part in parts:
        # A rule moves also what isn't asked for: a frozen parameter on which a gradient is left, or another model's.
        rest = (p for group in part.param_groups for p in group["params"] if id(p) not in twin_of)
        twin_of |= {id(p): _twin(p, p.grad, dtype) for p in rest if p.grad is not None or p.requires_grad}
        with held(), random_state(), _without_global_hooks(), _untouched(parameters):
            fork = _fork(part, twin_of, keep_hooks=keep_hooks)
            if dtype is not None:
                state = {key: _cast(state, dtype, scalar=_is_scalar(key)) for key, state in fork.state.items()}
                fork.state.update(state)
            fork.step()
    return {
        name: (twin.detach() - parameters[name].detach()).to(parameters[name].dtype)
        for name, twin in twins.items()
        if name in gradients
    }


def _twin(parameter: Tensor, gradient: Tensor | None, dtype: torch.dtype | None) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach().to(dtype or parameter.dtype, copy=True), parameter.requires_grad)
    if gradient is not None:
        twin.grad = gradient.detach().to(dtype or parameter.dtype, copy=True)
    return twin


@contextmanager
def _untouched(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """A rule may reach its parameters by ways that a fork shares (a function that holds them): it gets copies there.

    Raises:
        UsageError: it wrote to one.
    """
    here = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, data in here.items():
            parameters[name].data = data.clone()
        yield
        written = [name for name, data in here.items() if not _identical(parameters[name].data, data)]
    finally:
        for name, data in here.items():
            parameters[name].data = data
    if written:
        raise UsageError(
            f"the optimizer writes to {written[0]} past its param_groups (a function that holds it?): "
            "its update can't be known in advance"
        )


def _identical(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    """Hooks on every optimizer (`register_optimizer_step_pre_hook`) are for steps that are really made."""
    registries = [
        found
        for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
        if isinstance(found := getattr(sys.modules[Optimizer.__module__], name, None), dict)
    ]
    kept = [dict(registry) for registry in registries]
    try:
        for registry in registries:
            registry.clear()
        yield
    finally:
        for registry, hooks in zip(registries, kept, strict=True):
            registry.update(hooks)


def _fork(optimizer: Optimizer, replacement: Mapping[int, nn.Parameter], *, keep_hooks: bool) -> Optimizer:
    """An optimizer of the same class, settings and state on other parameters.

    `copy.deepcopy` of an optimizer would copy its parameters, and whatever its hooks are bound to.
    """
    memo: dict[int, Any] = dict(replacement)
    # No step moves a parameter without a gradient, so a frozen one needn't be copied.
    frozen = (p for group in optimizer.param_groups for p in group["params"] if not p.requires_grad)
    memo.update({id(p): p for p in frozen if id(p) not in memo})
    fork: Optimizer = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = fork
    settings = dict(optimizer.__dict__)
    # Learning rate schedulers put a `step` of their own on the object, which steps the original.
    settings.pop("step", None)
    hooks = {name: settings.pop(name) for name in list(settings) if name.endswith("_hooks")}
    try:
        fork.__dict__.update(copy.deepcopy(settings, memo))
    except (TypeError, RuntimeError) as error:
        name = type(optimizer).__name__
        raise UsageError(f"{name} can't be copied ({said(error)}): its update can't be known in advance") from error
    for name, registered in hooks.items():
        kept = keep_hooks and name in _HOOKS
        fork.__dict__[name] = OrderedDict(registered) if kept else OrderedDict()
    return fork


def _is_scalar(parameter: Any) -> bool:
    return isinstance(parameter, Tensor) and parameter.dim() == 0


def _cast(state: Any, dtype: torch.dtype, *, scalar: bool) -> Any:
    """State tensors in `dtype`; the step counter, and other scalars of parameters that are none, as they are."""
    if isinstance(state, Tensor):
        return state.to(dtype) if state.is_floating_point() and (scalar or state.dim() > 0) else state
    if isinstance(state, dict):
        return {key: value if key == "step" else _cast(value, dtype, scalar=scalar) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_cast(value, dtype, scalar=scalar) for value in state)
    return state


def _check_parameters(label: str, optimizer: Optimizer, known: Mapping[int, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and id(parameter) not in known:
                raise UsageError(
                    f"optimizer {label!r} has a parameter of shape {tuple(parameter.shape)} that isn't a trainable "
                    "parameter of the model"
                )
