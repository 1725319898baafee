"""Records of the experiments on trainings, robustness and theory, made up so that the answer is known."""

STEPS = (0, 5, 10)


def training(optimizer, seed, losses, *, original=None, task="code", bracketed=True, phase="final", lr=0.5):
    return [
        {"task": task, "optimizer": optimizer, "original": original, "phase": phase, "lr": lr, "bracketed": bracketed,
         "seed": seed, "step": step, "loss": loss, "diverged": loss is None}
        for step, loss in zip(STEPS, losses, strict=True)
    ]  # fmt: skip


def experiment(ours, theirs, **details):
    """Final losses of a variant and its original, by seed."""
    records = []
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        records += training("sgd", seed, (6.0, 5.0, b))
        records += training("sgd clip 10%", seed, (6.0, 4.0, a), original="sgd", **details)
    return records


def removal(group, cut, ratio, seed=0):
    return {"group": group, "cut": cut, "seed": seed, "ratio": ratio, "fraction": 0.04, "random_ratio": 1 + ratio / 100}


def bound(seed, **details):
    margins = {"violations": 0, "least_margin": 0.5, "median_margin": 0.7}
    record = {"seed": seed, "family": "quadratic", "fraction": 0.1, "draws": 40, "clipped": margins, "plain": margins}
    counts = {"guarantees_more": 10, "decreases_more": 20, "disagreements": 0}
    return record | counts | {"block": None} | details


def correlation(group, seed, low, high):
    found = {"rho": (low + high) / 2, "low": low, "high": high}
    return {"group": group, "seed": seed, "diagonal": found, "row_norm": {"rho": None, "low": None, "high": None}}
