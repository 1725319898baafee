"""One combination, trained without and with the probe: is the training the same, and the direction the step made?"""

import logging
import math
import queue
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import stepscope
from drawn import batches, rules
from drawn.loops import LOOPS, STEPS, Loop, clipped, trained
from drawn.losses import LOSSES, Loss
from drawn.models import MODELS
from drawn.models import Spec as ModelSpec
from drawn.optimizers import OPTIMIZERS
from drawn.optimizers import Spec as OptimizerSpec
from drawn.snapshot import Values, differences, snapshot

RELATIVE = 1e-5
"""How well a direction has to agree with the step made, beside the rounding of the weights."""

WRITES = 3
"""How often a rule may write to a weight in a step, each time rounding it: decay, the step, and an average or a
projection after it. A write rounds by at most half a unit in the last place, ``½ ε |x|``."""

EVERY = 2

_OUTSIDE = "something else than the step"
"""Stands in the line that says that the step which is measured isn't all that moves the weights."""

_TRACEBACK = re.compile(
    r"(nothing measured at step \d+|step \d+ wasn't measured on its own batch) "
    r"\((?!UsageError)\w*(Error|Exception|Warning|Interrupt): "
)

Ask = Callable[[Optimizer, Mapping[str, nn.Parameter]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Combination:
    """What is drawn: a name of each of the tables, whether the means' weights are given, how many batches are
    evaluated."""

    loss: str
    model: str
    optimizer: str
    batch: str
    loop: str
    weighted: bool = True
    evaluated: int = 1

    def __str__(self) -> str:
        weights = "weights given" if self.weighted else "weights found"
        return " | ".join(
            [self.loss, self.model, self.optimizer, self.batch, self.loop, f"{self.evaluated} evaluated, {weights}"]
        )


@dataclass
class Step:
    """A step that was made, and what `next_update` said of it.

    Attributes:
        refused: the error that it raised instead.
        error: ``‖(x' − x) − d‖ / ‖x' − x‖``.
        moved: ``‖x' − x‖``.
        tolerance: what `error` may be.
    """

    number: int
    refused: str | None = None
    crashed: str | None = None
    error: float = 0.0
    moved: float = 0.0
    tolerance: float = 0.0


@dataclass
class Run:
    """What came of one training."""

    moments: dict[str, Values] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    own: dict[int, tuple[float | None, float]] = field(default_factory=dict)
    refused: str | None = None
    crashed: str | None = None


@dataclass
class Verdict:
    """The outcome of a combination.

    Attributes:
        kind: ``"identical"``, ``"refused"``, ``"DISTURBED"``, ``"WRONG"``, ``"CRASHED"``, or ``"impossible"`` where
            the training without the probe fails, so that nothing can be compared.
        line: the outcome in a line, which starts with the kind.
    """

    combination: Combination
    kind: str
    line: str
    error: float | None
    seconds: float

    @property
    def bad(self) -> bool:
        """Whether something is promised and doesn't hold."""
        return self.kind in ("DISTURBED", "WRONG", "CRASHED")


Attach = Callable[..., Any]


def attach_probe(model: nn.Module, optimizer: Any, loss: Any, evaluation: list[Any], **settings: Any) -> Any:
    """The probe of the table."""
    return stepscope.Probe(model, optimizer, loss, evaluation, max_overhead=None, quiet=True, **settings)


def tried(combination: Combination, attach: Attach = attach_probe, ask: Ask = stepscope.next_update) -> Verdict:
    """Trains a combination without and with the probe, and judges.

    Args:
        combination: what.
        attach: what puts the probe on; another one to see that the table notices what it should.
        ask: what gives the direction of the next step.
    """
    started = time.perf_counter()
    try:
        plain = _run(combination, None, None)
    except Exception as error:
        line = f"impossible without a probe: {_said(error)}"
        return Verdict(combination, "impossible", line, None, time.perf_counter() - started)
    probed = _run(combination, attach, ask)
    problems = [*_disturbances(combination, plain, probed, attach, ask), *_crashes(probed), *_wrongs(probed)]
    error = max((s.error for s in probed.steps if s.refused is None), default=None)
    if problems:
        kind = problems[0].partition(":")[0]
        line = "; ".join(problems)
    elif not probed.own:
        kind, reasons = "refused", [probed.refused, *probed.said]
        line = f"refused: {next(reason for reason in reasons if reason)}"
    else:
        kind = "identical"
        line = _agreement(probed)
    return Verdict(combination, kind, " ".join(line.split()), error, time.perf_counter() - started)


def _agreement(run: Run) -> str:
    asked = [s for s in run.steps if s.refused is None]
    errors = [s.error for s in asked] or [e for e, _ in run.own.values() if e is not None]
    line = f"identical, direction equal (error {max(errors, default=0.0):.0e}"
    if asked and (loosest := max(s.tolerance for s in asked)) > 2 * RELATIVE:
        line += f", weights round by {loosest:.0e}"
    line += ")"
    if missing := [step for step in range(EVERY, STEPS + 1, EVERY) if step not in run.own]:
        line += f", but not measured at {missing}: {run.said[-1]}"
    return line


def _disturbances(combination: Combination, plain: Run, probed: Run, attach: Attach, ask: Ask) -> list[str]:
    found = _difference(plain, probed)
    if found is None:
        return []
    if _difference(plain, _run(combination, None, None)) is not None:
        return ["CRASHED: two trainings without a probe differ, so nothing can be told"]
    alone = _difference(plain, _run(combination, attach, None)) is not None
    asked = _difference(plain, _run(combination, None, ask)) is not None
    by = {(True, True): "the probe, and next_update", (True, False): "the probe", (False, True): "next_update"}
    culprit = by.get((alone, asked), "the probe and next_update together")
    after = " (refused all the same)" if probed.refused else ""
    return [f"DISTURBED: by {culprit}{after}: {found}"]


def _difference(plain: Run, probed: Run) -> str | None:
    for moment, values in plain.moments.items():
        if moment in probed.moments and (paths := differences(values, probed.moments[moment])):
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            return f"{moment}: {', '.join(paths[:3])}{more}"
    if repr(plain.losses[: len(probed.losses)]) != repr(probed.losses):
        return "the losses"
    return None


def _crashes(run: Run) -> list[str]:
    found = [f"CRASHED: {run.crashed}"] if run.crashed else []
    found += [f"CRASHED: next_update: {s.crashed}" for s in run.steps if s.crashed][:1]
    return found + [f"CRASHED: {line}" for line in run.said if _TRACEBACK.match(line)][:1]


def _wrongs(run: Run) -> list[str]:
    if run.refused or run.crashed:
        return []
    if not run.own:
        return [] if run.said else ["WRONG: no own direction in the records, and no line says why"]
    wrong = [s for s in run.steps if s.refused is None and s.crashed is None and not s.error <= s.tolerance]
    if wrong:
        worst = max(wrong, key=lambda s: s.error if math.isfinite(s.error) else math.inf)
        steps = [s.number for s in wrong]
        return [f"WRONG: error {worst.error:.2g} (allowed {worst.tolerance:.0e}) at steps {steps}"]
    for step in (s for s in run.steps if s.number in run.own and s.moved > 0):
        error, norm = run.own[step.number]
        if error is not None and not error * norm <= step.tolerance * step.moved:
            return [f"WRONG: error {error:.2g} recorded at step {step.number}, where next_update alone is right"]
        if abs(norm / step.moved - 1) > 0.01 + 3 * step.tolerance and not any(_OUTSIDE in line for line in run.said):
            return [f"WRONG: a step of {norm:.3g} recorded at step {step.number}, which is of {step.moved:.3g}"]
    missing = [step for step in range(EVERY, STEPS + 1, EVERY) if step not in run.own]
    if missing and not run.said:
        return [f"WRONG: no own direction in the records of steps {missing}, and no line says why"]
    return []


def _run(combination: Combination, attach: Attach | None, ask: Ask | None) -> Run:
    run = Run()
    with _said_by_stepscope(run.said), _state_kept():
        _train(combination, attach, ask, run)
    return run


def _train(combination: Combination, attach: Attach | None, ask: Ask | None, run: Run) -> None:
    model_spec, optimizer_spec, loop = (
        MODELS[combination.model],
        OPTIMIZERS[combination.optimizer],
        LOOPS[combination.loop],
    )
    _seed(0)
    model = model_spec.build().to(model_spec.dtype).train()
    loss = LOSSES[combination.loss](model_spec.task)
    optimizer = optimizer_spec.build(_parameters(model, optimizer_spec))
    data = _batches(combination, model_spec, STEPS * loop.accumulate, 1)
    evaluation = _batches(combination, model_spec, combination.evaluated, 2)
    roots = {
        "model": model, "optimizer": optimizer, "loss": loss.function, **loss.roots,
        "module state": rules.MODULE_STATE, "batches": data, "evaluation": evaluation,
    }  # fmt: skip
    handle = clipped(loop, optimizer)
    _seed(5)
    probes = _Probes(combination, loop, attach, run)
    probes.attach(model, optimizer, loss, evaluation)
    watch = _Watch(model, optimizer, ask, run) if ask is not None and not optimizer_spec.closure else None
    run.moments["after attaching"] = snapshot(roots, step_hooks=False)
    steps = trained(
        loop, model, optimizer, probes.told(_called(loss, model)), data, loss.between,
        closure=optimizer_spec.closure, curved=optimizer_spec.curved,
    )  # fmt: skip
    try:
        for step, losses in steps:
            run.losses += losses
            if watch is not None:
                watch.made(step)
            if step == EVERY:
                run.moments[f"after step {step}"] = snapshot(roots, step_hooks=False)
            if loop.closed and step == 3:
                probes.close()
                probes.attach(model, optimizer, loss, evaluation, step=3)
    except Exception as error:
        if attach is None and ask is None:
            raise
        run.crashed = f"in training: {_said(error)}"
    if watch is not None:
        watch.remove()
    probes.close()
    if handle is not None:
        handle.remove()
    if run.crashed is None:
        run.moments["at the end"] = snapshot(roots)


def _called(loss: Loss, model: nn.Module) -> Callable[[Any], Tensor]:
    if loss.function is None:
        return lambda batch: model(**batch).loss
    function = loss.function
    return lambda batch: function(model, batch)


def _parameters(model: nn.Module, spec: OptimizerSpec) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad and (p.dim() == 2 or not spec.matrices)]


def _batches(combination: Combination, spec: ModelSpec, count: int, seed: int) -> list[Any]:
    return spec.task.batches(count, combination.batch, seed, spec.dtype)


class _Probes:
    """The probes of a run, and what they leave behind."""

    def __init__(self, combination: Combination, loop: Loop, attach: Attach | None, run: Run) -> None:
        self._combination, self._loop, self._attach, self._run = combination, loop, attach, run
        self._attached: list[Any] = []

    def attach(self, model: nn.Module, optimizer: Any, loss: Loss, evaluation: list[Any], **settings: Any) -> None:
        if self._attach is None:
            return
        settings["weight_fn"] = batches.examples if self._combination.weighted else None
        if self._loop.frozen:
            settings["directions"] = {}  # others would first have to follow the thawed for 20 steps
        try:
            for number in range(self._loop.probes):
                every = EVERY + number
                made = self._attach(model, optimizer, loss.function, evaluation, every=every, steps=STEPS, **settings)
                self._attached.append(made)
        except stepscope.UsageError as error:
            self._run.refused = _said(error).removeprefix("UsageError: ")
        except Exception as error:
            self._run.crashed = f"attaching: {_said(error)}"

    def told(self, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """The loss, of a loop that says which batch it is of."""

        def computed(batch: Any) -> Tensor:
            with ExitStack() as stack:
                for probe in self._attached:
                    stack.enter_context(getattr(probe, "batch", nullcontext)(batch))
                return loss(batch)

        return computed

    def close(self) -> None:
        for number, probe in enumerate(self._attached):
            probe.close()
            if number == 0:
                self._run.own |= own_errors(probe)
        self._attached = []


def own_errors(probe: Any) -> dict[int, tuple[float | None, float]]:
    """The steps at which the own direction stands in the records: how far it was from the step, and its norm."""
    own = [r for r in probe.records if r["direction"].startswith("own ") and " clip " not in r["direction"]]
    return {r["step"]: (r["step_error"], r.get("norm", 0.0)) for r in own if not r.get("withdrawn")}


class _Watch:
    """Asks for the next update where the optimizer is about to move, and compares it with the movement."""

    def __init__(self, model: nn.Module, optimizer: Any, ask: Ask, run: Run) -> None:
        self._parameters = dict(model.named_parameters())
        self._ask, self._run = ask, run
        self._start: dict[str, Tensor] | None = None
        self._direction: Mapping[str, Tensor] = {}
        self._step = Step(0)
        hooked = optimizer if hasattr(optimizer, "_optimizer_step_pre_hooks") else optimizer.optimizer
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else hooked
        # In a queue, which no walk looks into: through the hook all these tables would be the optimizer's state.
        hidden: queue.SimpleQueue[_Watch] = queue.SimpleQueue()
        hidden.put(self)
        self._handle = hooked.register_step_pre_hook(lambda *_: _called_inside(hidden))

    def remove(self) -> None:
        self._handle.remove()

    def _asked(self) -> None:
        if self._start is not None:  # a step inside a step
            return
        self._start = {name: p.detach().double().clone() for name, p in self._parameters.items()}
        self._step, self._direction = Step(0), {}
        trainable = {name: p for name, p in self._parameters.items() if p.requires_grad}
        try:
            self._direction = self._ask(self._optimizer, trainable)
        except stepscope.UsageError as error:
            self._step.refused = _said(error)
        except Exception as error:
            self._step.crashed = _said(error)

    def made(self, number: int) -> None:
        if self._start is None:
            return
        self._step.number = number
        if self._step.refused is None and self._step.crashed is None:
            self._compare(self._start)
        self._run.steps.append(self._step)
        self._start = None

    def _compare(self, start: dict[str, Tensor]) -> None:
        missed = moved = weights = 0.0
        for name, before in start.items():
            movement = self._parameters[name].detach().double() - before
            direction = self._direction.get(name)
            gap = movement if direction is None else movement - direction.double()
            missed += float(gap.square().sum())
            moved += float(movement.square().sum())
            weights += float(before.square().sum()) if direction is not None else 0.0
        eps = max(torch.finfo(p.dtype).eps for p in self._parameters.values())
        rounding = WRITES * 0.5 * eps * math.sqrt(weights)
        if moved == 0 and math.sqrt(missed) <= rounding:
            self._step.tolerance = math.inf  # a step that rounds to nothing can't be compared
        self._step.moved = math.sqrt(moved)
        if missed == 0 or self._step.tolerance:
            return
        self._step.error = math.sqrt(missed / moved) if moved > 0 else math.inf
        # Each operation of a rule on half-precision numbers rounds, too.
        self._step.tolerance = max(RELATIVE, 4 * eps) + (rounding / math.sqrt(moved) if moved > 0 else 0.0)


def _called_inside(hidden: Any) -> None:
    watch = hidden.get()
    hidden.put(watch)
    watch._asked()


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


@contextmanager
def _said_by_stepscope(said: list[str]) -> Iterator[None]:
    """Collects what stepscope logs, and its warnings; keeps the warnings of others to itself."""

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    logger, handler = logging.getLogger("stepscope"), Collecting()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


@contextmanager
def _state_kept() -> Iterator[None]:
    """What a run does to the process's random states ends with it."""
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
