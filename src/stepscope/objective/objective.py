"""The training loss as a function of the parameters, on a fixed set of micro-batches.

`Objective` is the one place that evaluates a user's model, and the one place that makes it measurable and then leaves
it exactly as it was found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError, said
from stepscope.objective import interrupts, vectors
from stepscope.objective.batches import moved, tensors
from stepscope.objective.interrupts import held
from stepscope.objective.measurable import HALF, Measurable, measurable, measured_dtype, random_state, seed_everything
from stepscope.objective.memory import shared_memory
from stepscope.objective.sharding import sharded, sharded_module
from stepscope.objective.state import State
from stepscope.objective.vectors import Direction
from stepscope.objective.weights import weighting

LossFunction = Callable[[nn.Module, Any], Tensor]
Output = TypeVar("Output")

MOST_BATCHES = 512
"""How many micro-batches are read of what doesn't say how many it has: it may have no end."""


class Objective:
    """A model's mean loss ``f(x)`` on fixed micro-batches, as a function of its trainable parameters ``x``.

    Args:
        model: any module. Its trainable parameters (``requires_grad``; tied ones once) are ``x``. Of a
            `DistributedDataParallel` the module inside is evaluated, so that a process can measure by itself.
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss of one micro-batch as a scalar tensor. ``None``: the
            model is called as ``model(**batch)`` and has a ``loss`` in its output, as Hugging Face models do.
        batches: the micro-batches; anything iterable, read once. Tensors in them are copied to the model's device, and
            so are the containers and objects that hold them; all else in them is shared.
        weight_fn: what the mean of ``loss_fn`` averages over, so that micro-batches are pooled rightly:
            ``f = Σ wᵢfᵢ / Σ wᵢ``. ``None``: valid label tokens (labels other than −100; shifted by one for Hugging Face
            causal models) where a batch has ``labels``, else the first dimension of the batch's first tensor, or ones
            of a mask. Which of them is right is tried: two micro-batches together must have the mean of their losses.
        modules: modules that the loss calls and that can't be found from `loss_fn`. (Found are those in its closure,
            defaults, attributes, containers and globals; one that is called all the same is noticed at once.) All are
            evaluated as the model is, and left as they were.
        dtype: the floating-point type to measure in. ``None``: the parameters' own, with half precision raised to
            float32. `torch.float64` gives a reference for a float32 model.

    Attributes:
        parameters: ``{name: parameter}`` of the trainable parameters, by the names of ``model.named_parameters()``.
        shares: ``wᵢ / Σ w`` of each micro-batch.
        weighting: what they are weighted by, and whether that was tried.

    Raises:
        UsageError: no batches or without end, one batch where several are wanted, no trainable parameters, weights that
            can't be used, a loss that is no mean by any of the usual weights (give `weight_fn`), parameters without a
            shape yet, sharded, or that share memory without being one parameter.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2), torch.ones(1, 2)])
        >>> objective.shares
        [0.75, 0.25]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None = None,
        batches: Iterable[Any] = (),
        weight_fn: Callable[[Any], float] | None = None,
        *,
        modules: Iterable[nn.Module] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(f"model is a {type(model).__name__}, not a torch.nn.Module")
        if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
            raise UsageError(f"batches is a {type(batches).__name__}: give a list of micro-batches, [batch] for one")
        _check_model(model)
        self.model = model
        self._called = _without_communication(model)
        self.loss_fn = loss_fn
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        _check_parameters(self.parameters)
        self._raised = dtype is None and any(p.dtype in HALF for p in self.parameters.values())
        self._made_in = measured_dtype(next(iter(self.parameters.values())).dtype, dtype)
        # Iterating a DataLoader draws a seed from the global RNG, and its data set may draw more.
        with random_state():
            self.batches: list[Any] = _read(batches)
        self.dtype = dtype
        self._reached = {f"modules[{index}]": module for index, module in enumerate(modules)}
        self._measured: Measurable | None = None
        self._measuring = 0
        self._displaced = 0
        self._differentiates = False
        self._scratch: list[dict[str, Tensor]] = []
        self._evaluated_once: set[Hashable] = set()
        self.weighting = weighting(model, self.batches, weight_fn, self._tried)
        self.shares = self.weighting.shares
        # Nothing of a micro-batch without weight enters the loss; its own mean may be NaN.
        self.batches = [batch for batch, share in zip(self.batches, self.shares, strict=True) if share > 0]
        self.shares = [share for share in self.shares if share > 0]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the model is measurable; outside, it is exactly as it was found, also after an exception.

        Ctrl-C inside takes effect at the next evaluation of a micro-batch, so that nothing is left half put back.

        So is everything that the loss reaches, and each evaluation inside starts from the state that was found: a queue
        or a running mean that the loss moves is the same for all of them. Entering again inside costs nothing.
        """
        if self._measuring:
            self._measuring += 1
            try:
                yield
            finally:
                self._measuring -= 1
            return
        now = [p for p in self.model.parameters() if p.requires_grad]
        if len(now) != len(self.parameters) or any(
            a is not b for a, b in zip(now, self.parameters.values(), strict=True)
        ):
            raise UsageError(
                "the model's trainable parameters are others than when the Objective was made: make it anew"
            )
        with held():
            parameters = self.parameters
            try:
                with measurable(self.model, self._roots(), self.dtype) as measured:
                    self._measured, self._measuring = measured, 1
                    self.parameters = {name: measured.stand_ins.get(id(p), p) for name, p in parameters.items()}
                    yield
            finally:
                self.parameters = parameters
                self._measuring, self._displaced, self._scratch, self._measured = 0, 0, [], None

    def modules(self) -> dict[str, nn.Module]:
        """All modules that the loss is known to reach, the model's among them, by how they are reached."""
        return State(self._roots()).modules

    def _roots(self) -> dict[str, Any]:
        return {"model": self.model, "loss_fn": self.loss_fn, **self._reached}

    def losses(self) -> Iterator[tuple[float, Tensor]]:
        """Each micro-batch's share and its loss, a scalar tensor with its graph, at the present parameters.

        Random numbers that the model draws are the same at every evaluation of a micro-batch, so dropout left on is
        a fixed mask. Only inside `measuring`.

        Raises:
            UsageError: a loss isn't a scalar tensor, or doesn't depend on a trainable parameter.
        """
        number = itertools.count()
        return self.evaluations(lambda _, batch: _scalar(self._call(batch), next(number)))

    def evaluations(self, evaluate: Callable[[nn.Module, Any], Output]) -> Iterator[tuple[float, Output]]:
        """Each micro-batch's share, and what `evaluate` gives of it at the present parameters; as `losses` has them.

        Args:
            evaluate: ``evaluate(model, batch)``; the tensors of the micro-batch are copies on the model's device.
        """
        assert self._measuring, "an evaluation outside measuring()"
        for index, (share, batch) in enumerate(zip(self.shares, self.batches, strict=True)):
            interrupts.deliver()
            seed_everything(index)
            copied = self._copy(batch)
            # Not by way of a variable: what it gives has a graph, which needn't live while the next one grows.
            yield share, self._evaluated(evaluate, copied, index)

    def mean(self, values: Sequence[float]) -> float:
        """The mean of one value per micro-batch, weighted as the loss is: ``Σ shareᵢ · valueᵢ``."""
        return math.fsum(share * value for share, value in zip(self.shares, values, strict=True))

    def loss(self) -> float:
        """``f`` at the present parameters; infinite or NaN where the model's loss is."""
        with self.measuring():
            try:
                with torch.set_grad_enabled(self._differentiates):
                    return self._value()
            except RuntimeError as error:
                if self._differentiates or "does not require grad" not in str(error):
                    raise
                # The loss holds derivatives of its own (a gradient penalty, a differential equation).
                self._differentiates = True
                return self._value()

    def _value(self) -> float:
        return math.fsum(share * float(loss.detach()) for share, loss in self.losses())

    def loss_at(self, direction: Mapping[str, Tensor], step: float) -> float:
        """``f(x + step · direction)``; the parameters are back at ``x`` on return."""
        with self.measuring(), self.displaced(direction, step):
            return self.loss()

    def gradient(self) -> tuple[float, Direction]:
        """``f`` and ``∇f`` at the present parameters; a parameter that the loss doesn't use is left out.

        Raises:
            UsageError: the loss isn't finite, or uses no trainable parameter.
        """
        value, gradient = 0.0, Direction()
        with self.measuring():
            for share, loss in self.losses():
                value += share * self.finite(loss)
                for name, part in self.derivative(loss).items():
                    gradient[name] = gradient[name].add_(part, alpha=share) if name in gradient else part * share
        return value, reached(gradient)

    def derivative(self, loss: Tensor, *, create_graph: bool = False) -> Direction:
        """The gradient of one loss from `losses`; a parameter that it doesn't use is left out."""
        with torch.enable_grad():
            parts = torch.autograd.grad(
                loss, list(self.parameters.values()), create_graph=create_graph, allow_unused=True
            )
        return {
            name: part.to_dense() if part.is_sparse else part
            for name, part in zip(self.parameters, parts, strict=True)
            if part is not None
        }

    def finite(self, loss: Tensor) -> float:
        """A loss from `losses` as a number.

        Raises:
            UsageError: it is infinite or NaN, so nothing can be measured here.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            where = "near" if self._displaced else "at"
            raise UsageError(f"the loss is {value} {where} the present parameters: nothing can be measured there")
        return value

    @contextmanager
    def displaced(self, direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
        """Inside, the parameters are ``x + step · direction``, ``x`` being what they are outside. Only in `measuring`.

        The point is computed into memory that is kept until `measuring` ends: one model's worth, more where it nests.
        """
        assert self._measured is not None, "displaced() outside measuring()"
        if self._displaced == len(self._scratch):
            self._scratch.append({})
        scratch = self._scratch[self._displaced]
        here = {name: self.parameters[name].data for name in direction}
        aliases = {name: [(a, a.data) for a in self._measured.aliases_of(self.parameters[name])] for name in here}
        self._displaced += 1
        try:
            for name, x in here.items():
                if name not in scratch:
                    scratch[name] = torch.empty_like(x)
                torch.add(x, direction[name].to(x.device, x.dtype), alpha=step, out=scratch[name])
                self.parameters[name].data = scratch[name]
                for alias, data in aliases[name]:
                    place = data.storage_offset() - x.storage_offset()
                    alias.data = scratch[name].as_strided(data.size(), data.stride(), place)
            yield
        finally:
            for name, x in here.items():
                self.parameters[name].data = x
                for alias, data in aliases[name]:
                    alias.data = data
            self._displaced -= 1

    def check_direction(self, label: str, direction: Mapping[str, Tensor]) -> None:
        """Refuses what isn't a direction of this objective's parameter space.

        Raises:
            UsageError: a name that isn't a trainable parameter, another shape, a value that isn't finite, or zero.
        """
        if not isinstance(direction, Mapping):
            raise UsageError(f"direction {label!r} is a {type(direction).__name__}, not a mapping of names to tensors")
        for name, tensor in direction.items():
            dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
            if not dense:
                raise UsageError(f"direction {label!r}: {name} is not a dense real floating-point tensor")
            if name not in self.parameters:
                known = ", ".join(list(self.parameters)[:3])
                raise UsageError(f"direction {label!r} names {name!r}, not a trainable parameter (they are {known}, …)")
            if tensor.shape != self.parameters[name].shape:
                raise UsageError(
                    f"direction {label!r}: {name} has shape {tuple(tensor.shape)}, "
                    f"the parameter {tuple(self.parameters[name].shape)}"
                )
        length = vectors.norm(direction)
        if not math.isfinite(length):
            raise UsageError(f"direction {label!r} has values that are infinite or NaN")
        if length == 0:
            raise UsageError(f"direction {label!r} is zero, so it has no sharpness (a learning rate of 0?)")

    def _tried(self, batch: Any, differentiate: bool) -> tuple[float, Direction]:
        """The loss of one batch, and its gradient.

        Raises:
            UsageError: it draws random numbers, so that those of other batches are no parts of it.
        """
        with self.measuring(), torch.set_grad_enabled(True):
            seed_everything(0)
            loss = _scalar(self._evaluated(lambda _, b: self._call(b), self._copy(batch), ("tried", id(batch))), 0)
            assert self._measured is not None
            if self._measured.draws:
                raise UsageError("the loss draws random numbers")
            return float(loss.detach()), self.derivative(loss) if differentiate else {}

    def _copy(self, batch: Any) -> Any:
        """A micro-batch as it is measured; where the parameters have another dtype than at first, so has what fits."""
        first = next(iter(self.parameters.values()))

        def dtype_of(found: torch.dtype) -> torch.dtype:
            measured = measured_dtype(found, self.dtype)
            return first.dtype if measured == self._made_in else measured

        return moved(batch, first.device, dtype_of)

    def _evaluated(self, evaluate: Callable[[nn.Module, Any], Output], batch: Any, index: Hashable) -> Output:
        assert self._measured is not None
        try:
            result = self._measured.evaluate(index, lambda: evaluate(self._called, batch))
        except Exception as error:
            if isinstance(error, UsageError) or is_out_of_memory(error):
                raise
            if isinstance(error, RuntimeError) and self._raised:
                raise UsageError(
                    f"the model doesn't run in float32, in which half precision is measured ({said(error)}): "
                    "if its attention needs half precision, choose another (attn_implementation='sdpa')"
                ) from error
            # A loss that differentiates inside is tried again, with gradients.
            again = not torch.is_grad_enabled() and "does not require grad" in str(error)
            if again or index in self._evaluated_once:
                raise
            raise UsageError(self._why_it_fails(error, batch, index)) from error
        self._evaluated_once.add(index)
        return result

    def _why_it_fails(self, error: Exception, batch: Any, index: Hashable) -> str:
        which = f"micro-batch {index}" if isinstance(index, int) else "micro-batches together"
        text = f"the loss of {which} can't be computed ({type(error).__name__}: {said(error)})"
        dtypes = {t.dtype for t in tensors(batch) if t.is_floating_point()}
        if other := dtypes - {p.dtype for p in self.parameters.values()}:
            found, wanted = str(other.pop()), str(next(iter(self.parameters.values())).dtype)
            return f"{text}: it holds {found}, the model {wanted}; give the batches in the model's dtype"
        if all(isinstance(b, Tensor) for b in self.batches):
            return f"{text}: each micro-batch is a tensor; if they are the parts of one batch, give [batch]"
        return (
            f"{text}: the model is measured in evaluation mode; if it gives a loss in training mode only, give a "
            "loss_fn that computes it in evaluation mode"
        )

    def _call(self, batch: Any) -> Tensor:
        if self.loss_fn is not None:
            return self.loss_fn(self._called, batch)
        output = model_output(self._called, batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            raise UsageError("model(**batch) gave no loss: put labels into the batches, or pass loss_fn")
        return loss  # type: ignore[no-any-return]


def reached(gradient: Direction) -> Direction:
    """A gradient of the pooled loss, of at least one parameter.

    Raises:
        UsageError: of none; its curvature would be zero, whatever the model.
    """
    if not gradient:
        raise UsageError("the loss uses none of the model's trainable parameters: is loss_fn given another model?")
    return gradient


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; of the CPU's torch makes a plain `RuntimeError`."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text or "out of memory" in text
    )


def check_objective(objective: Any) -> None:
    """Raises a `UsageError` where something else is given for an objective."""
    if not isinstance(objective, Objective):
        raise UsageError(
            f"objective is a {type(objective).__name__}, not an Objective: give Objective(model, loss_fn, batches)"
        )


def model_output(model: nn.Module, batch: Any) -> Any:
    """What ``model(**batch)`` gives.

    Raises:
        UsageError: the batch isn't a mapping.
    """
    if not isinstance(batch, Mapping):
        raise UsageError(f"without loss_fn a batch must be a mapping for model(**batch), not a {type(batch).__name__}")
    # With the number of labels of a whole accumulated step, the loss of a micro-batch would be no mean.
    return model(**{name: value for name, value in batch.items() if name != "num_items_in_batch"})


def _without_communication(model: nn.Module) -> nn.Module:
    """Calling a `DistributedDataParallel` waits for the other processes, which may not be measuring."""
    inside: Any = model
    while not isinstance(inside, nn.parallel.DistributedDataParallel):
        inside = getattr(inside, "_orig_mod", None)  # of a compiled one
        if inside is None:
            return model
    return inside.module  # type: ignore[no-any-return]


def _scalar(loss: Any, index: int) -> Tensor:
    if not isinstance(loss, Tensor):
        raise UsageError(f"the loss must be a scalar tensor with its graph, not a {type(loss).__name__}")
    if loss.numel() != 1:
        raise UsageError(f"the loss must be a scalar, not of shape {tuple(loss.shape)}: average it in loss_fn")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UsageError(
            f"the loss of micro-batch {index} depends on no trainable parameter: is it detached, or under no_grad?"
        )
    return loss.reshape(())


def _read(batches: Iterable[Any]) -> list[Any]:
    """The micro-batches.

    Raises:
        UsageError: there is no end of them, or they are surely the parts of one batch.
    """
    if isinstance(batches, tuple) and hasattr(batches, "_fields"):
        raise UsageError(f"batches is a {type(batches).__name__}, which is one batch: give a list, [batch] for one")
    try:
        len(batches)  # type: ignore[arg-type]
    except TypeError:
        read = list(itertools.islice(batches, MOST_BATCHES + 1))
        if len(read) > MOST_BATCHES:
            raise UsageError(
                f"batches has no length, and no end after {MOST_BATCHES} micro-batches: give some of them, "
                "list(itertools.islice(batches, 8))"
            ) from None
    else:
        read = list(batches)
    kinds = {(tensor.dtype, tensor.dim()) if isinstance(tensor, Tensor) else None for tensor in read}
    if len(kinds) > 1 and None not in kinds:
        raise UsageError(
            f"batches holds {len(read)} tensors of different kinds, which are the parts of one batch: give a list of "
            "micro-batches, [batch] for one"
        )
    return read


def _check_model(model: nn.Module) -> None:
    if owner := sharded_module(model) or sharded(model.parameters()):
        raise UsageError(f"the model is sharded over processes by {owner}: sharded models can't be measured")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet (a lazy module): call the model on a batch first")


def _check_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise UsageError("the model has no trainable parameters: set requires_grad on those to be measured")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise UsageError(f"parameter {name} is {parameter.dtype}: only real floating-point parameters are measured")
    if found := shared_memory(parameters):
        first, second = found
        if first == second:
            raise UsageError(f"parameter {first} holds elements that share memory (expanded?): clone it")
        raise UsageError(f"parameters {first} and {second} share memory: tie them as one Parameter object")
