"""The training loss as a function of the parameters, on a fixed set of micro-batches.

`Objective` is the one place that evaluates a user's model, and the one place that makes it measurable and then leaves
it exactly as it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepscope.errors import UsageError
from stepscope.objective import checks, vectors
from stepscope.objective.batch_weights import weighting
from stepscope.objective.batches import digest
from stepscope.objective.evaluation import Evaluations
from stepscope.objective.fsdp import resharded
from stepscope.objective.interrupts import held
from stepscope.objective.loss_calls import LossFunction, is_out_of_memory, loss_of, scalar, without_communication
from stepscope.objective.measurable import HALF, Measurable, is_compiled, measurable, measured_dtype
from stepscope.objective.memory_budget import MemoryPlan, PeakMemory, within
from stepscope.objective.plain_model import PlainModel
from stepscope.objective.process_group import Ranks, number_of
from stepscope.objective.randomness import seed_everything
from stepscope.objective.sharded_model import GatheredModel, ShardedModel, model_of_ranks
from stepscope.objective.state import State
from stepscope.objective.switches import attention_kernels
from stepscope.objective.vectors import Direction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Output = TypeVar("Output")


class Objective:
    """A model's mean loss ``f(x)`` on fixed micro-batches, as a function of its trainable parameters ``x``.

    Args:
        model: any module. Its trainable parameters (``requires_grad``; tied ones once) are ``x``. Of a
            `DistributedDataParallel` the module inside is evaluated, so that a process can measure by itself. A model
            that is sharded (`fully_shard`, tensor parallelism) is evaluated by all ranks together: each makes the
            Objective, with batches of its own on each data rank.
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss of one micro-batch as a scalar tensor. ``None``: the
            model is called as ``model(**batch)`` and has a ``loss`` in its output, as Hugging Face models do.
        batches: the micro-batches; anything iterable, read once. Tensors in them are copied to the model's device, and
            so are the containers and objects that hold them; all else in them is shared.
        weight_fn: the weight ``wᵢ`` of a micro-batch, ``f = Σ wᵢfᵢ / Σ wᵢ``: the number of terms that the mean loss
            ``fᵢ`` averages over. ``None``: valid label tokens (labels other than −100; shifted by one for Hugging Face
            causal models) where a batch has ``labels``, else the first dimension of the batch's first tensor, or ones
            of a mask. A trial decides which is right: the loss of two micro-batches together must be their mean.
        modules: modules that the loss calls and that can't be found from `loss_fn`. Those in its closure, defaults,
            attributes, containers and globals are found; any other is noticed when it is called. All are evaluated as
            the model is, and left as they were.
        dtype: the floating-point type to measure in. ``None``: the parameters' own, with half precision raised to
            float32. `torch.float64` gives a reference for a float32 model.
        memory: what a measurement may take beside the model and the directions, in bytes, or below 1 as a part of what
            is free: the batches are cut into micro-batches that fit. ``None``: they are measured as they are.
        process_group: ranks that measure together (`torch.distributed.group.WORLD` for all): each evaluates its own
            `batches`, any number of them, of which the loss of all ranks is made, weighted as in one process. Each rank
            makes the Objective and calls what measures it, with the same directions. ``None``: this process alone; all
            ranks, where the parameters are sharded.

    Attributes:
        parameters: ``{name: parameter}`` of the trainable parameters, by the names of ``model.named_parameters()``.
        weights: ``wᵢ / Σ w`` of each micro-batch, of all ranks one after another. Of a sharded model, a micro-batch is
            a round, in which each data rank evaluates one of its own.
        weighting: what they are weighted by, and whether that was tried.
        memory: the micro-batches that were chosen for a budget, and what they need; ``None`` without one.

    Raises:
        UsageError: no batches or without end, one batch where several are wanted, no trainable parameters, weights that
            can't be used, a loss that is no mean by any of the usual weights (give `weight_fn`), parameters that
            have no shape yet, or share memory without being one parameter, a model that is sharded in a way that isn't
            known to be measured right, or ranks whose models or options differ.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2), torch.ones(1, 2)])
        >>> objective.weights
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
        memory: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        checks.check_model(model)
        checks.check_dtype(dtype)
        resharded(model)
        self.model = model
        self._called = without_communication(model)
        self.loss_fn = loss_fn
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        checks.check_parameters(self.parameters)
        self._raised = dtype is None and any(p.dtype in HALF for p in self.parameters.values())
        self._first_dtype = measured_dtype(next(iter(self.parameters.values())).dtype, dtype)
        device = next(iter(self.parameters.values())).device
        together = model_of_ranks(model, self.parameters, process_group)
        ranks = together.ranks
        self.ranks = self._all_ranks = Ranks(None, device)  # what is tried first is tried alone
        self._how = together if isinstance(together, ShardedModel) else PlainModel(self.ranks)
        checks.check_sharded(self._sharded is not None, dtype, weight_fn, memory)
        options = (dtype, weight_fn is None, loss_fn is None, memory is None)
        ranks.check_same("models or options", [checks.form_of(self.parameters, options)], "give all ranks the same")
        with ranks.agreed("the batches"):
            self.batches: list[Any] = checks.read_batches(batches)
        self.dtype = dtype
        self._reached = {f"modules[{index}]": module for index, module in enumerate(modules)}
        self._evaluations: Evaluations | None = None
        self._measuring = 0
        self._differentiates = False
        self._fused = True
        self._kernels = [SDPBackend.MATH]
        self._seen: set[Hashable] = set()
        self.memory: MemoryPlan | None = None
        if memory is not None:
            with ranks.agreed("the memory budget"):
                self.batches, self.memory = within(memory, self.batches, self._memory_of, device)
        self.weighting = weighting(model, self.batches, weight_fn, self._tried, ranks)
        self._how = together
        self._distribute(ranks)

    @property
    def _sharded(self) -> ShardedModel | None:
        return self._how if isinstance(self._how, ShardedModel) else None

    def _distribute(self, ranks: Ranks) -> None:
        """What this rank evaluates, and with what weight."""
        self._all_ranks = ranks
        if self._sharded is not None:
            remedy = "ranks that tensor parallelism joins must have the same"
            ranks.check_same("batches", [number_of(digest(self.batches))], remedy, among=float(ranks.part))
        before = ranks.before(len(self.batches))
        own = [*zip(self.batches, self.weighting.weights[before:], strict=False)]
        # A micro-batch of weight 0 doesn't enter the loss, and its own mean may be NaN.
        weighted = [(batch, weight) for batch, weight in own if weight > 0]
        self.weights = [weight for weight in self.weighting.weights if weight > 0]
        self._before = ranks.before(len(weighted))
        self._shares: list[float] | None = None
        if self._sharded is None:
            self.ranks = ranks
        else:
            weighted, self.weights, self._shares = self._sharded.rounds(own, weighted)
        self.batches = [batch for batch, _ in weighted]
        self._own_weights = [weight for _, weight in weighted]

    def _memory_of(self, batch: Any) -> int:
        """Bytes that the curvature along a direction takes on one of several micro-batches: the most of all levels."""
        alone = Objective(
            self.model, self.loss_fn, [batch], lambda _: 1.0, modules=self._reached.values(), dtype=self.dtype
        )
        with PeakMemory() as memory, alone.measuring():
            for _, loss in alone.losses():
                gradient = alone.derivative(loss, create_graph=True)
                differentiable = [tensor for tensor in gradient.values() if tensor.requires_grad]
                along = [tensor.detach() for tensor in differentiable]
                parameters = list(alone.parameters.values())
                try:
                    torch.autograd.grad(differentiable, parameters, along, retain_graph=True, allow_unused=True)
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
                    # There is no second derivative: differences of gradients take less.
        of_other_batches = sum(p.numel() * p.element_size() for p in alone.parameters.values())  # their gradient
        return int(memory.peak) + of_other_batches

    @contextmanager
    def measuring(self, *, as_trained: bool = False) -> Iterator[None]:
        """Inside, the model is measurable. Outside, it is exactly as before, also after an exception.

        The same is true of everything that the loss reaches. Each evaluation inside starts from the same state: a queue
        or a running mean that the loss moves is the same for all of them. Entering again inside costs nothing. Ctrl-C
        inside takes effect at the next evaluation of a micro-batch, so that everything is restored completely.

        Args:
            as_trained: for losses alone: half precision, autocast, compiled code and fused kernels stay as training
                has them. An objective with a `dtype` is measured in that all the same.

        Raises:
            UsageError: the trainable parameters have changed, or it is entered `as_trained` inside of one that isn't.
        """
        as_trained = as_trained and self.dtype is None
        if self._measuring:
            if as_trained and not self._within.as_trained:
                raise UsageError("losses as training computes them were asked for inside measuring(): leave that first")
            self._measuring += 1
            try:
                yield
            finally:
                self._measuring -= 1
            return
        resharded(self.model)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if [*map(id, trainable)] != [*map(id, self.parameters.values())]:
            raise UsageError(
                "the model's trainable parameters have changed since the Objective was made: make another Objective"
            )
        with held():
            parameters, self._kernels = self.parameters, attention_kernels()
            try:
                with ExitStack() as stack:
                    if self._sharded is not None:
                        checks.check_precision(self.parameters, as_trained)
                    stack.enter_context(self._how.measuring(as_trained=as_trained))
                    with self._all_ranks.agreed("the beginning of a measurement"):
                        measured = stack.enter_context(
                            measurable(self.model, self._roots(), self.dtype, as_trained, self._how.memories)
                        )
                    self.parameters = {name: measured.stand_ins.get(id(p), p) for name, p in parameters.items()}
                    self._evaluations, self._measuring = self._evaluations_of(measured, as_trained), 1
                    self._be_the_same()
                    yield
            finally:
                self.parameters, self._evaluations, self._measuring = parameters, None, 0

    def _evaluations_of(self, measured: Measurable, as_trained: bool) -> Evaluations:
        return Evaluations(
            self._how, measured, self.parameters, self.batches, self.dtype, self._first_dtype, self._raised, as_trained,
            self._seen,
        )  # fmt: skip

    @property
    def _within(self) -> Evaluations:
        """Those of the measurement that goes on."""
        assert self._evaluations is not None, "an evaluation outside measuring()"
        return self._evaluations

    def _be_the_same(self) -> None:
        """All ranks evaluate the same function: the parameters must agree, and the first rank's buffers are all's.

        Each rank of a `DistributedDataParallel` moves its own running statistics, until the next step of the training.
        """
        what, remedy = (
            "the values of parameters",
            "they must hold the same weights; DistributedDataParallel sees to that",
        )
        self._how.check_copies(what, self.parameters, remedy)
        if self._how.is_data_parallel:
            self._how.ranks.share([buffer.detach() for buffer in self._called.buffers()])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each rank holds all of a sharded model and differentiates its own micro-batches; in `measuring`.

        The parameters are whole tensors then. A model that isn't sharded stays as it is.
        """
        sharded = self._sharded
        if sharded is None:
            yield
            return
        kept = self.parameters, self.ranks, self._evaluations
        with ExitStack() as stack:
            stack.enter_context(sharded.whole())
            measured = stack.enter_context(measurable(self.model, self._roots(), None, False, sharded.memories))
            try:
                self._how, self.ranks = GatheredModel(sharded, self.parameters), sharded.ranks
                self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
                self._evaluations = self._evaluations_of(measured, as_trained=False)
                yield
            finally:
                self.parameters, self.ranks, self._evaluations = kept
                self._how = sharded

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters.values())
        loss = (
            "its own loss" if self.loss_fn is None else getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
        )
        batches = f"{len(self.batches)} micro-batch{'es' * (len(self.batches) != 1)}"
        return f"Objective({type(self.model).__name__}, {count:,} trainable parameters; {loss} on {batches})"

    def modules(self) -> dict[str, nn.Module]:
        """All modules that the loss is known to reach, the model's among them, by the path that leads to them."""
        return State(self._roots()).modules

    def is_compiled(self) -> bool:
        """Whether some of the code that the loss reaches is compiled: another mode or dtype compiles it anew."""
        return is_compiled(State(self._roots()))

    def _roots(self) -> dict[str, Any]:
        return {"model": self.model, "loss_fn": self.loss_fn, **self._reached}

    def losses(self) -> Iterator[tuple[float, Tensor]]:
        """The weight of each micro-batch of this rank and its loss, a scalar with its graph, at the present parameters.

        Random numbers that the model draws are the same at every evaluation of a micro-batch, so dropout left on is
        a fixed mask. Only inside `measuring`.

        Raises:
            UsageError: a loss isn't a scalar tensor, or doesn't depend on a trainable parameter.
        """

        def loss(batch: Any, index: int) -> Tensor:
            value = scalar(self._loss(batch), index)
            return value if self._shares is None else value * self._shares[index - self._before]

        return self._each(loss)

    def evaluations(self, evaluate: Callable[[nn.Module, Any], Output]) -> Iterator[tuple[float, Output]]:
        """The weight of each micro-batch of this rank, and the result of `evaluate` for it; see `losses`.

        Args:
            evaluate: ``evaluate(model, batch)``; the tensors of the micro-batch are copies on the model's device.
        """
        return self._each(lambda batch, _: evaluate(self._called, batch))

    def _each(self, evaluate: Callable[[Any, int], Output]) -> Iterator[tuple[float, Output]]:
        return self._within.each(evaluate, self._own_weights, self._before)

    def mean(self, values: Sequence[float]) -> float:
        """The mean of one value per micro-batch, weighted as the loss is: ``Σ weightᵢ · valueᵢ``."""
        return math.fsum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def standard_error(self, values: Sequence[float]) -> float | None:
        """The standard error of `mean` over a sample of micro-batches: ``√(B/(B−1) · Σ wᵢ²(vᵢ − v̄)²)``.

        Returns:
            ``None`` for a single micro-batch.
        """
        count, mean = len(values), self.mean(values)
        if count < 2:
            return None
        squares = math.fsum((w * (v - mean)) ** 2 for w, v in zip(self.weights, values, strict=True))
        return math.sqrt(count / (count - 1) * squares)

    def loss(self) -> float:
        """``f`` at the present parameters; infinite or NaN where the model's loss is.

        Attention uses the kernels that training uses, since nothing is differentiated.
        """
        return self.mean(self.values())

    def values(self) -> list[float]:
        """The loss of each micro-batch of all ranks, of which `loss` is the mean."""
        with self.measuring():
            with self.ranks.agreed("losses"):
                try:
                    fused = self._within.as_trained or (self._fused and not self._differentiates)
                    kernels = self._kernels if fused else [SDPBackend.MATH]
                    with torch.set_grad_enabled(self._differentiates), sdpa_kernel(kernels):
                        values = self._values()
                except RuntimeError as error:
                    if self._differentiates or "does not require grad" not in str(error):
                        raise
                    # The loss holds derivatives of its own (a gradient penalty, a differential equation).
                    self._differentiates = True
                    values = self._values()
            return self._how.of_rounds(values)

    def roundings(self) -> tuple[float, float]:
        """The relative rounding of the coarsest type that evaluations computed in, and that of their losses.

        Only inside `measuring`, after an evaluation there.
        """
        ranks, within = self._all_ranks, self._within
        return max(ranks.concatenated([within.measured.eps])), max(ranks.concatenated([within.loss_eps]))

    def rehearses(self) -> bool:
        """Whether the first evaluation of a micro-batch evaluates it twice: compiled code is watched as it is written.

        Only inside `measuring`.
        """
        return any(self._all_ranks.concatenated([float(self._within.measured.compiled)]))

    def loss_beside(self, loss: float) -> float:
        """`loss`, to compare with the same by the kernels that are differentiated.

        Where the two differ by more than rounding, all losses use those from now on: in fused attention, dropout that
        is left on has other masks.

        Args:
            loss: ``f`` as `losses` gave it.
        """
        value = self.loss()
        if self._fused and not abs(value - loss) <= 1e-5 * abs(loss) + 1e-12:
            self._fused = False
            value = self.loss()
        return value

    def _values(self) -> list[float]:
        values = []
        for _, loss in self._each(lambda batch, index: scalar(self._loss(batch), index)):
            self._within.loss_eps = max(self._within.loss_eps, torch.finfo(loss.dtype).eps)
            values.append(float(loss.detach()))
        if self._shares is None:
            return values
        return [share * value if share else 0.0 for share, value in zip(self._shares, values, strict=True)]

    def loss_at(self, direction: Mapping[str, Tensor], step: float) -> float:
        """``f(x + step · direction)``; the parameters are back at ``x`` on return."""
        with self.measuring(), self.displaced(direction, step):
            return self.loss()

    def gradient(self) -> tuple[float, Direction]:
        """``f`` and ``∇f`` at the present parameters; a parameter that the loss doesn't use is left out.

        Raises:
            UsageError: the loss isn't finite, or uses no trainable parameter.
        """
        values, gradient = [], Direction()
        with self.measuring():
            with self.ranks.agreed("a gradient"):
                for weight, loss in self.losses():
                    values.append(self.finite(loss))
                    vectors.absorb(gradient, self.derivative(loss), weight)
            return self.mean(self.of_all(values)), checks.reached(self.pooled(gradient))

    def of_all(self, values: Sequence[float]) -> list[float]:
        """A number of each micro-batch, as `mean` takes them, from those of what this rank has evaluated."""
        return list(values) if self._sharded is not None else self._how.of_rounds(values)  # `finite` has summed them

    def pooled(self, direction: Direction) -> Direction:
        """The sum over ranks of what each has summed over its own micro-batches; `direction` is used up."""
        return self._how.pooled(direction, self.parameters)

    def derivative(self, loss: Tensor, *, create_graph: bool = False) -> Direction:
        """The gradient of one loss from `losses`; a parameter that it doesn't use is left out."""
        return self._how.gradient(loss, self.parameters, create_graph=create_graph)

    def finite(self, loss: Tensor) -> float:
        """A loss from `losses` as a number.

        Raises:
            UsageError: it is infinite or NaN, so nothing can be measured here.
        """
        value = float(loss.detach())
        if self._sharded is not None:
            [value] = self._sharded.of_rounds([value])
        if not math.isfinite(value):
            where = "near" if self._within.displaced else "at"
            raise UsageError(f"the loss is {value} {where} the present parameters: nothing can be measured there")
        return value

    @contextmanager
    def displaced(self, direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
        """Inside, the parameters are ``x + step · direction``; outside, they are ``x``. Only in `measuring`.

        The point is computed into memory that is kept until `measuring` ends: one model's worth, more where it nests.
        """
        within = self._within
        within.displaced += 1
        try:
            with self._how.moved(self.parameters, direction, step, within.measured.aliases_of):
                yield
        finally:
            within.displaced -= 1

    def check_direction(self, label: str, direction: Mapping[str, Tensor]) -> None:
        """Refuses what isn't a direction of this objective's parameter space.

        Raises:
            UsageError: a name that isn't a trainable parameter, another shape, a value that isn't finite, or zero.
        """
        with self._all_ranks.agreed("a direction"):
            checks.check_direction(label, direction, self.parameters)
        what, remedy = f"direction {label!r}", "give all ranks the same"
        # Of parts on several ranks sums are exchanged, of one tensor after another.
        self._all_ranks.check_same(what, [number_of([*direction])], remedy)
        with self.ranks.agreed("the length of a direction"):
            checks.check_length(label, direction)
        self._how.check_copies(what, direction, remedy)

    def check_alone(self, what: str) -> None:
        """Refuses what can't be computed by several ranks together, with a sharded model or a process group.

        Raises:
            UsageError: the objective is that of several ranks.
        """
        if self._sharded is not None:
            raise UsageError(f"{what} can't be computed of a sharded model: measure it in one process")
        if not self.ranks.alone:
            raise UsageError(f"{what} can't be computed over a process_group: give an Objective without one")

    def obstacle(self, *, asked: bool) -> str | None:
        """Why double backward isn't used, where that is known before a trial.

        Args:
            asked: whether the user asks for it, and so for what it takes.
        """
        if self._sharded is None:
            return None
        if not self._sharded.is_data_parallel:
            return "torch's second derivative is wrong under tensor parallelism"
        return None if asked else "the model is sharded; method='autograd' has each rank hold all of it, where it can"

    def _tried(self, batch: Any, differentiate: bool) -> tuple[float, Direction]:
        """The loss of one batch, and its gradient.

        Raises:
            UsageError: it draws random numbers, so that two batches together draw others than apart.
        """
        with self.measuring(), torch.set_grad_enabled(True):
            seed_everything(0)
            within = self._within
            copied = within.copy(batch)
            loss = scalar(within.one(partial(self._loss, copied), copied, ("tried", id(batch))), 0)
            if within.measured.draws:
                raise UsageError("the loss draws random numbers")
            return float(loss.detach()), self.derivative(loss) if differentiate else {}

    def _loss(self, batch: Any) -> Tensor:
        return loss_of(self._called, self.loss_fn, batch)


def check_objective(objective: Any) -> None:
    """Raises a `UsageError` where something else is given for an objective."""
    if not isinstance(objective, Objective):
        raise UsageError(
            f"objective is a {type(objective).__name__}, not an Objective: give Objective(model, loss_fn, batches)"
        )
