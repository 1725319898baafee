"""The part of a step that weight decay makes, where an optimizer adds it to the rest of the step.

*Decoupled* decay multiplies the weights by ``1 − lr·λ`` and leaves the rest of the step alone, so its part is known.
*Coupled* decay adds ``λ·x`` to the gradient: momentum carries it on and denominators divide by it, so no part of a step
is the decay's. Which of the two a rule does can't be seen from outside; it is known of the rules that are named
here, of exactly these classes, and nothing is guessed of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import parts_of
from stepscope.directions.optimizers import ACClip, Lion, NormalizedSGD, SignSGD
from stepscope.objective import Direction, vectors

DECOUPLED = (
    *(torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon),
    *(ACClip, Lion, NormalizedSGD, SignSGD),
)
"""Rules whose decay is always decoupled."""

BY_SETTING = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam)
"""Those whose decay is decoupled where ``decoupled_weight_decay`` says so."""

COUPLED = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.RMSprop)
"""Those whose decay is a part of the gradient: it can be told apart where there is none."""


def decay_part(
    optimizer: Optimizer | Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor | None] | None = None,
) -> Direction | None:
    """The part of the next step that decoupled weight decay makes: ``w = −lr·λ·x``.

    The rest of the step, ``d − w``, is what the optimizer makes of the gradients.

    Args:
        optimizer: as `next_update` takes it.
        parameters: ``{name: parameter}``.
        gradients: as there: a parameter without a gradient isn't moved, and doesn't decay.

    Returns:
        ``w``, for the parameters that decay, so empty where none does; ``None`` where it can't be told apart from the
        rest: the decay is coupled, or the rule isn't one that is known.

    Example:
        >>> x = nn.Parameter(torch.tensor([2.0])); x.grad = torch.ones(1)
        >>> decay_part(torch.optim.AdamW([x], lr=0.1, weight_decay=0.5), {"x": x})
        {'x': tensor([-0.1000])}
        >>> decay_part(torch.optim.SGD([x], lr=0.1), {"x": x})
        {}
        >>> decay_part(torch.optim.SGD([x], lr=0.1, weight_decay=0.5), {"x": x}) is None
        True

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
    """
    given = gradients if gradients is not None else {name: p.grad for name, p in parameters.items()}
    names = {id(p): name for name, p in parameters.items() if given.get(name) is not None}
    part: Direction = {}
    for one in parts_of(optimizer):
        for group in one.param_groups:
            moved = [p for p in group["params"] if id(p) in names]
            rate = _rate(one, group) if moved else 0.0
            if rate is None:
                return None
            for p in moved if rate else ():
                part[names[id(p)]] = p.detach().to(torch.promote_types(p.dtype, torch.float32)) * -rate
    return part if part and vectors.norm(part) else {}


def _rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float | None:
    """``lr·λ`` of a group; ``None`` where its decay can't be told apart."""
    kind = type(optimizer)
    if kind not in (*DECOUPLED, *BY_SETTING, *COUPLED):
        return None
    if not float(group["weight_decay"]):
        return 0.0
    decoupled = kind in DECOUPLED or (kind in BY_SETTING and group["decoupled_weight_decay"])
    return float(group["lr"]) * float(group["weight_decay"]) if decoupled else None
