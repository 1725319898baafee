"""The paper's claims, one row each. To add one, add a row; a test of it needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from stepscope.paper.claims.samples import (
    TRANSFORMERS,
    bounded_losses,
    clipped_trainings,
    correlated_scopes,
    directions,
    rankings,
    smoothed_groups,
)
from stepscope.paper.claims.seed_statistics import (
    ADAFACTOR_CLIPPED,
    ADAM_CLIPPED,
    carried,
    decades_spanned,
    largest_ratio,
    least_often_ahead,
    local_against_global,
    loss_difference,
    lowered,
    lowest,
    mean_rho,
    median_ratio,
    not_the_best,
    ratio,
    violations,
)
from stepscope.paper.claims.verdicts import Claim, Criterion, JudgedClaim, Threshold
from stepscope.paper.runs import Run


def _lowers(variant: str, threshold: float, deciding: bool = True) -> Criterion:
    text = "median over points of the sharpness divided by the original's"
    return Criterion(lowered(variant), text, Threshold("<", threshold), variant, deciding)


CLAIMS = (
    Claim(
        "C1",
        "On transformers SGD's directional sharpness is far above every adaptive method's, at every measured step, on "
        "both trajectories.",
        directions(*TRANSFORMERS),
        (Criterion(largest_ratio, "largest ratio to SGD of an adaptive method at any point", Threshold("<", 0.5)),),
    ),
    Claim(
        "C2",
        "Clipping 10% cuts the sharpness of SGD and of normalized SGD strongly.",
        directions(*TRANSFORMERS),
        (_lowers("sgd clip 10%", 0.5), _lowers("normalized sgd clip 10%", 0.5)),
    ),
    Claim(
        "C3",
        "Clipping 50% cuts the sharpness of Adam and of Adafactor.",
        directions(*TRANSFORMERS),
        (
            _lowers(ADAM_CLIPPED, 1.0),
            _lowers(ADAFACTOR_CLIPPED, 1.0),
            _lowers("adam clip 50% (gradient)", 1.0, deciding=False),
        ),
    ),
    Claim(
        "C4",
        "Adafactor has the lowest sharpness, yet not the best local decrease: low sharpness alone is not enough.",
        directions(*TRANSFORMERS),
        (
            Criterion(
                lowest,
                "share of points where Adafactor's sharpness is the lowest of the unclipped",
                Threshold(">", 0.5),
                "lowest",
            ),
            Criterion(
                not_the_best,
                "share of points where its best decrease isn't the largest",
                Threshold(">", 0.5),
                "not the best",
            ),
        ),
    ),
    Claim(
        "C5",
        "The best local decrease ranks adaptive and clipped methods above SGD.",
        directions(*TRANSFORMERS),
        (
            Criterion(
                least_often_ahead,
                "share of points where the best decrease is larger than SGD's, for the method with the fewest",
                Threshold(">", 0.5),
            ),
        ),
    ),
    Claim(
        "C6",
        "SGD's sharpness is concentrated in the few largest coordinates, and its coordinates span many orders of "
        "magnitude.",
        directions(*TRANSFORMERS),
        (
            Criterion(
                carried,
                "median share of SGD's sharpness that its 10% largest coordinates carry",
                Threshold(">", 0.5),
                "10% largest",
            ),
            Criterion(
                decades_spanned,
                "median decades between the magnitudes that bound the middle 99.8% of SGD's non-zero coordinates",
                Threshold(">", 3.0),
                "decades",
            ),
        ),
    ),
    Claim(
        "C7",
        "Clipped variants converge faster than their originals, each at its own tuned learning rate.",
        clipped_trainings,
        (Criterion(loss_difference, "difference of the final loss from the original's", Threshold("<", 0.0)),),
    ),
    Claim(
        "C8",
        "The local ranking (decrease along the direction) predicts the global one (training loss).",
        rankings,
        (
            Criterion(
                local_against_global,
                "Spearman's ρ between the mean rank of the best decrease and the rank of the final loss, lowest first",
                Threshold(">", 0.0),
            ),
        ),
    ),
    Claim(
        "C9",
        "On a ResNet the contrast is absent or reversed.",
        directions("images"),
        (Criterion(median_ratio, "median ratio to SGD over points and adaptive methods", Threshold(">", 0.5)),),
    ),
    Claim(
        "C10",
        "Without its few largest coordinates the loss is two to three times smoother.",
        smoothed_groups,
        (
            Criterion(
                ratio(median),
                "median ratio of the spectral norm before and after",
                Threshold("≥", 2.0),
                "median",
            ),
            Criterion(
                ratio(min),
                "smallest ratio of the spectral norm before and after",
                Threshold("≥", 2.0),
                "every batch and step",
            ),
        ),
    ),
    Claim(
        "C11",
        "Coordinates of |Hessian| and |gradient| are positively correlated.",
        correlated_scopes,
        (
            Criterion(mean_rho("diagonal"), "mean of ρ between |gradient| and |diagonal|", Threshold(">", 0.0)),
            Criterion(
                mean_rho("row_norm"),
                "mean of ρ between |gradient| and row norm",
                Threshold(">", 0.0),
                "row norm",
                deciding=False,
            ),
        ),
    ),
    Claim(
        "C12",
        "The bound of appendix A holds.",
        bounded_losses,
        (
            Criterion(
                violations,
                "draws in which the decrease is less than guaranteed",
                Threshold("≤", 0.0, always=True),
            ),
        ),
    ),
)


def judge(runs: Sequence[Run], claims: Sequence[Claim] = CLAIMS) -> list[JudgedClaim]:
    """What these runs say of each claim.

    Args:
        runs: of one reproduction; some may be missing or unfinished. What wasn't measured can't be told.
        claims: those to judge.

    Example:
        >>> claims = judge([])
        >>> len(claims), claims[0].id, {claim.verdict for claim in claims}
        (12, 'C1', {'cannot tell'})
    """
    return [claim.judge(runs) for claim in claims]
