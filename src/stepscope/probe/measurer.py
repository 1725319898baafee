"""Full measurements on the evaluation batches, and what they need, made when the first is afforded or asked for.

The trial of the weights of micro-batches, a step of the optimizers on copies and the self-check take as long as dozens
of training steps. A short training never needs them. What costs next to nothing is refused when a probe is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stepscope.errors import UsageError, said
from stepscope.measuring import (
    ANOTHER_GRADIENT,
    Grouping,
    Measurement,
    SelfCheck,
    edge,
    grouping,
    measure_units,
    self_check,
)
from stepscope.objective import (
    HALF,
    Direction,
    LossFunction,
    Objective,
    Ranks,
    UnitDirection,
    check_before,
    digest,
    dtensors,
    is_out_of_memory,
    moved,
    random_state,
)
from stepscope.objective.process_group import number_of
from stepscope.probe.compared_updates import ComparedUpdates
from stepscope.runs import RecordedEdge

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Measurer:
    """Measures the updates that are compared, on the evaluation batches.

    Of ranks that measure together, all call its methods, each with evaluation batches of its own.

    Args:
        model: the module that is trained.
        loss_fn: see `Objective`.
        batches: the evaluation batches.
        compared: the updates.
        weight_fn: see `Objective`.
        modules: see `Objective`.
        layer: see `measure`.
        memory: see `Objective`.
        process_group: see `Objective`.
        ranks: those of the group, or of a sharded model.
        logger: for warnings.

    Attributes:
        batches: the micro-batches, those that were chosen for a budget of memory once that is known.
        is_ready: whether what a measurement needs has been made.

    Raises:
        UsageError: what can be refused without an evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batches: Iterable[Any],
        compared: ComparedUpdates,
        *,
        weight_fn: Callable[[Any], float] | None = None,
        modules: Iterable[nn.Module] = (),
        layer: Grouping | Mapping[str, str] | None = None,
        memory: float | None = None,
        process_group: ProcessGroup | None,
        ranks: Ranks,
        logger: logging.Logger,
    ) -> None:
        self.model = model
        self.batches = check_before(model, batches, weight_fn, memory)
        self._loss_fn, self._weight_fn, self._modules, self._memory = loss_fn, weight_fn, list(modules), memory
        self._process_group, self._ranks, self._logger = process_group, ranks, logger
        for path, root in {"model": model, **{f"modules[{n}]": m for n, m in enumerate(self._modules)}}.items():
            _refuse_scripted({f"{path}.{name}".rstrip("."): module for name, module in root.named_modules()})
        self._dtype = next(iter(self.parameters.values())).dtype
        self._compared = compared
        self._layer = grouping(layer, self.parameters)
        self._objective: Objective | None = None
        self._check: SelfCheck | None = None
        self._context: dict[str, Any] = {}
        self._surrogate = False  # has been said

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, as they are now."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def is_ready(self) -> bool:
        """Whether what a measurement needs has been made."""
        return self._check is not None

    @property
    def objective(self) -> Objective:
        """The loss on the evaluation batches, as a function of the present trainable parameters.

        Raises:
            UsageError: see `Objective`.
        """
        if self._objective is None:
            memory, self._memory = self._memory, None
            self._follow_dtype()
            self._objective = self._made(memory)
            _refuse_scripted(self._objective.modules())
            self.batches = self._objective.batches
        elif [*map(id, self.parameters.values())] != [*map(id, self._objective.parameters.values())]:
            # Some were frozen, unfrozen or added since.
            self._objective = self._made(None)
            grouping(self._layer, self._objective.parameters)
        return self._objective

    def _made(self, memory: float | None) -> Objective:
        return Objective(
            self.model, self._loss_fn, self.batches, self._weight_fn,
            modules=self._modules, memory=memory, process_group=self._process_group,
        )  # fmt: skip

    def _follow_dtype(self) -> None:
        """Where the model has changed its dtype since the batches were given, they follow."""
        then, first = self._dtype, next(iter(self.parameters.values()))
        if first.dtype != then:
            follow = {then: first.dtype}
            self.batches = [
                moved(batch, first.device, lambda dtype: follow.get(dtype, dtype)) for batch in self.batches
            ]

    @property
    def check(self) -> SelfCheck:
        """What the self-check finds; made when it is first asked for.

        Raises:
            UsageError: the model can't be measured.
        """
        if self._check is None:
            self.prepare()
        assert self._check is not None
        return self._check

    def prepare(self) -> tuple[float, float]:
        """Makes what a measurement needs.

        Returns:
            Seconds that a measurement will take, and a step at which the others follow.

        Raises:
            UsageError: the model can't be measured.
        """
        with random_state():
            with _refusing("this model can't be measured", "call loss_fn(model.eval(), batch).backward() to see it"):
                objective = self.objective
            with _refusing(f"{self._compared.name} can't step on copies", "its update can't be known in advance"):
                followers = self._compared.rehearse(objective.parameters)
            with _refusing("this model can't be measured", "call loss_fn(model.eval(), batch).backward() to see it"):
                check = self_check(objective)
            if not check.repeatable:
                raise UsageError(f"this model can't be measured: {check.suspicions[0]}")
            for suspicion in check.suspicions:
                self._logger.warning("%s", suspicion)
            self._check = check
            weighting = objective.weighting
            self._context = {
                "evaluation": {"sha256": self._ranks.digest(digest(self.batches))},
                "weights": {"by": weighting.by, "check": weighting.check},
                "self_check": {**vars(check), "suspicions": list(check.suspicions)},
            }
            zeros = {n: torch.zeros_like(p) for n, p in self._compared.held(objective.parameters).items()}
            following = _seconds(lambda: followers.step(zeros))
        return self._compared.count * (9 * check.seconds_loss + 3 * check.seconds_gradient), following

    @property
    def steps_of_first(self) -> float:
        """How many steps of the training the first measurement takes, roughly, before anything is timed."""
        return len(self.batches) * (12 + 6 * self._compared.count)

    @property
    def steps_of_edge(self) -> float:
        """The same of the first `edge`."""
        return 4 * len(self.batches)

    @property
    def bytes_needed(self) -> int:
        """Bytes that a measurement needs at most, beside activations: see docs/performance.md."""
        parts = [dtensors.part(p) for p in self._compared.held(self.parameters).values()]
        raised = sum(4 * p.numel() for p in self.model.parameters() if p.dtype in HALF)
        held = sum(p.numel() * max(p.element_size(), 4) for p in parts)
        others = len(self._compared.others)
        following = bool(others) + 2 * others
        updates = self._compared.count
        # Not at the same time: a step on trial, mirrored in double precision, and what measuring an update needs.
        trial, measuring = 11, 5
        return raised + held * (following + updates + max(trial, measuring))

    def measured(self, updates: dict[str, Direction], within_layers: bool = False) -> dict[str, Measurement]:
        """Measures updates, which are emptied: each becomes its unit direction, and two copies of a model are many."""
        check, objective = self.check, self.objective
        if not self._ranks.alone:
            # An update that is zero is left out.
            self._ranks.check_same("the updates that move", [number_of([*updates])], "gradients are averaged over them")
            for label, update in updates.items():
                objective.check_direction(label, update)
        with objective.measuring():
            units = {label: UnitDirection.of(updates.pop(label), objective.parameters) for label in list(updates)}
            measurements = measure_units(
                objective,
                units,
                check.method,
                landscape=True,
                breakdown=True,
                within_layers=within_layers,
                layer=self._layer,
            )
        self._warn_of_another_gradient(measurements)
        return measurements

    def edge(self, step: Direction, measurement: Measurement | None, decay: Direction | None) -> RecordedEdge:
        """How far an update is from where it would raise the loss of the evaluation batches.

        Args:
            step: the update.
            measurement: of the same, for its slope; ``None`` where there is none.
            decay: the part of it that weight decay makes, where that is known.
        """
        slope = None if measurement is None else measurement.slope * measurement.norm
        return RecordedEdge(**edge(self.objective, step, slope=slope, decay=decay).record())

    def context(self) -> dict[str, Any]:
        """What the records of a run should say of its measurements, as it was when they were prepared.

        One rank alone may ask for it.
        """
        return dict(self._context)

    def _warn_of_another_gradient(self, measurements: Mapping[str, Measurement]) -> None:
        """Says once that along a direction the loss has another slope than its gradient says."""
        if not self.check.gradient_agrees or self._surrogate:
            return
        for label, measurement in measurements.items():
            if measurement.gradient_agrees is False:
                self._surrogate = True
                self._logger.warning(
                    "along %s the loss has the slope %.4g, and its gradient says %.4g: %s",
                    label, measurement.loss_slope, measurement.slope, ANOTHER_GRADIENT,
                )  # fmt: skip
                return


def _refuse_scripted(modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{path} is scripted (torch.jit): it computes otherwise after its first calls, so that measuring would "
                "change the training by rounding; give the module that it was made of"
            )


@contextmanager
def _refusing(refusal: str, remedy: str) -> Iterator[None]:
    """Makes one line of whatever goes wrong inside."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UsageError("not enough memory to measure: give memory=0.5, or smaller batches") from error
        raise UsageError(f"{refusal} ({type(error).__name__}: {said(error)}): {remedy}") from error


def _seconds(work: Callable[[], Any]) -> float:
    """The time that it takes the second time."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
