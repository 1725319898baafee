"""The probe: attaches to an optimizer's step, measures at intervals, and leaves the training as it is."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import JointStepHook, parts_of
from stepscope.directions import Factory
from stepscope.errors import UsageError, require
from stepscope.judging import Findings, findings
from stepscope.measuring import (
    Grouping,
    Measurement,
    SelfCheck,
)
from stepscope.objective import (
    HALF,
    Direction,
    LossFunction,
    Ranks,
    ShardedModel,
    check_model,
    check_parameters,
    dtensors,
    form_of,
    held,
    is_known_to_all,
    random_state,
    ranks_of,
    resharded,
)
from stepscope.objective.replay import Replay
from stepscope.probe.agenda import Agenda
from stepscope.probe.compared_updates import ComparedUpdates, NoUpdateError
from stepscope.probe.measurer import Measurer
from stepscope.probe.own_edges import EdgeSchedule, OwnEdges
from stepscope.probe.own_steps import OwnSteps
from stepscope.probe.recorder import Recorder
from stepscope.probe.run_directories import open_run
from stepscope.probe.schedule import Plan, Schedule, Turn, paused
from stepscope.probe.step_batch import BatchWatch
from stepscope.probe.step_check import ExpectedStep
from stepscope.probe.step_meter import StepMeter
from stepscope.probe.step_schedule import StepSchedule
from stepscope.probe.trackers import as_log
from stepscope.runs import DirectionRecord, Record, RecordedEdge, latest, show, versions, write_atomically

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOLLOWED_STEPS = 20
"""How many steps before a measurement the other optimizers see gradients: what their momentum remembers."""

_MAX_FAILURES = 3


class Probe:
    """Measures a training run while it trains, and changes nothing about it.

    Attached to the optimizer's step: before an update, at intervals, it measures the update that the optimizer is
    about to make, and those that others would make of the same gradients, on fixed evaluation batches. A measurement
    that fails is reported and skipped.

    Of a model that is sharded over ranks (`fully_shard`, tensor parallelism), or that ranks of a `process_group` train
    together (`DistributedDataParallel`), all ranks attach a probe, each with evaluation batches of its own. They
    measure the same steps, and have the same records. The first rank decides when, and writes, logs and speaks.

    Args:
        model: the module that is trained.
        optimizer: its optimizer: any `torch.optim.Optimizer`, or a wrapper that has one as ``.optimizer`` (Accelerate).
            Several that share the parameters out between them (Muon for matrices, AdamW for the rest) are measured as
            one: a list, or a container that has them as ``.optimizers``.
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss; ``None`` for Hugging Face models (see `Objective`).
        eval_batches: the fixed micro-batches that are measured on.
        every: measure at each ``every``-th step, or ``every(step) -> bool``, steps counted from 1; less often where
            `max_overhead` doesn't allow it.
        directions: ``{label: factory}`` of optimizers to compare with (``parameters -> optimizer``). ``None``: SGD with
            momentum, Adam, and the user's own with this step's gradient clipped. The user's own is always measured.
        clip_fractions: how much of this step's gradient is clipped, one direction for each, to see along the training
            how much to clip. ``None``: the paper's (10% for SGD, 50% for others), none where ``directions`` are given.
        run_dir: directory for the records; ``None`` keeps them in memory. Where it holds those of another training,
            one that begins takes the next number (``runs/probe-2``), and one that goes on (`step`) the newest.
        overwrite: whether to take ``run_dir`` itself, and replace its records where a training begins.
        log: where numbers go too: a function of ``(values, step)`` or a tracker (`stepscope.probe.trackers.as_log`).
        max_overhead: the part of the training time that measuring may add; ``None`` for no limit. The checks at the
            start count, so the first measurement waits until the training has earned it.
        steps: the length of the training in steps, `step` included; ``None`` where it isn't known.
        step: steps that the training made before: where it goes on from a checkpoint, so that the records go on too.
        weight_fn: see `Objective`.
        modules: see `Objective`: modules beside `model` that `loss_fn` calls, where they can't be found from it.
        layer: what a layer is in the breakdown: see `measure`.
        memory: see `Objective`: what a measurement may take; evaluation batches are cut to fit.
        source: which examples `eval_batches` are, for the records and the page.
        process_group: ranks that train together and are to measure together (`torch.distributed.group.WORLD` for all).
            ``None``: this process measures by itself, without waiting for others; all ranks, where the model is
            sharded.
        quiet: whether to keep the announcement of cost to itself.

    Attributes:
        source: which examples they are.
        run_dir: the directory that the records go to: `run_dir`, or the numbered one that it became; ``None`` on ranks
            other than the first.
        step: steps of the training so far. A record's step is that of the update before which it was measured.

    Raises:
        UsageError: the model can't be measured (see `Objective`), its loss is random, the optimizer works by
            reevaluation, the run directory can't be used, or ranks differ in their models or settings.

    Example:
        >>> model = nn.Linear(2, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.ones(4, 2)
        >>> def loss_fn(model, batch): return model(batch).square().mean()
        >>> with Probe(model, optimizer, loss_fn, [batch], every=2, max_overhead=None, quiet=True) as probe:
        ...     for _ in range(4):
        ...         optimizer.zero_grad(); loss_fn(model, batch).backward(); optimizer.step()
        >>> [(r["step"], r["direction"]) for r in probe.records if r["direction"].startswith("own")]
        [(2, 'own SGD'), (2, 'own SGD clip 10%'), (4, 'own SGD'), (4, 'own SGD clip 10%')]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        loss_fn: LossFunction | None,
        eval_batches: Iterable[Any],
        *,
        every: int | Callable[[int], bool] = 100,
        directions: Mapping[str, Factory] | None = None,
        clip_fractions: Sequence[float] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        log: Any = None,
        max_overhead: float | None = 0.05,
        steps: int | None = None,
        step: int = 0,
        weight_fn: Callable[[Any], float] | None = None,
        modules: Iterable[nn.Module] = (),
        layer: Grouping | Mapping[str, str] | None = None,
        memory: float | None = None,
        source: str = "the run's own evaluation batches",
        process_group: ProcessGroup | None = None,
        quiet: bool = False,
    ) -> None:
        started = time.perf_counter()
        optimizers = parts_of(optimizer)
        if any(isinstance(part, torch.optim.LBFGS) for part in optimizers):
            raise UsageError("LBFGS reevaluates the loss within its step, so its update can't be known in advance")
        modules = list(modules)
        self._ranks, sharded = _ranks_of(model, process_group)
        self._logger = _logger_of(self._ranks)
        self._clip_fractions = None if clip_fractions is None else list(clip_fractions)
        self._loss_fn, self.source, self.step = loss_fn, source, step
        self._silent = self._quiet = quiet or self._ranks.rank > 0
        self._expected: ExpectedStep | None = None
        self._edges: dict[str, RecordedEdge] = {}
        self._failures = 0
        self._off = self._closed = False
        self._remarked = self._idle = self._unkept = False  # what is said once has been said
        with self._ranks.agreed("the settings of a probe"):
            _refuse_optimizers(optimizers, self._ranks)
            self._compared = ComparedUpdates(optimizers, directions, self._clip_fractions, self._logger)
            self._measurer = Measurer(
                model, loss_fn, eval_batches, self._compared,
                weight_fn=weight_fn, modules=modules, layer=layer, memory=memory,
                process_group=process_group, ranks=self._ranks, logger=self._logger,
            )  # fmt: skip
            as_log(log)  # refuses what is no tracker before anything is measured
            # A little of each weight, until a step is seen or something is measured.
            self._untrained = [(p, _beginning(p).clone()) for p in self._held().values()]
            self._schedule = Schedule(
                every if self._ranks.rank == 0 else _never, max_overhead, None,
                FOLLOWED_STEPS if self._compared.others else 0,
                cost_in_steps=self._measurer.steps_of_first, first=step + 1,
            )  # fmt: skip
            replay = Replay(model, loss_fn, modules, self._ranks, sharded)
            own = StepSchedule(self._schedule, steps, step + 1)
            self._own_steps = OwnSteps(
                BatchWatch(model, averaged=not self._ranks.alone), StepMeter(replay),
                own, self._compared.name, lambda: self._compared.groups,
                lambda text: None if self._silent else print(f"stepscope: {text}", file=sys.stderr), self._logger,
            )  # fmt: skip
            edges = EdgeSchedule(self._schedule, own, step + 1, self._measurer.steps_of_edge)
            self._own_edges = OwnEdges(edges, self._measurer, self._compared, self._ranks, self._logger)
        self._agenda = Agenda(self._ranks, self._own_steps.wants, self._wants_edge, self._plans_ahead)
        options = (self._compared.name, [*self._compared.others], self._clip_fractions, max_overhead, steps, step)
        mine = [form_of(self._measurer.parameters, options)]
        self._ranks.check_same("models or settings of the probe", mine, "give all ranks the same")
        run = None
        with self._ranks.agreed("the run directory"):
            if run_dir is not None and self._ranks.rank == 0:
                configuration, context = self._configuration(), self._context()
                run = open_run(run_dir, configuration, context, step=step, overwrite=overwrite, quiet=quiet)
        self.run_dir: Path | None = None if run is None else run.path
        self._recorder = Recorder(run, log if self._ranks.rank == 0 else None)
        self._hook = JointStepHook(optimizers, self._before_step, self._after_step, self._broken_step)
        self._schedule.begin(time.perf_counter() - started)
        self._begin_step()

    @property
    def eval_batches(self) -> list[Any]:
        """The micro-batches that are measured on."""
        return self._measurer.batches

    @property
    def check(self) -> SelfCheck:
        """What the self-check finds; made when it is first asked for, and before the first full measurement.

        Raises:
            UsageError: the model can't be measured.
        """
        if not self._measurer.is_ready:
            with paused(), self._ranks.agreed("what a measurement needs"), held():
                self._prepare()
        return self._measurer.check

    @property
    def records(self) -> list[dict[str, Any]]:
        """What has been measured, as `measurements.jsonl` has it: a dictionary for each direction and step."""
        return [record.as_json() for record in self._recorder.records]

    @property
    def step_records(self) -> list[dict[str, Any]]:
        """The optimizer's own steps, on the batches that made them or to the edge, as `steps.jsonl` has them."""
        return [record.as_json() for record in self._recorder.steps]

    def loss_fn(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a training batch, by the ``loss_fn`` that the probe was given: for ``backward``, in place of it.

        At the steps that are measured on their own batches, batch and loss are kept, by reference, until the step has
        been made. Where gradients are accumulated, each batch of a step is given. A Hugging Face model that is called
        as ``model(**batch)`` needs none of this.

        Args:
            model: what the loop trains.
            batch: of the training.

        Example:
            ``probe.loss_fn(model, batch).backward(); optimizer.step(); optimizer.zero_grad()``
        """
        return self._own_steps.loss(self._loss_fn, model, batch)

    def batch(self, batch: Any) -> AbstractContextManager[None]:
        """Inside, the loop computes the loss of this batch in its own way.

        As `loss_fn`, for loops whose training loss is more than that: autocast around it, or a factor. It costs a
        forward pass more at each measured step.

        Args:
            batch: what the probe's ``loss_fn`` gets; the gradient has to be that of this loss, or a multiple of it.

        Example:
            ``with probe.batch(batch): (loss_fn(model, batch) / 4).backward()``
        """
        return self._own_steps.batch(batch)

    def measure(
        self, *, gradients: Literal["evaluation", "training"] = "evaluation", within_layers: bool = False
    ) -> dict[str, Measurement]:
        """Measures now; of ranks that measure together, all call this.

        Args:
            gradients: what the optimizers get to see: the gradient of the evaluation batches, or, between ``backward``
                and ``step``, those that are on the parameters (unscaled, where there is a gradient scaler).
            within_layers: whether to split the sharpness into what comes from within layers and from between them, for
                the cost of one more direction a layer, each time.

        Returns:
            ``{label: measurement}``; recorded and logged as well.

        Raises:
            UsageError: the loss isn't finite, there is no gradient, all updates are zero (a learning rate of 0), or
                the probe is closed.
        """
        if self._closed:
            raise UsageError("the probe is closed: make another")
        with paused(), self._ranks.agreed("a measurement"), held(), random_state():
            if not self._measurer.is_ready:
                self._prepare()
            self._refresh()
            gradient = self._measurer.objective.gradient()[1] if gradients == "evaluation" else None
            updates = self._compared.updates(self._measurer.parameters, gradient)
            measurements, records = self._measured(updates, self.step + 1, gradients, within_layers)
            self._untrained = []
            self._recorder.keep(records)
            return measurements

    @property
    def overhead(self) -> float:
        """Time that measuring took so far, as a part of the training's."""
        return self._schedule.overhead

    def loss(self) -> float:
        """The loss on the evaluation batches, as the model is now; of ranks that measure together, all call this."""
        with paused(), held(), random_state():
            return self._measurer.objective.loss()

    def findings(self) -> Findings:
        """What the records so far say about the training: see `stepscope.findings`."""
        return findings([*self._recorder.records, *self._recorder.steps])

    def paused(self) -> AbstractContextManager[None]:
        """Time that passes inside is not the training's: a validation, say, earns no time for measuring.

        Example:
            ``with probe.paused(): validate(model)``
        """
        return paused()

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page of what has been measured so far.

        Args:
            path: the HTML file.

        Raises:
            MissingExtraError: altair, vl-convert or jinja2 is not installed.
            UsageError: the file can't be written.
        """
        from stepscope.report import render_report

        self._remark_unseen()
        run = {"configuration": self._configuration(), "context": {**self._context(), **self._spent()}}
        page = render_report(run, latest(self._recorder.records), latest(self._recorder.steps))
        write_atomically(path, page.encode(errors="replace"))
        return Path(path)

    def to_pandas(self, *, steps: bool = False) -> Any:
        """What has been measured so far as a `pandas.DataFrame`: a row for each direction and step.

        Args:
            steps: whether to give the optimizer's own steps on their own batches instead, a row for each.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        records: Sequence[Record] = latest(self._recorder.steps) if steps else latest(self._recorder.records)
        return require("pandas", "pandas").DataFrame([record.flat() for record in records])

    def plot(self, chart: str = "landscape", step: int | None = None) -> Any:
        """A chart of the page, for a notebook.

        Args:
            chart: ``"landscape"``, ``"sharpness"``, ``"magnitudes"``, …; another name raises an error that lists them.
            step: a measured step, where the chart shows one; ``None`` is the last.

        Returns:
            The chart, of Altair.

        Raises:
            MissingExtraError: altair is not installed.
            UsageError: there is no such chart, or what it shows wasn't measured.
        """
        from stepscope.report import chart_of

        return chart_of(latest(self._recorder.records), chart, self._compared.name, step)

    def __repr__(self) -> str:
        own, full = (len({record.step for record in kept}) for kept in (self._recorder.steps, self._recorder.records))
        where = "in memory" if self.run_dir is None else f"in {show(self.run_dir)}"
        return (
            f"Probe({self._compared.name} on {type(self._measurer.model).__name__}, step {self.step:,}: {own} measured "
            f"on their own batches, {full} beside others, for {self.overhead:.1%} of the training's time; {where})"
        )

    def close(self) -> None:
        """Takes the probe off the optimizer; closing twice does nothing."""
        self._remark_unseen()
        self._closed = True
        self._own_steps.drop()
        self._hook.remove()
        try:
            self._recorder.describe(self._spent())
        finally:
            self._recorder.close()
            self._compared.lose()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _before_step(self, _: Optimizer, entered: float) -> None:
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
                if self._own_steps.is_due:
                    self._look_at_own_step(turn)
                if self._off:
                    turn.plan = "pass"
                    return
                self._keep(self._recorder.keep_waiting)  # the step before was not made
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

    def _begin_step(self) -> None:
        """The next step begins."""
        due = False
        try:
            due = self._agenda.has_own(self.step + 1)
        except Exception as error:
            self._failed(error)
        self._own_steps.begin(due, self._held)

    def _wants_edge(self, step: int, with_own: bool) -> bool:
        return not self._off and (with_own or not self._own_steps.is_on) and self._own_edges.is_due(step)

    def _plans_ahead(self, step: int, count: int) -> list[Plan]:
        return ["pass"] * count if self._off else self._schedule.ahead(step, count)

    def _look_at_own_step(self, turn: Turn) -> None:
        _synchronize(self._held())
        turn.settle()
        with turn.aside():
            self._own_steps.before(self.step, self._held)

    def _look_at_own_edge(self, turn: Turn) -> None:
        _synchronize(self._held())
        turn.settle()
        with turn.aside(), self._ranks.agreed("how far the step is from the edge"), held(), random_state():
            if (found := self._own_edges.measured(self.step)) is not None:
                self._expected, self._edges = ExpectedStep(self._held(), found[0]), {"evaluation": found[1]}
            _synchronize(self._held())

    def _prepare_in(self, turn: Turn) -> None:
        _synchronize(self._held())
        turn.settle()
        try:
            with turn.aside(), self._ranks.agreed("what a measurement needs"), held():
                self._prepare()
        except Exception as error:
            self._off = True
            turn.plan = "pass"
            why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            self._logger.warning("nothing is measured on the evaluation batches, and training goes on: %s", why)
        else:
            turn.reconsider()
            self._agenda.drop(self.step)
            turn.plan = self._agenda.agree(turn.plan)

    def _prepare(self) -> None:
        """Makes what full measurements need, and says it in the records."""
        self._schedule.expect(*self._measurer.prepare())
        if (plan := self._measurer.objective.memory) is not None and not self._silent:
            print(f"stepscope: {plan}", file=sys.stderr)
        self._keep(lambda: self._recorder.describe(self._measurer.context()))

    def _after_step(self, _: Optimizer, entered: float) -> None:
        """The step has been made: was it the one that was measured?"""
        if self._recorder.waiting or self._expected is not None:
            try:
                with self._ranks.agreed("the step that was made beside the one that was measured"):
                    self._compare_with_made()
            except Exception as error:
                self._failed(error)
            else:
                self._keep(self._recorder.keep_waiting)
        if not self._closed:
            edges, self._edges = self._edges, {}
            if (record := self._own_steps.after(self.step, edges or None)) is not None:
                self._keep(lambda: self._recorder.keep_step(record))
            self._begin_step()
        self._schedule.count(time.perf_counter() - entered)

    def _keep(self, write: Callable[[], None]) -> None:
        """Writes records. Where that fails, on a full disk, say, it is said once; they stay in memory."""
        try:
            write()
        except Exception as error:
            if not self._unkept:
                self._unkept = True
                why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                self._logger.warning("the records of step %d are kept in memory alone (%s)", self.step, why)

    def _broken_step(self, in_a_row: int) -> None:
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

    def _carry_out(self, turn: Turn) -> None:
        _synchronize(self._measurer.parameters)
        turn.settle()
        with random_state():
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

    def _remark_unseen(self) -> None:
        """Says once that the training goes on without the optimizer that the probe is attached to."""
        then, self._untrained = self._untrained, []
        if any(not torch.equal(_beginning(p).to(start.device, start.dtype), start) for p, start in then):
            self._logger.warning(
                "no step of %s was seen, yet the weights have moved: if another optimizer trains, or its step was "
                "replaced, attach the probe to the one that does, after that",
                self._compared.name,
            )

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
        seconds, mebibytes = self._schedule.cost, self._memory() / 2**20
        costs = [f"{seconds:.2g} s"] * math.isfinite(seconds) + [f"up to {mebibytes:,.0f} MiB"] * (mebibytes >= 1)
        full = self._schedule.described(self.step, self._own_steps.steps)
        print(
            f"stepscope: your step is measured on its own batch {self._own_steps.described()}; "
            f"in full {full}{' (' + ', '.join(costs) + ')' if costs else ''}",
            file=sys.stderr,
        )

    def _memory(self) -> int:
        """Bytes that a measurement needs at most, beside activations: see docs/performance.md."""
        parts = [dtensors.part(p) for p in self._held().values()]
        raised = sum(4 * p.numel() for p in self._measurer.model.parameters() if p.dtype in HALF)
        held = sum(p.numel() * max(p.element_size(), 4) for p in parts)
        others = len(self._compared.others)
        following = bool(others) + 2 * others
        updates = self._compared.count
        # Not at the same time: a step on trial, mirrored in double precision, and what measuring an update needs.
        trial, measuring = 11, 5
        return raised + held * (following + updates + max(trial, measuring))

    def _configuration(self) -> dict[str, Any]:
        return {
            "experiment": "probe",
            "model": type(self._measurer.model).__name__,
            "parameters": sum(p.numel() for p in self._measurer.parameters.values()),
            "optimizer": self._compared.name,
            "directions": list(self._compared.others),
            **({} if self._clip_fractions is None else {"clip_fractions": self._clip_fractions}),
        }

    def _spent(self) -> dict[str, Any]:
        """What measuring took, as a part of the training's time, once there is some."""
        return {"overhead": self.overhead} if self.overhead else {}

    def _context(self) -> dict[str, Any]:
        name = type(self._measurer.model).__name__
        first = next(iter(self._measurer.parameters.values()))
        return {
            "source": {"title": self.source},
            "model": {"title": f"Optimizing {name}"},
            "device": f"{str(first.dtype).removeprefix('torch.')} on {first.device}",
            **self._measurer.context(),
            "versions": versions(),
        }


def _beginning(parameter: Tensor) -> Tensor:
    return dtensors.part(parameter).reshape(-1)[:64]


def _ranks_of(model: Any, process_group: ProcessGroup | None) -> tuple[Ranks, ShardedModel | None]:
    """The ranks that measure together; all of them where the model is sharded."""
    check_model(model)
    resharded(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_parameters(parameters)
    return ranks_of(model, parameters, process_group)


def _logger_of(ranks: Ranks) -> logging.Logger:
    """What is said once is said by the first rank, which knows of the others' failures."""
    if ranks.rank == 0:
        return logging.getLogger("stepscope")
    logger = logging.getLogger("stepscope.others")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    return logger


def _refuse_optimizers(optimizers: Sequence[Optimizer], ranks: Ranks) -> None:
    if not ranks.alone and any(type(part).__name__ == "ZeroRedundancyOptimizer" for part in optimizers):
        raise UsageError(
            "the optimizer of each rank holds some of the parameters (ZeroRedundancyOptimizer) and sends them to the "
            "others at its step, which a probe on all ranks can't take on trial: shard the model by fully_shard instead"
        )


def _never(_: int) -> bool:
    return False


def _synchronize(parameters: Mapping[str, nn.Parameter]) -> None:
    """Work that is still queued on a GPU is the training's, not the measurement's (and the other way round)."""
    if any(p.device.type == "cuda" for p in parameters.values()):
        torch.cuda.synchronize()
