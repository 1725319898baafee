"""What a probe does around each step of a training: it carries out what is planned, and what fails ends no training.

Before a step is made, what is due is measured; when it has been made, it is compared with the one that was measured,
and recorded. Ranks that measure together do this together: what fails on one of them fails on all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.errors import UsageError
from stepscope.measuring import Measurement
from stepscope.objective import Direction, Ranks, dtensors, held, is_gathered, is_known_to_all, random_state
from stepscope.probe.agenda import Agenda
from stepscope.probe.compared_updates import ComparedUpdates, NoUpdateError
from stepscope.probe.measurer import Measurer
from stepscope.probe.own_edges import OwnEdges
from stepscope.probe.own_steps import OwnSteps
from stepscope.probe.recorder import Recorder
from stepscope.probe.schedule import Plan, Schedule, Turn
from stepscope.probe.step_check import ExpectedStep
from stepscope.runs import DirectionRecord, RecordedEdge

_MAX_FAILURES = 3


class TrainingSteps:
    """Measures around the steps of a training.

    Args:
        step: steps that the training made before.
        ranks: those that measure together.
        schedule: when full measurements are made, by the clock of this process.
        compared: the updates that they compare.
        measurer: makes them.
        own_steps: measures steps on their own batches.
        own_edges: measures how far steps are from the edge.
        recorder: keeps what was measured.
        logger: for warnings.
        quiet: whether to keep the announcement of cost to itself.

    Attributes:
        step: steps of the training so far.
        is_closed: whether nothing is to be measured any more.
    """

    def __init__(
        self,
        step: int,
        ranks: Ranks,
        schedule: Schedule,
        compared: ComparedUpdates,
        measurer: Measurer,
        own_steps: OwnSteps,
        own_edges: OwnEdges,
        recorder: Recorder,
        logger: logging.Logger,
        *,
        quiet: bool,
    ) -> None:
        self.step, self.is_closed = step, False
        self._ranks, self._schedule, self._logger = ranks, schedule, logger
        self._compared, self._measurer, self._recorder = compared, measurer, recorder
        self._own_steps, self._own_edges = own_steps, own_edges
        self._agenda = Agenda(ranks, own_steps.wants, self._wants_edge, self._plans_ahead)
        self._silent = self._quiet = quiet
        self._expected: ExpectedStep | None = None
        self._edges: dict[str, RecordedEdge] = {}
        self._failures = 0
        self._off = self._lost = False
        self._remarked = self._idle = self._unkept = False  # what is said once has been said
        # A little of each weight, until a step is seen or something is measured.
        self._untrained = [(p, _beginning(p).clone()) for p in self._held().values()]

    def begin(self) -> None:
        """The next step of the training begins."""
        due = False
        try:
            due = not self._has_ended() and self._agenda.has_own(self.step + 1)
        except Exception as error:
            self._failed(error)
        self._own_steps.begin(due, self._held)

    def before(self, _: Optimizer, entered: float) -> None:
        """A step of the training is about to be made, its gradients on the parameters."""
        self._untrained = []
        self.step += 1
        self._own_steps.look_back(self.step)
        self._own_steps.note_rates()
        try:
            with self._schedule.turn(self.step, entered, self._agenda.plan(self.step)) as turn:
                self._expected, self._edges = None, {}
                if not self._quiet and (turn.plan == "measure" or self._schedule.step_seconds is not None):
                    self._quiet = True
                    self._announce()
                edge_is_due = self._agenda.has_edge(self.step, self._own_steps.is_due)
                is_due = self._own_steps.is_due or edge_is_due or turn.plan != "pass"
                if is_due and self._has_ended(is_gathered(self._measurer.model)):
                    turn.plan = "pass"
                    return
                if self._own_steps.is_due:
                    self._look_at_own_step(turn)
                if self._off:
                    turn.plan = "pass"
                    return
                self.keep(self._recorder.keep_waiting)  # the step before was not made
                if turn.plan != "pass" and not self._measurer.is_ready:
                    self._prepare_in(turn)
                if turn.plan == "measure":
                    self._own_edges.passed(self.step)
                elif edge_is_due:
                    self._look_at_own_edge(turn)
                if turn.plan == "pass":
                    self._compared.lose()
                else:
                    with self._ranks.agreed("what is measured before a step"), held():
                        self._carry_out(turn)
        except Exception as error:
            self._failed(error)
        except BaseException:  # Ctrl-C: the step isn't made
            self.step -= 1
            raise

    def after(self, _: Optimizer, entered: float) -> None:
        """The step has been made: was it the one that was measured?"""
        if self._recorder.waiting or self._expected is not None:
            try:
                with self._ranks.agreed("the step that was made beside the one that was measured"):
                    self._compare_with_made()
            except Exception as error:
                self._failed(error)
            else:
                self.keep(self._recorder.keep_waiting)
        if not self.is_closed:
            edges, self._edges = self._edges, {}
            if (record := self._own_steps.after(self.step, edges or None)) is not None:
                self.keep(lambda: self._recorder.keep_step(record))
            self.begin()
        self._schedule.count(time.perf_counter() - entered)

    def broken(self, in_a_row: int) -> None:
        """Not all of several optimizers have stepped: what was measured is no step of the training."""
        self._expected = None
        self._recorder.waiting = []
        self._own_steps.drop()
        if in_a_row == _MAX_FAILURES and not self._off:
            self._off = True
            self._own_steps.stop()
            self._logger.warning(
                "the probe is off: the optimizers of %s step in turns, and make no step together: give each a probe "
                "of its own",
                self._compared.name,
            )

    def prepare(self) -> None:
        """Makes what full measurements need, and says it in the records."""
        with self._ranks.agreed("what a measurement needs"), held():
            self._schedule.expect(*self._measurer.prepare())
        if (plan := self._measurer.objective.memory) is not None and not self._silent:
            tell(str(plan))
        self.keep(lambda: self._recorder.describe(self._measurer.context()))

    def measure_now(self, gradients: Literal["evaluation", "training"], within_layers: bool) -> dict[str, Measurement]:
        """See `Probe.measure`."""
        if not self._measurer.is_ready:
            self.prepare()
        with self._ranks.agreed("a measurement"), held(), random_state():
            self._refresh()
            if gradients == "training":
                self._compared.check_gradients(self._ranks, self._measurer.parameters)
            gradient = self._measurer.objective.gradient()[1] if gradients == "evaluation" else None
            updates = self._compared.updates(self._measurer.parameters, gradient)
            measurements, records = self._measured(updates, self.step + 1, gradients, within_layers)
            self._untrained = []
            self.keep(lambda: self._recorder.keep(records))
            return measurements

    def remark_unseen(self) -> None:
        """Says once that the training goes on without the optimizer that the probe is attached to."""
        then, self._untrained = self._untrained, []
        if any(not torch.equal(_beginning(p).to(start.device, start.dtype), start) for p, start in then):
            self._logger.warning(
                "no step of %s was seen, yet the weights have moved: if another optimizer trains, or its step was "
                "replaced, attach the probe to the one that does, after that",
                self._compared.name,
            )

    def keep(self, write: Callable[[], None]) -> None:
        """Writes records. Where that fails, on a full disk, say, it is said once; they stay in memory."""
        try:
            write()
        except Exception as error:
            if not self._unkept:
                self._unkept = True
                why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                self._logger.warning("the records of step %d are kept in memory alone (%s)", self.step, why)

    def _has_ended(self, gathered: bool = False) -> bool:
        """Whether none of the ranks that measure together measures more: one has closed its probe, or may end first.

        Nor is a model measured whose weights are gathered when the optimizer steps: that would free them, and so train
        otherwise.

        Args:
            gathered: whether they are.
        """
        left = self._ranks.left()
        if not self._ranks.alone and _is_joined(self._measurer.model):
            left = "join() lets ranks make different numbers of steps, so give them equally many batches without it"
        if gathered:
            left = (
                "the weights are gathered when the optimizer steps their parts (a validation since `backward`?), and "
                "torch trains on with the gathered ones as they were: call model.reshard() before optimizer.step()"
            )
        if left and not self._lost:
            self._lost = self._off = True
            self._own_steps.stop()
            self._compared.lose()
            self._logger.warning("the probe is off: %s; training goes on", left)
        return self._lost

    def _wants_edge(self, step: int, with_own: bool) -> bool:
        return not self._off and (with_own or not self._own_steps.is_on) and self._own_edges.is_due(step)

    def _plans_ahead(self, step: int, count: int) -> list[Plan]:
        return ["pass"] * count if self._off else self._schedule.ahead(step, count)

    def _look_at_own_step(self, turn: Turn) -> None:
        _synchronize(self._measurer.parameters)
        turn.settle()
        with turn.aside():
            self._own_steps.before(self.step, self._held)

    def _look_at_own_edge(self, turn: Turn) -> None:
        _synchronize(self._measurer.parameters)
        turn.settle()
        with turn.aside(), self._ranks.agreed("how far the step is from the edge"), held(), random_state():
            if (found := self._own_edges.measured(self.step)) is not None:
                self._expected, self._edges = ExpectedStep(self._held(), found[0]), {"evaluation": found[1]}
            _synchronize(self._measurer.parameters)

    def _prepare_in(self, turn: Turn) -> None:
        _synchronize(self._measurer.parameters)
        turn.settle()
        try:
            with turn.aside():
                self.prepare()
        except Exception as error:
            self._off = True
            turn.plan = "pass"
            why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            self._logger.warning("nothing is measured on the evaluation batches, and training goes on: %s", why)
        else:
            turn.reconsider()
            self._agenda.drop(self.step)
            turn.plan = self._agenda.agree(turn.plan)

    def _carry_out(self, turn: Turn) -> None:
        _synchronize(self._measurer.parameters)
        turn.settle()
        with random_state():
            self._compared.check_gradients(self._ranks, self._measurer.parameters)
            if any(self._ranks.concatenated([float(self._compared.skipped())])):
                if turn.plan == "measure":
                    turn.postpone()
                return
            self._refresh()
            try:
                if turn.plan == "measure":
                    self._measure_step(turn)
            except Exception:
                self._compared.follow(self._measurer.parameters)
                raise
            # The others see every gradient once; after Ctrl-C it comes again.
            self._compared.follow(self._measurer.parameters)
        _synchronize(self._measurer.parameters)

    def _measure_step(self, turn: Turn) -> None:
        try:
            with self._ranks.agreed("the updates of a step", NoUpdateError):
                updates = self._compared.updates(self._measurer.parameters)
        except NoUpdateError as error:
            if not self._idle:
                self._idle = True
                self._logger.warning("nothing to measure at step %d: %s", self.step, error)
            return
        own = updates.get(self._compared.own)
        measurements, self._recorder.waiting = self._measured(updates, self.step, "training")
        self._untrained = []
        if own is not None:
            decay = self._compared.decay(self._measurer.parameters)
            self._edges = {"evaluation": self._measurer.edge(own, measurements[self._compared.own], decay)}
            self._expected = ExpectedStep(self._held(), own)
        self._failures = 0
        _synchronize(self._measurer.parameters)
        turn.measured()

    def _measured(
        self, updates: dict[str, Direction], step: int, source: str, within_layers: bool = False
    ) -> tuple[dict[str, Measurement], list[DirectionRecord]]:
        measurements = self._measurer.measured(updates, within_layers)
        rates = [group.get("lr") for group in self._compared.groups]
        place = {
            "trajectory": self._compared.name,
            "seed": 0,
            "step": step,
            "gradient": source,
            "followed_steps": self._compared.followed,
            "lr": [None if rate is None else float(rate) for rate in rates],
        }
        records = [DirectionRecord.of(m.record(), direction=label, **place) for label, m in measurements.items()]
        return measurements, records

    def _compare_with_made(self) -> None:
        """Hooks of the optimizer can make the step another than was measured: then that is withdrawn."""
        if self._expected is None:
            return
        made = self._expected.compared_with(self._held())
        self._expected = None
        withdrawn = self._compared.of_the_optimizer if made.is_another else ()
        if made.is_another:
            self._edges = {}
        self._recorder.check(self._compared.own, made.error, withdrawn)
        remark = made.remark(self._compared.name)
        if remark is not None and not self._remarked:  # its percentage changes from step to step
            self._remarked = True
            self._logger.warning("%s", remark)

    def _failed(self, error: Exception) -> None:
        """Training goes on; a probe that fails again and again is switched off, on all ranks."""
        self._failures += self._ranks.alone or is_known_to_all(error)
        why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        self._logger.warning("nothing measured at step %d (%s)", self.step, why)
        self._logger.debug("the failure at step %d", self.step, exc_info=error)
        if self._failures >= _MAX_FAILURES:
            # The hook stays until `close`: this is called while the optimizer goes through its hooks.
            self._off = True
            self._compared.lose()
            self._logger.warning("the probe is off after %d failures in a row; training goes on", self._failures)

    def _held(self) -> dict[str, nn.Parameter]:
        return self._compared.held(self._measurer.parameters)

    def _refresh(self) -> None:
        """Where parameters were frozen, unfrozen or added since, the others begin anew."""
        if self._compared.lost_track(self._measurer.parameters):
            self._compared.lose()
            self._schedule.forget()
            self._agenda.drop(self.step)

    def _announce(self) -> None:
        """Says once, before anything is measured, when that will be and what it costs."""
        seconds, mebibytes = self._schedule.cost, self._measurer.bytes_needed / 2**20
        costs = [f"{seconds:.2g} s"] * math.isfinite(seconds) + [f"up to {mebibytes:,.0f} MiB"] * (mebibytes >= 1)
        full = self._schedule.described(self.step, self._own_steps.steps)
        tell(
            f"your step is measured on its own batch {self._own_steps.described()}; "
            f"in full {full}{' (' + ', '.join(costs) + ')' if costs else ''}"
        )


def tell(text: str) -> None:
    """A line for a person. An error of that, on one rank alone, would leave the others waiting."""
    with contextlib.suppress(OSError):
        print(f"stepscope: {text}", file=sys.stderr)


def _is_joined(model: nn.Module) -> bool:
    """Whether torch's `join()` answers for ranks that have no batches left: to its exchanges, and to no others."""
    config = getattr(model, "_join_config", None)
    return config is not None and config.enable and not config.throw_on_early_termination


def _beginning(parameter: Tensor) -> Tensor:
    return dtensors.part(parameter).reshape(-1)[:64]


def _synchronize(parameters: Mapping[str, nn.Parameter]) -> None:
    """Work that is still queued on a GPU is the training's, not the measurement's (and the other way round)."""
    if any(p.device.type == "cuda" for p in parameters.values()):
        torch.cuda.synchronize()
