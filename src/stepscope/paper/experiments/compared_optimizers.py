"""The optimizers that the paper compares, by the names that its tables use, with its settings (§5, B.2, B.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from stepscope.clipping import Target, clipped
from stepscope.directions import ACClip, Adafactor, Factory, Lion, NormalizedSGD, SignSGD, muon_with_adamw
from stepscope.errors import UsageError

Parameters = list[torch.nn.Parameter]
Build = Callable[[Parameters, float], Any]
"""``(parameters, learning rate) -> optimizer``."""

SETTINGS = ("text", "code", "ours")
"""Whose optimizers the convergence experiment compares.

``text``: as the paper's text has it, the gradient is clipped before everything else. ``code``: as its published
classes do it on the path that clips (as released, they don't take that path), and the models get no attention mask.
``ours``: the code's optimizers on masked batches, with the baselines.
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


def _sgd(parameters: Parameters, lr: float) -> Optimizer:
    # Dampening makes the buffer an average of gradients, as in the published code.
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, dampening=0.9)


def _sgd_by_norm(parameters: Parameters, lr: float) -> Optimizer:
    optimizer = _sgd(parameters, lr)
    optimizer.register_step_pre_hook(lambda *_: _clip_norm(parameters))
    return optimizer


def _clip_norm(parameters: Parameters) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)


def _adam(parameters: Parameters, lr: float) -> Optimizer:
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), foreach=True)


def _normalized_sgd(parameters: Parameters, lr: float) -> Optimizer:
    return NormalizedSGD(parameters, lr=lr, momentum=0.9)


def _adafactor(parameters: Parameters, lr: float) -> Optimizer:
    return Adafactor(parameters, lr=lr)


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
    "acclip": Rule(
        lambda parameters, lr: ACClip(parameters, lr=lr),
        lr=1e-1,
        first_lr=16.0,
        original="sgd",
        measured=False,
        settings=("ours",),
    ),
    "normalized sgd": Rule(_normalized_sgd, lr=1e-4, first_lr=2e-3),
    "normalized sgd clip 10%": Rule(_clipped(_normalized_sgd, 0.1), lr=1e-4, first_lr=2e-3, original="normalized sgd"),
    "signsgd": Rule(
        lambda parameters, lr: SignSGD(parameters, lr=lr, momentum=0.9), lr=1e-4, first_lr=2e-3, original="sgd"
    ),
    "adam": Rule(_adam, lr=2e-4, first_lr=4e-3),
    "adam clip 50% (first moment)": Rule(
        _clipped(_adam, 0.5, "first_moment"), lr=2e-4, first_lr=4e-3, original="adam", settings=_AS_CODE
    ),
    "adam clip 50% (gradient)": Rule(_clipped(_adam, 0.5), lr=2e-4, first_lr=4e-3, original="adam", settings=("text",)),
    "adam clip 50% (update)": Rule(_clipped(_adam, 0.5, "update"), lr=2e-4, first_lr=4e-3, original="adam"),
    "adafactor": Rule(_adafactor, lr=1e-2, first_lr=4e-2),
    "adafactor clip 50% (numerator)": Rule(
        lambda parameters, lr: Adafactor(parameters, lr=lr, clip_fraction=0.5),
        lr=1e-2,
        first_lr=4e-2,
        original="adafactor",
        settings=_AS_CODE,
    ),
    "adafactor clip 50% (gradient)": Rule(
        _clipped(_adafactor, 0.5), lr=1e-2, first_lr=4e-2, original="adafactor", measured=False, settings=("text",)
    ),
    "lion": Rule(lambda parameters, lr: Lion(parameters, lr=lr, betas=(0.9, 0.99)), lr=1e-4, first_lr=2e-3),
    "lion clip 50% (update)": Rule(
        lambda parameters, lr: Lion(parameters, lr=lr, betas=(0.9, 0.99), clip_fraction=0.5),
        lr=1e-4,
        first_lr=4.0,
        original="lion",
    ),
    "muon": Rule(
        lambda parameters, lr: muon_with_adamw(lr=lr, adamw_lr=lr / 100)(parameters),
        lr=2e-2,
        first_lr=2e-2,
        settings=(),
    ),
    "adagrad": Rule(
        lambda parameters, lr: torch.optim.Adagrad(parameters, lr=lr),
        lr=1e-2,
        first_lr=4e-2,
        measured="not in the demo",
        settings=(),
    ),
    "amsgrad": Rule(
        lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, amsgrad=True),
        lr=2e-4,
        first_lr=4e-3,
        measured="not in the demo",
        settings=(),
    ),
    "adamw": Rule(
        lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
        lr=2e-4,
        first_lr=4e-3,
        measured="not in the demo",
        settings=(),
    ),
}
"""All optimizers that are compared: the paper's (§5, Tables 1 and 4-7), other ways to clip, and others in use.

Clip fractions are the paper's. ``first moment`` and ``numerator`` are what its published code does: the second moment
sees the gradient as it is. Clipping before both (``gradient``) is another algorithm. Lion's variant clips in the place
of the sign. ``clip by norm`` and ``acclip`` are baselines (Zhang et al., 2020, arXiv 1912.03194).
"""


def measured_directions() -> dict[str, Factory]:
    """The directions of the trajectory experiment; ``sgd`` is what the others are compared with."""
    return {name: at_rate(rule.build, rule.lr) for name, rule in RULES.items() if rule.measured}


def demonstrated() -> tuple[str, ...]:
    """The directions of the demo: the paper's and Muon."""
    return tuple(name for name, rule in RULES.items() if rule.measured is True)


TRAINING: dict[str, Callable[[Parameters, float], Optimizer]] = {
    "sgd": _sgd,
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
}
"""Training optimizers, by the name of their trajectory."""


def contenders(settings: str) -> tuple[str, ...]:
    """The optimizers of one of `SETTINGS`.

    Raises:
        UsageError: there is no such.
    """
    if settings not in SETTINGS:
        raise UsageError(f"unknown settings {settings!r}: choose text, code or ours")
    return tuple(name for name, rule in RULES.items() if settings in rule.settings)
