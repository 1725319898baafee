"""The probe: attaches to an optimizer's step, measures at intervals, and leaves the training as it is."""

from __future__ import annotations

import logging
import os
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
    LossFunction,
    PlainModel,
    Ranks,
    ShardedModel,
    check_model,
    check_parameters,
    form_of,
    held,
    model_of_ranks,
    random_state,
    resharded,
)
from stepscope.objective.replay import Replay
from stepscope.probe.compared_updates import ComparedUpdates
from stepscope.probe.measurer import Measurer
from stepscope.probe.own_edges import EdgeSchedule, OwnEdges
from stepscope.probe.own_steps import OwnSteps
from stepscope.probe.recorder import Recorder
from stepscope.probe.run_directories import open_run
from stepscope.probe.schedule import Schedule, paused
from stepscope.probe.step_batch import BatchWatch
from stepscope.probe.step_meter import StepMeter
from stepscope.probe.step_schedule import StepSchedule
from stepscope.probe.trackers import as_log
from stepscope.probe.training_steps import TrainingSteps, tell
from stepscope.runs import Record, latest, show, versions, write_atomically

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOLLOWED_STEPS = 20
"""How many steps before a measurement the other optimizers see gradients: what their momentum remembers."""


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
            start count, so the first full measurement waits until the training has earned it. Up to twelve of the
            optimizer's own steps are measured in any training, if that takes half a second together, or two fifths of
            the limit.
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
        quiet: whether to leave out the line at the start that says when something is measured, and what it costs.

    Attributes:
        source: which examples `eval_batches` are.
        run_dir: the directory that the records go to: `run_dir`, or the numbered one that it became; ``None`` on ranks
            other than the first.

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
        how = _model_of_ranks(model, process_group)
        self._ranks = how.ranks
        logger = _logger_of(self._ranks)
        self._clip_fractions = None if clip_fractions is None else list(clip_fractions)
        self._loss_fn, self.source = loss_fn, source
        quiet_here = quiet or self._ranks.rank > 0
        with self._ranks.agreed("the settings of a probe"):
            _refuse_optimizers(optimizers, self._ranks)
            as_log(log)  # refuses what is no tracker before anything is measured
            self._compared = ComparedUpdates(optimizers, directions, self._clip_fractions, logger)
            self._measurer = Measurer(
                model, loss_fn, eval_batches, self._compared,
                weight_fn=weight_fn, modules=modules, layer=layer, memory=memory,
                process_group=process_group, ranks=self._ranks, logger=logger,
            )  # fmt: skip
            self._compared.held(self._measurer.parameters)  # refuses before records are replaced
            self._schedule = Schedule(
                every if self._ranks.rank == 0 else _never, max_overhead, None,
                FOLLOWED_STEPS if self._compared.others else 0,
                cost_in_steps=self._measurer.steps_of_first, first=step + 1,
            )  # fmt: skip
            replay = Replay(model, loss_fn, modules, how)
            own = StepSchedule(self._schedule, steps, step + 1)
            self._own_steps = OwnSteps(
                BatchWatch(model, lambda: replay.reached(apart=model.buffers()), averaged=not self._ranks.alone),
                StepMeter(replay),
                own, self._compared.name, lambda: self._compared.groups,
                lambda text: None if quiet_here else tell(text), logger,
            )  # fmt: skip
            edges = EdgeSchedule(self._schedule, own, step + 1, self._measurer.steps_of_edge)
            own_edges = OwnEdges(edges, self._measurer, self._compared, self._ranks, logger)
        options = (self._compared.name, [*self._compared.others], self._clip_fractions, max_overhead, steps, step)
        mine = [form_of(self._measurer.parameters, options)]
        self._ranks.check_same("models or settings of the probe", mine, "give all ranks the same")
        run, self._begun = None, {"configuration": self._configuration(), "context": self._context()}
        with self._ranks.agreed("the run directory"):
            if run_dir is not None and self._ranks.rank == 0:
                run = open_run(run_dir, **self._begun, step=step, overwrite=overwrite, quiet=quiet)
        self.run_dir: Path | None = None if run is None else run.path
        self._recorder = Recorder(run, log if self._ranks.rank == 0 else None)
        self._steps = TrainingSteps(
            step, self._ranks, self._schedule, self._compared, self._measurer, self._own_steps, own_edges,
            self._recorder, logger, quiet=quiet_here,
        )  # fmt: skip
        self._hook = JointStepHook(optimizers, self._steps.before, self._steps.after, self._steps.broken)
        self._schedule.begin(time.perf_counter() - started)
        self._steps.begin()

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
            with paused():
                self._ranks.meet("Probe.check")
                self._steps.prepare()
        return self._measurer.check

    @property
    def step(self) -> int:
        """Steps of the training so far. A record's step is that of the update before which it was measured."""
        return self._steps.step

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
        if self._steps.is_closed:
            raise UsageError("the probe is closed: make another")
        with paused():
            self._ranks.meet("Probe.measure")
            return self._steps.measure_now(gradients, within_layers)

    @property
    def overhead(self) -> float:
        """Time that measuring took so far, as a part of the training's."""
        return self._schedule.overhead

    def loss(self) -> float:
        """The loss on the evaluation batches, as the model is now; of ranks that measure together, all call this."""
        with paused(), held(), random_state():
            self._ranks.meet("Probe.loss")
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

        self._steps.remark_unseen()
        context = {**self._begun["context"], **self._measurer.context(), **self._spent()}
        run = {"configuration": self._begun["configuration"], "context": context}
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
        """Takes the probe off the optimizer; closing twice does nothing.

        Of ranks that measure together all close theirs; where one does so earlier, the others measure no more.
        """
        self._steps.remark_unseen()
        if not self._steps.is_closed:
            self._ranks.leave("has closed its probe")
        self._steps.is_closed = True
        self._own_steps.drop()
        self._hook.remove()
        try:
            self._steps.keep(lambda: self._recorder.describe(self._spent()))
        finally:
            self._steps.keep(self._recorder.close)
            self._compared.lose()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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
            "versions": versions(),
        }


def _model_of_ranks(model: Any, process_group: ProcessGroup | None) -> PlainModel | ShardedModel:
    check_model(model)
    resharded(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_parameters(parameters)
    return model_of_ranks(model, parameters, process_group)


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
