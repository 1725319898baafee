"""Update directions of any optimizer: the change that its next step would make to the parameters.

Pan and Li (appendix B.3) call them pseudo-update steps: many optimizers see the gradients of one run and keep their own
state; none but the training optimizer moves the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import name_of, parts_of
from stepscope.directions.trial import (
    as_gradient,
    by_lists,
    followed_step,
    give,
    make_step,
    stand_in,
    state_of,
    trial_step,
    unnoticed,
    without_hooks,
)
from stepscope.errors import UsageError
from stepscope.objective import Direction, State, dtensors, random_state, vectors
from stepscope.objective.process_group import number_of

Factory = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
"""``parameters -> optimizer``, or several optimizers that share the parameters out between them."""


_NOTICEABLE = 0.01
"""The part of a direction's length that rounding of the weights may be, without a warning."""


class PseudoUpdates:
    """Shadow optimizers: they follow the gradients of a run that another optimizer drives.

    They share one set of shadow parameters. Each keeps its own state, and none moves the weights of the run.

    Args:
        parameters: ``{name: parameter}`` of the model that is trained, such as `Objective.parameters`. They are read
            at each step, never written.
        optimizers: ``{label: factory}`` or ``{label: optimizer}``. A factory makes an optimizer from a list of
            parameters (or several optimizers, each for some of them). A live optimizer of those parameters continues
            from its present state as a shadow of itself.

    Raises:
        UsageError: an optimizer has parameters of another model, or isn't an optimizer.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204,
        appendix B.3.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> updates = PseudoUpdates({"w": w}, {"sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5)})
        >>> updates.step({"w": torch.tensor([4.0, -2.0])}, capture=True)["sgd"]["w"].tolist(), w.tolist()
        ([-2.0, 1.0], [1.0, 2.0])
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizers: Mapping[str, Factory | Optimizer]) -> None:
        self._parameters = dict(_named(parameters))
        if not isinstance(optimizers, Mapping):
            raise UsageError(f"optimizers is a {type(optimizers).__name__}: give {{label: factory or optimizer}}")
        self._shadows = {name: nn.Parameter(p.detach().clone()) for name, p in self._parameters.items()}
        with random_state():
            self._shadow_optimizers = {label: self._adopt(label, source) for label, source in optimizers.items()}

    def peek(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Direction]:
        """The directions of the optimizers for these gradients (see `next_update`); none of them takes the step.

        Args:
            gradients: as for `step`.

        Returns:
            ``{label: direction}``.
        """
        checked = _checked(gradients, self._parameters)
        return {label: optimizer.peek(label, checked) for label, optimizer in self._shadow_optimizers.items()}

    def step(self, gradients: Mapping[str, Tensor | None], *, capture: bool = False) -> dict[str, Direction]:
        """Feeds each optimizer the gradients at the present parameters.

        Args:
            gradients: ``{name: gradient}``; a parameter without one has no gradient in this step.
            capture: whether to return the directions of the optimizers (see `next_update`), which costs more. Where a
                step fails then, the optimizers before it have taken theirs.

        Returns:
            ``{label: direction}`` if `capture`, else empty. The parameters stay as they are.
        """
        checked = _checked(gradients, self._parameters)
        with unnoticed():
            if capture:
                shadows = self._shadow_optimizers.items()
                return {label: optimizer.captured_step(label, checked) for label, optimizer in shadows}
            for optimizer in self._shadow_optimizers.values():
                optimizer.step(checked)
        return {}

    def _adopt(self, label: str, source: Factory | Optimizer) -> _ShadowOptimizer:
        if isinstance(source, Optimizer):
            _check_parameters(label, source, self._parameters)
            _check_parts(label, [source])
            return _OwnShadow(source, self._parameters)
        if not callable(source):
            raise UsageError(f"optimizer {label!r} is a {type(source).__name__}, neither a factory nor an optimizer")
        built = source(list(self._shadows.values()))
        optimizers: list[Any] = [built] if isinstance(built, Optimizer) else list(built)
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                built_type = type(optimizer).__name__
                raise UsageError(f"the factory of {label!r} gave a {built_type}, not a torch.optim.Optimizer")
            _check_parameters(label, optimizer, self._shadows)
        _check_parts(label, optimizers)
        by_lists(optimizers)
        return _ShadowOptimizer(optimizers, self._shadows, self._parameters)


class _ShadowOptimizer:
    """An optimizer on shadow parameters, or several that share these out between them.

    Args:
        optimizers: all of them together update each parameter once.
        shadows: the parameters that they hold; other shadow optimizers may use them in between.
        parameters: the parameters of the training.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        shadows: Mapping[str, nn.Parameter],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self._optimizers, self._shadows, self._parameters = optimizers, shadows, parameters

    def peek(self, label: str, gradients: Mapping[str, Tensor]) -> Direction:
        """The direction of the next step."""
        self._arrive(self._here())
        trial = partial(trial_step, self._optimizers, self._shadows, gradients, hooks=True)
        return _direction(label, trial, self._shadows)

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Takes the step."""
        self._arrive(self._here())
        give(self._shadows, self._copied(gradients))
        make_step(self._optimizers)

    def captured_step(self, label: str, gradients: Mapping[str, Tensor]) -> Direction:
        """Takes the step, and gives its direction."""
        here = self._here()
        self._arrive(here)
        step = partial(followed_step, self._optimizers, self._shadows, self._copied(gradients), here)
        return _direction(label, step, self._shadows)

    def _here(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self._parameters.items()}

    def _arrive(self, here: Mapping[str, Tensor]) -> None:
        for name, shadow in self._shadows.items():
            shadow.data.copy_(here[name])

    def _copied(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies for one optimizer and step alone: rules write to their gradients (weight decay, say), or keep them.

        Some write without autograd's knowledge (``p.grad.data``), so that no version counter shows it.
        """
        return {name: as_gradient(gradient, self._shadows[name]) for name, gradient in gradients.items()}


class _OwnShadow(_ShadowOptimizer):
    """A live optimizer as a shadow of itself, beside its own training.

    It is the same object, on the same parameters. Its whole state is exchanged while the shadow takes a step.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__([optimizer], parameters, parameters)
        with unnoticed():
            real = self._now()
            try:
                stand_in(real, list(parameters.values()))
                real.spare_iterators()
                without_hooks(real)
                by_lists([optimizer])
                self._state = self._now()
            finally:
                real.restore()

    def peek(self, label: str, gradients: Mapping[str, Tensor]) -> Direction:
        """The direction of the next step."""
        with unnoticed(), self._exchanged(gradients) as (copies, _):
            trial = partial(trial_step, self._optimizers, self._shadows, copies, as_found=False)
            return _direction(label, trial, self._shadows)

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Takes the step."""
        with self._exchanged(gradients) as (copies, _):
            give(self._shadows, copies)
            make_step(self._optimizers, as_found=False)
            self._state = self._now()

    def captured_step(self, label: str, gradients: Mapping[str, Tensor]) -> Direction:
        """Takes the step, and gives its direction."""
        with self._exchanged(gradients) as (copies, here):
            step = partial(followed_step, self._optimizers, self._shadows, copies, here, as_found=False)
            direction = _direction(label, step, self._shadows)
            self._state = self._now()
            return direction

    @contextmanager
    def _exchanged(self, gradients: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Inside, the shadow lives: with copies of the gradients, and the training's weights, which lie elsewhere."""
        real, here, copies = self._now(), self._here(), self._copied(gradients)
        try:
            self._state.restore()
            self._arrive(here)
            yield copies, here
        finally:
            real.restore()

    def _now(self) -> State:
        return state_of(self._optimizers, self._parameters)


def next_update(
    optimizer: Optimizer | Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor | None] | None = None,
) -> Direction:
    """The direction of a live optimizer's next step, which it does not take.

    The optimizer itself takes the step, in its own precision, on copies of everything that it leads to. Then everything
    is restored, to the bit. All that it writes to the parameters is also written to float64 mirrors of them: a
    difference of two float32 weights has lost the digits that rounding took from the weight (at a learning rate of 1e-5
    half of the direction can be rounding).

    Args:
        optimizer: any `torch.optim.Optimizer`, at any point of its life. Its own step hooks are not run. Several, which
            share the parameters out between them, make one step.
        parameters: ``{name: parameter}``: the parameters of the direction. Others of the optimizer take part in the
            step with their own gradients.
        gradients: ``{name: gradient}`` of the step; a parameter without one is left out. ``None``: the gradients that
            ``backward`` left on the parameters.

    Parameters may be sharded over ranks (`DTensor`), for the rules that were tried: then all ranks call this together.

    Returns:
        ``d``, for those parameters of the optimizer that have a gradient, in their dtype, or in float32 where that is
        coarser.

    Raises:
        UsageError: the optimizer holds none of the parameters, needs a closure or the graph of its gradients, or there
            is no gradient.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0])); adam = torch.optim.Adam([w], lr=1e-3)
        >>> round(next_update(adam, {"w": w}, {"w": torch.tensor([9.0])})["w"].item(), 6)
        -0.001
    """
    parts = (optimizer,) if isinstance(optimizer, Optimizer) else parts_of(optimizer)
    return own_update(parts, _named(parameters), gradients)


def own_update(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor | None] | None = None,
    *,
    as_found: bool = True,
) -> Direction:
    """`next_update`, also inside a step of one of the optimizers.

    Args:
        optimizers: see there.
        parameters: see there.
        gradients: see there.
        as_found: whether to call a ``step`` that is set on the object itself (by a learning rate scheduler, say), or
            that of its class: the former may be the one that runs now.
    """
    if gradients is None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    ids = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    checked = _checked(gradients, parameters)
    parameters = {name: p for name, p in parameters.items() if id(p) in ids}
    _check_parts(name_of(optimizers), optimizers)
    if not parameters:
        raise UsageError(f"{name_of(optimizers)} holds none of the parameters: is it another model's?")
    checked = {name: gradient for name, gradient in checked.items() if name in parameters}
    if not dtensors.is_same_on_all(number_of(sorted(checked)), parameters.values()):
        raise UsageError("ranks have gradients of different parameters: all call backward() before they call this")
    if not checked:
        raise UsageError("no parameter has a gradient: call this after backward() and before step()")
    trial = partial(trial_step, optimizers, parameters, checked, as_found=as_found)
    return _direction(name_of(optimizers), trial, parameters)


_TRIED_ON_PARTS = frozenset(
    {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adadelta", "Adagrad", "ASGD", "Muon"}
)
"""The rules of torch whose step on trial was compared with the one that they make on parts of parameters."""


def _check_parts(label: str, optimizers: Sequence[Optimizer]) -> None:
    """Refuses rules that weren't tried on parameters that lie in parts on several ranks."""
    for optimizer in optimizers:
        name = type(optimizer).__name__
        tried = name in _TRIED_ON_PARTS and type(optimizer) is getattr(torch.optim, name)
        sharded = any(dtensors.is_spread(p) for group in optimizer.param_groups for p in group["params"])
        if sharded and not tried:
            raise UsageError(
                f"optimizer {label!r}: the parameters are sharded over processes, and whether {name} makes there the "
                f"step that it takes on trial isn't known; it is of torch's {', '.join(sorted(_TRIED_ON_PARTS))}"
            )


def _named(parameters: Any) -> Mapping[str, nn.Parameter]:
    if not isinstance(parameters, Mapping):
        raise UsageError(
            f"parameters is a {type(parameters).__name__}: give {{name: parameter}}, dict(model.named_parameters())"
        )
    return parameters


def _checked(gradients: Mapping[str, Tensor | None], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that aren't ``None``, checked to have the shapes of their parameters."""
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        if name not in parameters:
            raise UsageError(f"a gradient names {name!r}, which is not among the parameters")
        if gradient.shape != parameters[name].shape:
            shapes = f"{tuple(gradient.shape)}, the parameter {tuple(parameters[name].shape)}"
            raise UsageError(f"the gradient of {name} has shape {shapes}")
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _direction(
    label: str, step: Callable[[], tuple[Direction, bool]], parameters: Mapping[str, nn.Parameter]
) -> Direction:
    """The direction that a step gives; what it can't be known of is said of the optimizer."""
    try:
        direction, rounded = step()
    except UsageError:
        raise
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        text = str(error)
        if "closure" in text:
            raise UsageError(f"optimizer {label!r} needs a closure: its update can't be known in advance") from error
        if any(word in text for word in ("grad_fn", "create_graph", "does not require grad")):
            raise UsageError(
                f"optimizer {label!r} needs the graph of its gradients (create_graph): "
                "its update can't be known in advance"
            ) from error
        raise
    if rounded:
        coarsest = max(torch.finfo(parameters[name].dtype).eps for name in direction)
        size = vectors.norm({name: parameters[name] for name in direction})
        if 0.5 * coarsest * size > _NOTICEABLE * vectors.norm(direction):
            warnings.warn(
                f"optimizer {label!r} writes to its weights in ways that can't be followed in float64: "
                "its direction is a difference of rounded weights",
                RuntimeWarning,
                stacklevel=4,
            )
    return direction


def _check_parameters(label: str, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    known = set(map(id, parameters.values()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and id(parameter) not in known:
                raise UsageError(
                    f"optimizer {label!r} has a parameter of shape {tuple(parameter.shape)} that isn't a trainable "
                    "parameter of the model"
                )
