"""The probe: attaches to an optimizer's step, measures at intervals, and leaves the training as it is."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope import vectors
from stepscope.breakdown import Grouping, grouping
from stepscope.clipping import clamp_, fraction_threshold
from stepscope.directions import Factory, PseudoUpdates, next_update
from stepscope.errors import UsageError
from stepscope.measurement import Measurement, measure
from stepscope.objective import LossFunction, Objective
from stepscope.records import Record, RunDirectory, latest, versions, write_atomically
from stepscope.schedule import Schedule
from stepscope.selfcheck import SelfCheck, self_check
from stepscope.trackers import as_log
from stepscope.vectors import Direction

_logger = logging.getLogger("stepscope")

FOLLOWED_STEPS = 20
"""How many steps before a measurement the other optimizers see gradients: what their momentum remembers."""

_SMOOTHING = 0.7
_MAX_FAILURES = 3

DEFAULT_DIRECTIONS: dict[str, Factory] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, dampening=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}


class Probe:
    """Measures a training run while it trains, and changes nothing about it.

    Attached to the optimizer's step: before an update, at intervals, it measures the update that the optimizer is
    about to make, and those that others would make of the same gradients, on fixed evaluation batches. A measurement
    that fails is reported and skipped.

    Args:
        model: the module that is trained.
        optimizer: its optimizer: any `torch.optim.Optimizer`, or a wrapper that has one as ``.optimizer`` (Accelerate).
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss; ``None`` for Hugging Face models (see `Objective`).
        eval_batches: the fixed micro-batches that are measured on.
        every: measure at each ``every``-th step, or ``every(step) -> bool``, steps counted from 1; less often where
            `max_overhead` doesn't allow it.
        directions: ``{label: factory}`` of optimizers to compare with (``parameters -> optimizer``). ``None``: SGD with
            momentum, Adam, and the user's own with this step's gradient clipped. The user's own is always measured.
        run_dir: directory for the records; ``None`` keeps them in memory.
        log: where numbers go too: a function of ``(values, step)`` or a tracker (`stepscope.trackers.as_log`).
        max_overhead: the part of the training time that measuring may add; ``None`` for no limit. The checks at the
            start count, so the first measurement waits until the training has earned it.
        step: steps that the training made before: where it goes on from a checkpoint, so that the records go on too.
        weight_fn: see `Objective`.
        layer: what a layer is in the breakdown: see `measure`.
        quiet: whether to keep the announcement of cost to itself.

    Attributes:
        eval_batches: the micro-batches that are measured on.
        step: steps of the training so far. A record's step is that of the update before which it was measured.
        check: what the self-check found.
        records: the measurements, as they are written.

    Raises:
        UsageError: the model can't be measured (see `Objective`), its loss is random, the optimizer works by
            reevaluation, or the run directory can't be used.

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
        optimizer: Optimizer,
        loss_fn: LossFunction | None,
        eval_batches: Iterable[Any],
        *,
        every: int | Callable[[int], bool] = 100,
        directions: Mapping[str, Factory] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        log: Any = None,
        max_overhead: float | None = 0.05,
        step: int = 0,
        weight_fn: Callable[[Any], float] | None = None,
        layer: Grouping | Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> None:
        started = time.perf_counter()
        self._optimizer = _unwrapped(optimizer)
        self._objective = Objective(model, loss_fn, eval_batches, weight_fn)
        self.eval_batches: list[Any] = self._objective.batches
        self._layer = grouping(layer, self._objective.parameters)
        self._own = f"own {type(self._optimizer).__name__}"
        self._factories = dict(DEFAULT_DIRECTIONS if directions is None else directions)
        self._own_clip = (0.1 if "sgd" in self._own.lower() else 0.5) if directions is None else 0.0
        if self._own in self._factories:
            raise UsageError(f"direction {self._own!r} is the optimizer's own: give another label")
        PseudoUpdates(self._objective.parameters, self._factories)  # refuses what can't follow
        self._log = as_log(log)
        self._quiet = quiet
        self.check: SelfCheck = self_check(self._objective)
        if not self.check.repeatable:
            raise UsageError(f"this model can't be measured: {self.check.suspicions[0]}")
        for suspicion in self.check.suspicions:
            _logger.warning("%s", suspicion)
        self.step = step
        self.records: list[Record] = []
        self._overshoot: dict[str, float] = {}
        self._followers: PseudoUpdates | None = None
        self._followed = 0
        self._failures = 0
        self._off = False
        count = 1 + bool(self._own_clip) + len(self._factories)
        self._schedule = Schedule(every, max_overhead, self._estimate(count), FOLLOWED_STEPS)
        self._run = (
            None if run_dir is None else RunDirectory.open(run_dir, self._configuration(), context=self._context())
        )
        if self._run is not None:
            self.records = self._run.records()
            if self.records and not step:
                self._run.close()
                raise UsageError(
                    f"{run_dir} holds measurements up to step {max(r['step'] for r in self.records)} of another "
                    "training: give another run_dir, or the step from which this one goes on (step=…)"
                )
        self._hook = self._optimizer.register_step_pre_hook(self._before_step)
        self._schedule.spend(time.perf_counter() - started)
        self._schedule.leave()

    def measure(self) -> dict[str, Measurement]:
        """Measures now: the updates that would be made of the gradients that are on the parameters.

        Where there are none (after ``zero_grad``), the gradient of the evaluation batches stands in.

        Returns:
            ``{label: measurement}``; recorded and logged as well.

        Raises:
            UsageError: the loss isn't finite, or there is no direction to measure (a learning rate of 0).
        """
        gradients = self._gradients()
        source = "training"
        if not gradients:
            _, gradients = self._objective.gradient()
            source = "evaluation"
        return self._measure(gradients, source, self.step + 1)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page of what has been measured so far.

        Args:
            path: the HTML file.

        Raises:
            MissingExtraError: altair, vl-convert or jinja2 is not installed.
            UsageError: the file can't be written.
        """
        from stepscope.report import render_report

        run = {"configuration": self._configuration(), "context": self._context()}
        write_atomically(path, render_report(run, latest(self.records)).encode(errors="replace"))
        return Path(path)

    def close(self) -> None:
        """Takes the probe off the optimizer; closing twice does nothing."""
        self._hook.remove()
        self._followers = None
        if self._run is not None:
            self._run.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Step pre-hook. With a closure, the gradients exist only after it was called."""
        del optimizer
        position = 1 if len(args) > 1 else None
        closure = args[1] if position else kwargs.get("closure")
        if closure is None:
            self._visit()
            return None

        def visited(*inner: Any, **named: Any) -> Any:
            result = closure(*inner, **named)
            self._visit()
            return result

        if position:
            return (args[0], visited, *args[2:]), kwargs
        return args, {**kwargs, "closure": visited}

    def _visit(self) -> None:
        """One step of the training, its gradients on the parameters."""
        if self._off:
            return
        self._schedule.arrive()
        self.step += 1
        try:
            plan = self._schedule.plan(self.step)
            if plan == "measure" or self._schedule.step_seconds is not None:
                self._announce()
            if plan == "pass":
                self._followers = None
            elif self._followers is None:
                self._followers, self._followed = PseudoUpdates(self._objective.parameters, self._factories), 0
            if plan == "follow" and self._followers is not None:
                self._followers.step(self._gradients())
                self._followed += 1
            elif plan == "measure":
                self._measure_timed()
        except Exception as error:
            self._failed(error)
        finally:
            self._schedule.leave()

    def _measure_timed(self) -> None:
        _synchronize(self._objective.parameters)
        started = time.perf_counter()
        try:
            self._measure(self._gradients(), "training", self.step)
            self._followed += 1
            self._failures = 0
        finally:
            _synchronize(self._objective.parameters)
            self._schedule.measured(time.perf_counter() - started)

    def _failed(self, error: Exception) -> None:
        """Training goes on; a probe that fails again and again is switched off."""
        self._followers = None
        self._failures += 1
        _logger.warning("nothing measured at step %d (%s)", self.step, error)
        if self._failures >= _MAX_FAILURES:
            # The hook stays until `close`: this is called while the optimizer goes through its hooks.
            self._off = True
            _logger.warning("the probe is off after %d failures in a row; training goes on", self._failures)

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self._objective.parameters.items() if p.grad is not None}

    def _measure(self, gradients: Mapping[str, Tensor], source: str, step: int) -> dict[str, Measurement]:
        directions = self._directions(gradients)
        found = measure(
            self._objective, directions, self.check.method, landscape=True, breakdown=True, layer=self._layer
        )
        lr = [group.get("lr") for group in self._optimizer.param_groups]
        where = {"trajectory": type(self._optimizer).__name__, "seed": 0, "step": step}
        extra = {
            "gradient": source,
            "followed_steps": self._followed,
            "lr": [None if v is None else float(v) for v in lr],
        }
        records: list[Record] = []
        for label, m in found.items():
            smoothed = self._smoothed(label, m.overshoot)
            records.append({**where, "direction": label, **m.record(), **extra, "overshoot_smoothed": smoothed})
        self.records += records
        if self._run is not None:
            self._run.append(records)
        self._log(_values(records), step)
        return found

    def _directions(self, gradients: Mapping[str, Tensor]) -> dict[str, Direction]:
        parameters = self._objective.parameters
        directions = {self._own: next_update(self._optimizer, parameters, gradients)}
        if self._own_clip:
            clipped = {name: g.detach().clone() for name, g in gradients.items()}
            clamp_(clipped.values(), fraction_threshold(list(clipped.values()), self._own_clip))
            label = f"{self._own} clip {self._own_clip:.0%}"
            directions[label] = next_update(self._optimizer, parameters, clipped)
        followers = self._followers or PseudoUpdates(parameters, self._factories)
        directions |= followers.step(gradients, capture=True)
        # A learning rate of 0, as at the start of a warm-up, gives no direction.
        moving = {label: direction for label, direction in directions.items() if vectors.norm(direction) > 0}
        if not moving:
            raise UsageError("no optimizer would move at this step (a learning rate of 0?)")
        return moving

    def _smoothed(self, label: str, overshoot: float | None) -> float | None:
        """Geometric moving average: a ratio of 2 and one of 1/2 cancel."""
        if overshoot is not None and overshoot > 0:
            new = math.log(overshoot)
            old = self._overshoot.get(label, new)
            self._overshoot[label] = _SMOOTHING * old + (1 - _SMOOTHING) * new
        return math.exp(self._overshoot[label]) if label in self._overshoot else None

    def _estimate(self, count: int) -> float:
        """Seconds that a measurement of `count` directions will take, from those of the self-check."""
        return count * (18 * self.check.seconds_loss + 4 * self.check.seconds_gradient)

    def _announce(self) -> None:
        """Says once, before the first measurement, what measuring costs here."""
        if self._quiet:
            return
        self._quiet = True
        sizes = [p.numel() * max(p.element_size(), 4) for p in self._objective.parameters.values()]
        # A displaced point, the gradient and its product, two unit directions, and the directions themselves.
        directions = 2 + len(self._factories)
        memory = sum(sizes) * (5 + directions + 2 * bool(self._factories) + 2 * len(self._factories)) / 2**20
        print(
            f"stepscope: {self._schedule.described(self.step)}; {memory:,.0f} MiB beside activations", file=sys.stderr
        )

    def _configuration(self) -> dict[str, Any]:
        return {
            "experiment": "probe",
            "model": type(self._objective.model).__name__,
            "parameters": sum(p.numel() for p in self._objective.parameters.values()),
            "optimizer": type(self._optimizer).__name__,
            "directions": list(self._factories),
        }

    def _context(self) -> dict[str, Any]:
        name = type(self._objective.model).__name__
        return {
            "source": {"title": "the run's own evaluation batches"},
            "model": {"title": f"Optimizing {name}"},
            "self_check": {**vars(self.check), "suspicions": list(self.check.suspicions)},
            "versions": versions(),
        }


def _unwrapped(optimizer: Any) -> Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS reevaluates the loss within its step, so its update can't be known in advance")
    return optimizer


def _values(records: Iterable[Record]) -> dict[str, float]:
    """The numbers of a measurement, by the names that a tracker shows."""
    named = ("sharpness", "correlation", "best_step", "best_decrease", "lr_step", "overshoot")
    values = {f"stepscope/{r['direction']}/{name}": r[name] for r in records for name in named}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _synchronize(parameters: Mapping[str, nn.Parameter]) -> None:
    """Work that is still queued on a GPU is the training's, not the measurement's (and the other way round)."""
    if any(p.device.type == "cuda" for p in parameters.values()):
        torch.cuda.synchronize()
