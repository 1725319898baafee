"""The paper's claims, one row each. To add one, add a row; a test of it needs nothing else.

They stand together and not beside the experiments: thresholds are compared side by side and in the paper's order, and
C8 sets the records of two experiments against each other.
"""

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
from stepscope.paper.claims.verdicts import Claim, Criterion, JudgedClaim
from stepscope.paper.reproduction_runs import Run
from stepscope.runs import Record

MEDIAN = "median of the points"
"""The weaker reading of what is claimed of every point."""


def _lowers(value: float, variant: str, deciding: bool = True) -> Criterion:
    text = "median over points of the sharpness divided by the original's"
    return Criterion("<", value, lowered(variant), text, variant, deciding, optimizer=variant)


CLAIMS = (
    Claim(
        "C1",
        "On transformers SGD's directional sharpness is far above every adaptive method's, at every measured step, on "
        "both trajectories.",
        directions(*TRANSFORMERS, of_several=True),
        (
            Criterion("<", 0.5, largest_ratio(max), "largest ratio to SGD of an adaptive method at any point",
                      "every point"),
            Criterion("<", 0.5, largest_ratio(median), "median over points of the largest ratio to SGD of an adaptive "
                      "method", MEDIAN, reading=MEDIAN),
        ),
    ),
    Claim(
        "C2",
        "Clipping 10% cuts the sharpness of SGD and of normalized SGD strongly.",
        directions(*TRANSFORMERS),
        (_lowers(0.5, "sgd clip 10%"), _lowers(0.5, "normalized sgd clip 10%")),
    ),
    Claim(
        "C3",
        "Clipping 50% cuts the sharpness of Adam and of Adafactor.",
        directions(*TRANSFORMERS),
        (_lowers(1, ADAM_CLIPPED), _lowers(1, ADAFACTOR_CLIPPED), _lowers(1, "adam clip 50% (gradient)", False)),
    ),
    Claim(
        "C4",
        "Adafactor has the lowest sharpness, yet not the best local decrease: low sharpness alone is not enough.",
        directions(*TRANSFORMERS, of_several=True),
        (
            Criterion(">", 0.5, lowest, "share of points where Adafactor's sharpness is the lowest of the unclipped",
                      "lowest"),
            Criterion(">", 0.5, not_the_best, "share of points where its best decrease isn't the largest",
                      "not the best"),
        ),
    ),
    Claim(
        "C5",
        "The best local decrease ranks adaptive and clipped methods above SGD.",
        directions(*TRANSFORMERS, of_several=True),
        (Criterion(">", 0.5, least_often_ahead,
                   "share of points where the best decrease is larger than SGD's, for the method with the fewest"),),
    ),
    Claim(
        "C6",
        "SGD's sharpness is concentrated in the few largest coordinates, and its coordinates span many orders of "
        "magnitude.",
        directions(*TRANSFORMERS),
        (
            Criterion(">", 0.5, carried, "median share of SGD's sharpness that its 10% largest coordinates carry",
                      "10% largest"),
            Criterion(">", 3, decades_spanned, "median decades between the magnitudes that bound the middle 99.8% of "
                      "SGD's non-zero coordinates", "decades"),
        ),
    ),
    Claim(
        "C7",
        "Clipped variants converge faster than their originals, each at its own tuned learning rate.",
        clipped_trainings,
        (Criterion("<", 0, loss_difference, "difference of the final loss from the original's"),),
    ),
    Claim(
        "C8",
        "The local ranking (decrease along the direction) predicts the global one (training loss).",
        rankings,
        (Criterion(">", 0, local_against_global, "Spearman's ρ between the mean rank of the best decrease and the rank "
                   "of the final loss, lowest first"),),
    ),
    Claim(
        "C9",
        "On a ResNet the contrast is absent or reversed.",
        directions("images"),
        (Criterion(">", 0.5, median_ratio, "median ratio to SGD over points and adaptive methods"),),
    ),
    Claim(
        "C10",
        "Without its few largest coordinates the loss is two to three times smoother.",
        smoothed_groups,
        (
            Criterion("≥", 2, ratio(min), "smallest ratio of the spectral norm before and after",
                      "every batch and step"),
            Criterion("≥", 2, ratio(median), "median ratio of the spectral norm before and after", MEDIAN,
                      reading=MEDIAN),
        ),
    ),
    Claim(
        "C11",
        "Coordinates of |Hessian| and |gradient| are positively correlated.",
        correlated_scopes,
        (
            Criterion(">", 0, mean_rho("diagonal"), "mean of ρ between |gradient| and |diagonal|"),
            Criterion(">", 0, mean_rho("row_norm"), "mean of ρ between |gradient| and row norm", "row norm", False),
        ),
    ),
    Claim(
        "C12",
        "The bound of appendix A holds.",
        bounded_losses,
        (Criterion("≤", 0, violations, "draws in which the decrease is less than guaranteed", always=True),),
    ),
)  # fmt: skip
"""Each with what it is tested on, the statistics of one seed, and their thresholds."""


ALONG_TRAJECTORIES = CLAIMS[:6]
"""Those about directions on transformers alone."""


def judge(runs: Sequence[Run[Record]], claims: Sequence[Claim] = CLAIMS) -> list[JudgedClaim]:
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
