"""Robust smoothness: the spectral norm of a classifier's Gauss-Newton matrix without its few largest coordinates.

In a transformer, few coordinates carry most of the spectral norm (arXiv 2306.00204, §4 and Table 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        coordinates: the number of coordinates.
        removed: how many of them were removed.
        before: spectral norm with all coordinates, in units of loss/length².
        after: spectral norm without the removed ones.
        random: spectral norms after removing as many coordinates at random, one for each draw.
    """

    cut: float
    coordinates: int
    removed: int
    before: float
    after: float
    random: tuple[float, ...]

    @property
    def fraction(self) -> float:
        """The fraction of the coordinates that was removed."""
        return self.removed / self.coordinates

    @property
    def ratio(self) -> float | None:
        """``before / after``, how many times smoother it became; None where nothing is left."""
        return self.before / self.after if self.after > 0 else None

    @property
    def random_ratio(self) -> float | None:
        """The same for random removal: ``before`` over the mean of the draws; None without draws."""
        mean = math.fsum(self.random) / len(self.random) if self.random else 0.0
        return self.before / mean if mean > 0 else None

    def record(self) -> dict[str, Any]:
        """All numbers, for a line of JSON."""
        return {
            "cut": self.cut,
            "coordinates": self.coordinates,
            "removed": self.removed,
            "spectral_norm": self.before,
            "spectral_norm_removed": self.after,
            "spectral_norm_random": self.random,
            "fraction": self.fraction,
            "ratio": self.ratio,
            "random_ratio": self.random_ratio,
        }


def robust_smoothness(
    objective: Objective,
    parameters: Chosen = None,
    *,
    cuts: Sequence[float] = (4.0,),
    draws: int = 3,
    seed: int = 0,
    logits_fn: Logits | None = None,
) -> list[RobustSmoothness]:
    """How much smoother a classifier is without the few coordinates whose columns are large.

    ``R`` is the square root of the Gauss-Newton matrix (see `gauss_newton`). Columns whose norm is at least ``k`` times
    the mean column norm are removed. The spectral norm ``‖R‖₂²`` before is compared with that after.

    Args:
        objective: the classifier and its examples; see `gauss_newton` for what it costs.
        parameters: the tensors whose coordinates count: names or patterns (``"*.attention.*.weight"``), a function of
            the name, or None for all.
        cuts: each ``k``. The paper's text says 4, its published code 2.
        draws: how many times as many coordinates are removed at random, for comparison.
        seed: of the draws.
        logits_fn: ``logits_fn(model, batch)`` gives the logits, shape (examples, classes). None: ``model(**batch)``
            has ``logits`` in its output.

    Returns:
        A result for each cut.

    Raises:
        UsageError: see `gauss_newton`; a cut or the number of draws is impossible; or the matrix is zero.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204, §4
        and Table 8.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> x = torch.tensor([[9.0, 1.0, 1.0]])
        >>> objective = Objective(model, lambda m, x: cross_entropy(m(x), torch.tensor([0])), [x])
        >>> [smoothness] = robust_smoothness(objective, cuts=[2], logits_fn=lambda m, x: m(x))
        >>> smoothness.removed, smoothness.coordinates, round(smoothness.ratio, 3)  # (9² + 1² + 1²) / (1² + 1²)
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
    """`robust_smoothness` of a matrix that is computed already.

    Raises:
        UsageError: a cut or the number of draws is impossible, or the matrix is zero.
    """
    check_removal(cuts, draws)
    norms, sizes = matrix.column_norms(), matrix.sizes
    total = sum(sizes.values())
    mean = math.fsum(float(own.sum()) for own in norms.values()) / total
    if mean == 0:
        raise UsageError(
            "the Gauss-Newton matrix is zero here: the logits don't depend on these parameters, "
            "or every prediction is certain up to rounding"
        )
    [before] = matrix.spectral_norms([None])
    results = []
    for cut in cuts:
        kept = {name: own < cut * mean for name, own in norms.items()}
        removed = total - sum(int(mask.sum()) for mask in kept.values())
        generator = torch.Generator().manual_seed(seed)
        randomly = [_random_kept(sizes, removed, generator) for _ in range(draws)]
        after, *random = matrix.spectral_norms([kept, *randomly])
        results.append(RobustSmoothness(cut, total, removed, before, after, tuple(random)))
    return results


def _random_kept(sizes: Mapping[str, int], removed: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Masks of all coordinates without `removed` random ones, each choice equally likely."""
    kept = torch.ones(sum(sizes.values()), dtype=torch.bool, device="cpu")
    kept[torch.randperm(len(kept), generator=generator, device="cpu")[:removed]] = False
    return dict(zip(sizes, torch.split(kept, list(sizes.values())), strict=True))
