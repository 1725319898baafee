"""The optimizers that the paper compares, by the names that its tables use, with its settings (§5, B.2, B.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from stepscope.clip_hook import clipped
from stepscope.directions import Factory
from stepscope.optimizers import Adafactor, Lion, NormalizedSGD, SignSGD, muon_with_adamw

# A learning rate only scales a direction, which is measured by unit of length: these are such as a run could use.
_SGD_LR, _SIGN_LR, _ADAM_LR = 1e-1, 1e-4, 2e-4


def _sgd(parameters: list[torch.nn.Parameter]) -> Optimizer:
    # Dampening makes the buffer an average of gradients, as in the published code.
    return torch.optim.SGD(parameters, lr=_SGD_LR, momentum=0.9, dampening=0.9)


def _adam(parameters: list[torch.nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=_ADAM_LR, betas=(0.9, 0.999), foreach=True)


def _normalized_sgd(parameters: list[torch.nn.Parameter]) -> Optimizer:
    return NormalizedSGD(parameters, lr=_SIGN_LR, momentum=0.9)


DIRECTIONS: dict[str, Factory] = {
    "sgd": _sgd,
    "sgd clip 10%": clipped(_sgd, 0.1),
    "normalized sgd": _normalized_sgd,
    "normalized sgd clip 10%": clipped(_normalized_sgd, 0.1),
    "signsgd": lambda parameters: SignSGD(parameters, lr=_SIGN_LR, momentum=0.9),
    "adam": _adam,
    "adam clip 50% (first moment)": clipped(_adam, 0.5, "first_moment"),
    "adam clip 50% (gradient)": clipped(_adam, 0.5),
    "adam clip 50% (update)": clipped(_adam, 0.5, "update"),
    "adafactor": lambda parameters: Adafactor(parameters),
    "adafactor clip 50% (numerator)": lambda parameters: Adafactor(parameters, clip_fraction=0.5),
    "lion": lambda parameters: Lion(parameters, lr=_SIGN_LR, betas=(0.9, 0.99)),
    "lion clip 50% (update)": lambda parameters: Lion(parameters, lr=_SIGN_LR, betas=(0.9, 0.99), clip_fraction=0.5),
    "muon": muon_with_adamw(lr=2e-2, adamw_lr=_ADAM_LR),
}
"""Directions of the trajectory experiment: the paper's (Tables 1 and 4-7), gradient clipping of Adam, and Muon.

``sgd`` is what the others are compared with. Clip fractions are the paper's. ``first moment`` and ``numerator`` are
what its published code does: the second moment sees the gradient as it is. Clipping before both is another algorithm.
Lion's variant clips in the place of the sign.
"""

TRAINING: dict[str, Callable[[list[torch.nn.Parameter], float], Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, dampening=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
}
"""Training optimizers, by the name of their trajectory."""
