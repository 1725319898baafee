"""What clipping guarantees where few coordinates are bad (Pan and Li, appendix A; their formulas are derived here).

Let a fraction ``ε`` of the ``n`` coordinates be bad (``Lᵢ ≤ L``), the rest good (``Lᵢ ≤ ℓ``), where coordinate-wise
smoothness means ``f(y) ≤ f(x) + gᵀ(y−x) + ½ Σ Lᵢ(yᵢ−xᵢ)²``. A step ``x − ηd`` then costs at most ``½η²Q`` of what its
slope gains, with any ``Q ≥ Σ Lᵢdᵢ²``, and ``η* = gᵀd/Q`` guarantees ``f(x) − f(x − η*d) ≥ (gᵀd)²/(2Q)``.

- Clipped, ``d = c = clip(g, τ)``: no bad coordinate exceeds ``τ``, so ``Q = ℓ‖c‖² + εn(L−ℓ)τ²``.
- Unclipped, ``d = g``: ``Q = ℓ‖g‖² + (L−ℓ) Σ_bad gᵢ²``, large where bad coordinates have large gradients.

*By blocks* (the paper's way), for a positive semidefinite Hessian with bad block 1 and good block 2:
``uᵀHu ≤ 2(u₁ᵀH₁₁u₁ + u₂ᵀH₂₂u₂)``, since ``(u₁, −u₂)ᵀH(u₁, −u₂) ≥ 0``. With ``L = ‖H₁₁‖₂`` and ``ℓ = ‖H₂₂‖₂`` the
coordinates are then smooth with ``2L`` and ``2ℓ``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.clipping import clamp_, fraction_threshold
from stepscope.errors import UsageError


@dataclass(frozen=True)
class TwoLevels:
    """Coordinate-wise smoothness on two levels.

    Attributes:
        bad: which coordinates are bad, bool, shape (n,).
        large: ``L``, an upper bound of ``Lᵢ`` of the bad ones (loss per squared length).
        small: ``ℓ``, the same of the good ones; at most `large`.
    """

    bad: Tensor
    large: float
    small: float

    def __post_init__(self) -> None:
        if not 0 <= self.small <= self.large < math.inf:
            raise UsageError(f"smoothness of good and bad coordinates is {self.small} and {self.large}: 0 ≤ ℓ ≤ L")


@dataclass(frozen=True)
class Guarantee:
    """What the bound says of the step ``x − ηd``.

    Attributes:
        slope: ``gᵀd``.
        curvature: ``Q``, an upper bound of ``Σ Lᵢdᵢ²``.
    """

    slope: float
    curvature: float

    @property
    def step(self) -> float:
        """``η* = gᵀd/Q``, the step for which most is guaranteed."""
        return self.slope / self.curvature

    @property
    def decrease(self) -> float:
        """``(gᵀd)²/(2Q)``, by which that step lowers the loss at least."""
        return self.slope**2 / (2 * self.curvature)


def clip(gradient: Tensor, fraction: float) -> tuple[Tensor, float]:
    """The clipped gradient ``c``, and the ``τ`` above which that fraction of the coordinates of ``g`` lies.

    Args:
        gradient: ``g``, shape (n,); left as it is.
        fraction: ``p``, between 0 and 1.

    Raises:
        UsageError: nothing would be clipped, so there is no ``τ``: fewer than ``1/p`` coordinates, or only zeros.

    Example:
        >>> clip(torch.tensor([4.0, -1.0, 2.0, 0.5]), 0.25)
        (tensor([ 2.0000, -1.0000,  2.0000,  0.5000]), 2.0)
    """
    threshold = fraction_threshold([gradient], fraction)
    if not math.isfinite(threshold):
        raise UsageError(
            f"a fraction {fraction:g} of {len(gradient)} coordinates clips none: without a threshold there is no bound"
        )
    clipped = gradient.clone()
    clamp_([clipped], threshold)
    return clipped, threshold


def clipped_guarantee(gradient: Tensor, clipped: Tensor, threshold: float, levels: TwoLevels) -> Guarantee:
    """The bound of the clipped step: ``Q = ℓ‖c‖² + εn(L−ℓ)τ²``.

    Args:
        gradient: ``g``, shape (n,), float64.
        clipped: ``c = clip(g, τ)``, see `clip`.
        threshold: ``τ``.
        levels: ``L``, ``ℓ`` and the bad coordinates.

    Example:
        >>> g, levels = torch.tensor([4.0, 1.0]), TwoLevels(torch.tensor([True, False]), 10.0, 2.0)
        >>> clipped_guarantee(g, torch.tensor([1.0, 1.0]), 1.0, levels)  # 4 + 1, and 2·2 + 1·8·1²
        Guarantee(slope=5.0, curvature=12.0)
    """
    bad = int(levels.bad.sum())
    curvature = levels.small * float(clipped @ clipped) + bad * (levels.large - levels.small) * threshold**2
    return Guarantee(float(gradient @ clipped), curvature)


def plain_guarantee(gradient: Tensor, levels: TwoLevels) -> Guarantee:
    """The bound of the step along the gradient itself: ``Q = ℓ‖g‖² + (L−ℓ) Σ_bad gᵢ²``.

    Args:
        gradient: ``g``, shape (n,), float64.
        levels: ``L``, ``ℓ`` and the bad coordinates.

    Example:
        >>> plain_guarantee(torch.tensor([4.0, 1.0]), TwoLevels(torch.tensor([True, False]), 10.0, 2.0))
        Guarantee(slope=17.0, curvature=162.0)
    """
    square = float(gradient @ gradient)
    bad = gradient[levels.bad]
    return Guarantee(square, levels.small * square + (levels.large - levels.small) * float(bad @ bad))


def critical_ratio(gradient: Tensor, clipped: Tensor, threshold: float, bad: Tensor) -> float:
    """The ``L/ℓ`` above which clipping guarantees more than the gradient itself, below which less.

    With ``ρ = gᵀc/‖g‖²``, the part of the slope that clipping leaves, ``(gᵀc)²/Q_clipped > ‖g‖⁴/Q_plain`` says
    ``(L−ℓ)(ρ²Σ_bad gᵢ² − εnτ²) > ℓ(‖c‖² − ρ²‖g‖²)``. The right side is never negative (Cauchy and Schwarz), so
    clipping wins only if ``ρ²Σ_bad gᵢ² > εnτ²`` (the bad gradients are on average above ``τ/ρ``), and then exactly if
    ``L/ℓ > κ* = 1 + (‖c‖² − ρ²‖g‖²) / (ρ²Σ_bad gᵢ² − εnτ²)``.

    Args:
        gradient: ``g``, shape (n,), float64.
        clipped: ``c = clip(g, τ)``.
        threshold: ``τ``.
        bad: which coordinates are bad, bool, shape (n,).

    Returns:
        ``κ*``, at least 1; infinite where no ratio is large enough.

    Example:
        >>> g, c = torch.tensor([4.0, 1.0]).double(), torch.tensor([1.0, 1.0]).double()
        >>> ratio = critical_ratio(g, c, 1.0, torch.tensor([True, False]))  # ρ = 5/17
        >>> round(ratio, 12), round(1 + (2 - 25 / 17) / (16 * 25 / 289 - 1), 12)
        (2.378378378378, 2.378378378378)
    """
    square = float(gradient @ gradient)
    kept = float(gradient @ clipped) / square
    saved = kept**2 * float(gradient[bad] @ gradient[bad]) - int(bad.sum()) * threshold**2
    lost = max(0.0, float(clipped @ clipped) - kept**2 * square)
    return 1 + lost / saved if saved > 0 else math.inf


def block_bound(hessian: Tensor, bad: Tensor, u: Tensor) -> tuple[float, float]:
    """``uᵀHu``, and ``2(u₁ᵀH₁₁u₁ + u₂ᵀH₂₂u₂)``, which is no less where ``H`` is positive semidefinite.

    Args:
        hessian: ``H``, symmetric, shape (n, n).
        bad: which coordinates are block 1, bool, shape (n,); the rest are block 2.
        u: shape (n,).

    Example:
        >>> block_bound(torch.ones(2, 2), torch.tensor([True, False]), torch.tensor([1.0, 1.0]))
        (4.0, 4.0)
    """
    first, second = torch.where(bad, u, 0), torch.where(bad, 0, u)
    return float(u @ hessian @ u), 2 * float(first @ hessian @ first + second @ hessian @ second)
