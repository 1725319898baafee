"""Records of the experiments on trainings, robustness and theory, made up so that the answer is known."""

from stepscope.paper.records import BoundRecord, CorrelationRecord, LossRecord, Margins, Rank, SmoothnessRecord

STEPS = (0, 5, 10)


def training(optimizer, seed, losses, *, original=None, task="code", bracketed=True, phase="final", lr=0.5):
    return [
        LossRecord(
            run=f"{task}, {optimizer}, {lr}, {phase}, {seed}", task=task, optimizer=optimizer, original=original,
            phase=phase, lr=lr, bracketed=bracketed, seed=seed, step=step, loss=loss, diverged=loss is None,
        )
        for step, loss in zip(STEPS, losses, strict=True)
    ]  # fmt: skip


def experiment(ours, theirs, **details):
    """Final losses of a variant and its original, by seed."""
    records = []
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        records += training("sgd", seed, (6.0, 5.0, b))
        records += training("sgd clip 10%", seed, (6.0, 4.0, a), original="sgd", **details)
    return records


def removal(group, cut, ratio, seed=0, **details):
    place = {"trajectory": "sgd", "step": 1, "batch": 0, "group": group, "cut": cut, "seed": seed}
    random = None if ratio is None else 1 + ratio / 100
    return SmoothnessRecord(**place | {"ratio": ratio, "fraction": 0.04, "random_ratio": random} | details)


def bound(seed, **details):
    margins = Margins(violations=0, least_margin=0.5, median_margin=0.7)
    record = {"seed": seed, "group": "quadratic, clip 10%", "family": "quadratic", "fraction": 0.1, "draws": 40}
    counts = {"guarantees_more": 10, "decreases_more": 20, "disagreements": 0}
    return BoundRecord(**record | counts | {"clipped": margins, "plain": margins} | details)


def correlation(group, seed, low, high, **details):
    place = {"trajectory": "sgd", "step": 1, "group": group, "seed": seed}
    ranks = {"diagonal": Rank(rho=(low + high) / 2, low=low, high=high), "row_norm": Rank()}
    return CorrelationRecord(**place | ranks | details)
