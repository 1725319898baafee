"""Robust smoothness: the spectral norm of a classifier's Gauss-Newton matrix without its few largest coordinates.

Pan and Li, §4 and Table 8: in a transformer, few coordinates carry most of the spectral norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stepscope.errors import UsageError
from stepscope.measuring.gauss_newton_matrix import Chosen, GaussNewton, Logits, gauss_newton
from stepscope.objective import Objective


@dataclass(frozen=True)
class RobustSmoothness:
    """The spectral norm of a Gauss-Newton matrix with and without its coordinates of large columns.

    Attributes:
        cut: ``k``; removed are the coordinates whose column norm is at least ``k`` times the mean column norm.
        coordinates: how many there were.
        removed: how many were removed.
        before: spectral norm with all of them, in units of loss/length².
        after: spectral norm without those.
        random: spectral norms after removing as many coordinates at random, one a draw.
    """

    cut: float
    coordinates: int
    removed: int
    before: float
    after: float
    random: tuple[float, ...]

    @property
    def fraction(self) -> float:
        """The removed part of the coordinates."""
        return self.removed / self.coordinates

    @property
    def ratio(self) -> float | None:
        """``before / after``, how many times smoother it became; None where nothing is left."""
        return self.before / self.after if self.after > 0 else None

    @property
    def random_ratio(self) -> float | None:
        """The same for random removal: ``before`` by the mean over the draws; None without draws."""
        mean = math.fsum(self.random) / len(self.random) if self.random else 0.0
        return self.before / mean if mean > 0 else None

    def record(self) -> dict[str, Any]:
        """All numbers, for a line of JSON."""
        more = {"fraction": self.fraction, "ratio": self.ratio, "random_ratio": self.random_ratio}
        return {**asdict(self), "random": list(self.random), **more}


def robust_smoothness(
    objective: Objective,
    parameters: Chosen = None,
    *,
    cuts: Sequence[float] = (4.0,),
    draws: int = 3,
    seed: int = 0,
    logits_fn: Logits | None = None,
) -> list[RobustSmoothness]:
    """How much smoother a classifier is without the few coordinates whose columns are large (paper, §4, Table 8).

    Of ``R``, the square root of the Gauss-Newton matrix (see `gauss_newton`), the columns whose norm is at least ``k``
    times the mean column norm are removed, and the spectral norm ``‖R‖₂²`` before is compared with that after.

    Args:
        objective: the classifier and its examples; see `gauss_newton` for what it costs.
        parameters: which coordinates there are: names or patterns (``"*.attention.*.weight"``), a function of the name,
            or None for all.
        cuts: each ``k``. The paper's text says 4, its published code 2.
        draws: how often as many coordinates are removed at random, to compare with.
        seed: of the draws.
        logits_fn: ``logits_fn(model, batch)`` gives the logits, shape (examples, classes). None: ``model(**batch)``
            has ``logits`` in its output.

    Returns:
        A result for each cut.

    Raises:
        UsageError: as `gauss_newton`; a cut or the number of draws is impossible; or the matrix is zero.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> x = torch.tensor([[9.0, 1.0, 1.0]])
        >>> objective = Objective(model, lambda m, x: cross_entropy(m(x), torch.tensor([0])), [x])
        >>> [found] = robust_smoothness(objective, cuts=[2], logits_fn=lambda m, x: m(x))
        >>> found.removed, found.coordinates, round(found.ratio, 3)  # 9² + 1² + 1² = 83 by 1² + 1²
        (2, 6, 41.5)
    """
    check_removal(cuts, draws)
    return removals(gauss_newton(objective, parameters, logits_fn=logits_fn), cuts=cuts, draws=draws, seed=seed)


def check_removal(cuts: Sequence[float], draws: int) -> None:
    """Refuses cuts and a number of draws that `removals` can't do.

    Raises:
        UsageError: one of them is impossible.
    """
    if not cuts or not all(math.isfinite(cut) and cut > 0 for cut in cuts):
        raise UsageError(f"cuts are {list(cuts)}: give finite numbers above 0, such as [4]")
    if draws < 0:
        raise UsageError(f"draws is {draws}: at least 0, for no random removal")


def removals(matrix: GaussNewton, *, cuts: Sequence[float], draws: int, seed: int) -> list[RobustSmoothness]:
    """`robust_smoothness` of a matrix that has been made already.

    Raises:
        UsageError: a cut or the number of draws is impossible, or the matrix is zero.
    """
    check_removal(cuts, draws)
    norms, sizes = matrix.column_norms(), matrix.sizes
    total = sum(sizes.values())
    mean = math.fsum(float(part.sum()) for part in norms.values()) / total
    if mean == 0:
        raise UsageError(
            "the Gauss-Newton matrix is zero here: the logits don't depend on these parameters, "
            "or every prediction is certain up to rounding"
        )
    [before] = matrix.spectral_norms([None])
    found = []
    for cut in cuts:
        kept = {name: part < cut * mean for name, part in norms.items()}
        removed = total - sum(int(mask.sum()) for mask in kept.values())
        generator = torch.Generator().manual_seed(seed)
        randomly = [_random_kept(sizes, removed, generator) for _ in range(draws)]
        after, *random = matrix.spectral_norms([kept, *randomly])
        found.append(RobustSmoothness(cut, total, removed, before, after, tuple(random)))
    return found


def _random_kept(sizes: Mapping[str, int], removed: int, generator: torch.Generator) -> dict[str, Tensor]:
    """All coordinates but as many at random, each choice equally likely."""
    kept = torch.ones(sum(sizes.values()), dtype=torch.bool)
    kept[torch.randperm(len(kept), generator=generator)[:removed]] = False
    return dict(zip(sizes, torch.split(kept, list(sizes.values())), strict=True))
