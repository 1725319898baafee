"""The optimizers that the paper compares, by the names that its tables use, with its settings (§5, B.2, B.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from stepscope.clipping import Target, clipped
from stepscope.directions import ACClip, Adafactor, Factory, Lion, NormalizedSGD, SignSGD, muon_with_adamw
from stepscope.errors import UsageError
from stepscope.paper.experiments.command_lines import PLAIN_STEPS
from stepscope.paper.experiments.users_optimizers import Named

Parameters = list[torch.nn.Parameter]
Build = Callable[[Parameters, float], Any]
"""``(parameters, learning rate) -> optimizer``."""

SETTINGS = ("text", "code", "ours")
"""Whose optimizers the convergence experiment compares.

``text``: as the paper's text has it, the gradient is clipped before everything else. ``code``: as its published
classes do it on the path that clips, and all else as in `stepscope.paper.experiments.as_released`: there these classes
don't take that path. ``ours``: the code's optimizers on masked batches, with the baselines.
"""

MAX_NORM = 1.0
"""Of the baseline that clips the gradient's norm: what most training loops use."""


@dataclass(frozen=True)
class Rule:
    """An optimizer that is compared.

    Attributes:
        build: makes it.
        lr: the learning rate at which its direction is taken. It only scales a direction, which is measured by unit of
            length; this is such as a run could use.
        first_lr: where the search for its best learning rate begins.
        original: the name of the optimizer that this one is a variant of; None if it is none.
        measured: whether its direction is measured along trajectories; ``"not in the demo"`` leaves it out there.
        settings: the names of the `SETTINGS` in which the convergence experiment trains it.
    """

    build: Build
    lr: float
    first_lr: float
    original: str | None = None
    measured: Literal[True, False, "not in the demo"] = True
    settings: tuple[str, ...] = SETTINGS


# Dampening makes the buffer an average of gradients, as in the published code.
_sgd = partial(torch.optim.SGD, momentum=0.9, dampening=0.9)
_adam = partial(torch.optim.Adam, betas=(0.9, 0.999), foreach=True)
_normalized_sgd = partial(NormalizedSGD, momentum=0.9)
_lion = partial(Lion, betas=(0.9, 0.99))


def _sgd_by_norm(parameters: Parameters, lr: float) -> Optimizer:
    optimizer = _sgd(parameters, lr)
    optimizer.register_step_pre_hook(lambda *_: _clip_norm(parameters))
    return optimizer


def _clip_norm(parameters: Parameters) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)


def _muon(parameters: Parameters, lr: float) -> list[Optimizer]:
    return muon_with_adamw(lr=lr, adamw_lr=lr / 100)(parameters)


def at_rate(build: Build, lr: float) -> Factory:
    """A factory of optimizers with this learning rate."""
    return lambda parameters: build(parameters, lr)


def _clipped(build: Build, fraction: float, target: Target = "grad") -> Build:
    def clipping(parameters: Parameters, lr: float) -> Any:
        return clipped(at_rate(build, lr), fraction, target)(parameters)

    return clipping


_AS_CODE = ("code", "ours")
"""What the published classes do, and not the text."""

RULES: dict[str, Rule] = {
    "sgd": Rule(_sgd, lr=1e-1, first_lr=4.0),
    "sgd clip 10%": Rule(_clipped(_sgd, 0.1), lr=1e-1, first_lr=16.0, original="sgd"),
    "sgd clip by norm": Rule(_sgd_by_norm, lr=1e-1, first_lr=4.0, original="sgd", measured=False, settings=("ours",)),
    "acclip": Rule(ACClip, lr=1e-1, first_lr=16.0, original="sgd", measured=False, settings=("ours",)),
    "normalized sgd": Rule(_normalized_sgd, lr=1e-4, first_lr=2e-3),
    "normalized sgd clip 10%": Rule(_clipped(_normalized_sgd, 0.1), lr=1e-4, first_lr=2e-3, original="normalized sgd"),
    "signsgd": Rule(partial(SignSGD, momentum=0.9), lr=1e-4, first_lr=2e-3, original="sgd"),
    "adam": Rule(_adam, lr=2e-4, first_lr=4e-3),
    "adam clip 50% (first moment)": Rule(
        _clipped(_adam, 0.5, "first_moment"), lr=2e-4, first_lr=4e-3, original="adam", settings=_AS_CODE
    ),
    "adam clip 50% (gradient)": Rule(_clipped(_adam, 0.5), lr=2e-4, first_lr=4e-3, original="adam", settings=("text",)),
    "adam clip 50% (update)": Rule(_clipped(_adam, 0.5, "update"), lr=2e-4, first_lr=4e-3, original="adam"),
    "adafactor": Rule(Adafactor, lr=1e-2, first_lr=4e-2),
    "adafactor clip 50% (numerator)": Rule(
        partial(Adafactor, clip_fraction=0.5), lr=1e-2, first_lr=4e-2, original="adafactor", settings=_AS_CODE
    ),
    "adafactor clip 50% (gradient)": Rule(
        _clipped(Adafactor, 0.5), lr=1e-2, first_lr=4e-2, original="adafactor", measured=False, settings=("text",)
    ),
    "lion": Rule(_lion, lr=1e-4, first_lr=2e-3),
    "lion clip 50% (update)": Rule(partial(_lion, clip_fraction=0.5), lr=1e-4, first_lr=4.0, original="lion"),
    "muon": Rule(_muon, lr=2e-2, first_lr=2e-2, settings=()),
    "adagrad": Rule(torch.optim.Adagrad, lr=1e-2, first_lr=4e-2, measured="not in the demo", settings=()),
    "amsgrad": Rule(
        partial(torch.optim.Adam, amsgrad=True), lr=2e-4, first_lr=4e-3, measured="not in the demo", settings=()
    ),
    "adamw": Rule(torch.optim.AdamW, lr=2e-4, first_lr=4e-3, measured="not in the demo", settings=()),
}
"""All optimizers that are compared: the paper's (§5, Tables 1 and 4-7), other ways to clip, and others in use.

Clip fractions are the paper's. ``first moment`` and ``numerator`` are what its published code does: the second moment
sees the gradient as it is. Clipping before both (``gradient``) is another algorithm. Lion's variant clips in the place
of the sign. ``clip by norm`` and ``acclip`` are baselines (Zhang et al., 2020, arXiv 1912.03194).
"""


_AS_RELEASED = {
    "sgd clip 10%": "sgd", "normalized sgd": "sgd", "signsgd": "sgd", "adam clip 50% (first moment)": "adam",
}  # fmt: skip


def rule_of(name: str) -> Rule:
    """The rule of one of `RULES`, or of an optimizer of the user's own.

    Args:
        name: in `RULES`, or where to find it (`users_optimizers`).

    Raises:
        UsageError: it is neither.
    """
    if name in RULES:
        return RULES[name]
    named = Named.of(name)
    return Rule(named.build, lr=named.rate, first_lr=named.rate)


def check_optimizers(names: Iterable[str]) -> None:
    """Refuses an optimizer of the user's own that can't be made, and one that is given twice.

    Raises:
        UsageError: see `users_optimizers`.
    """
    counts = Counter(names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UsageError(f"{twice[0]!r} is given twice: each optimizer once")
    for name in counts.keys() - RULES.keys():
        Named.of(name).check()


def users_own(names: Iterable[str]) -> list[str]:
    """Of optimizers of the user's own, what their runs are called after.

    Raises:
        UsageError: one is neither in `RULES` nor such a name.

    Example:
        >>> users_own(["sgd", "torch.optim:NAdam@2e-3"])
        ['NAdam']
    """
    return [Named.of(name).function for name in names if name not in RULES]


def training_rule(name: str, released: Iterable[str] = ()) -> Rule:
    """The rule that trains under an optimizer's name.

    The published classes for clipped SGD, clipped Adam, sign SGD and normalized SGD do what their names say on one path
    alone, which its convergence script never takes: as released they make steps of plain SGD and Adam.

    Args:
        name: see `rule_of`.
        released: with ``"plain-steps"`` among them, those four do.
    """
    return rule_of(_AS_RELEASED.get(name, name) if PLAIN_STEPS in released else name)


def factory_of(name: str) -> Factory:
    """What makes an optimizer whose direction is measured; see `rule_of`."""
    rule = rule_of(name)
    return at_rate(rule.build, rule.lr)


def measured_directions() -> dict[str, Factory]:
    """The directions of the trajectory experiment; ``sgd`` is what the others are compared with."""
    return {name: factory_of(name) for name, rule in RULES.items() if rule.measured}


def demonstrated() -> tuple[str, ...]:
    """The directions of the demo: the paper's and Muon."""
    return tuple(name for name, rule in RULES.items() if rule.measured is True)


def papers_directions() -> tuple[str, ...]:
    """The directions of a reproduction: those of optimizers that the paper compares too."""
    return tuple(name for name, rule in RULES.items() if rule.measured and rule.settings)


TRAINING: dict[str, Callable[[Parameters, float], Optimizer]] = {"sgd": _sgd, "adam": torch.optim.Adam}
"""Training optimizers, by the name of their trajectory."""


def contenders(settings: str) -> tuple[str, ...]:
    """The optimizers of one of `SETTINGS`.

    Raises:
        UsageError: there is no such.
    """
    if settings not in SETTINGS:
        raise UsageError(f"unknown settings {settings!r}: choose text, code or ours")
    return tuple(name for name, rule in RULES.items() if settings in rule.settings)
