"""Ranks that measure together give the numbers of one process, agree on every error, and leave no trace."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ranks import on_ranks, refused
from stepscope import Objective, UsageError, edge, measure
from stepscope.measuring import hessian_rows, layer_multipliers, self_check
from stepscope.objective.process_group import Ranks

pytestmark = pytest.mark.slow

COUNTS = (3, 0, 1, 2)
"""Micro-batches of each rank."""


class Tagger(nn.Module):
    """Labels of tokens, by attention; dropout is left on, and draws the same numbers wherever a batch is evaluated."""

    def __init__(self):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(11, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, tokens, labels):
        x = self.embedding(tokens)
        x = x + F.dropout(self.attention(x, x, x)[0], 0.1, training=True)
        logits = self.head(F.gelu(self.norm(x)))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)}


def tagger():
    torch.manual_seed(1)
    return Tagger().double()


@functools.cache
def batches():
    generator = torch.Generator().manual_seed(2)
    made = []
    for rows in range(1, 7):
        labels = torch.randint(5, (rows, 6), generator=generator)
        labels[torch.rand(rows, 6, generator=generator) < 0.4] = -100
        made.append({"tokens": torch.randint(11, (rows, 6), generator=generator), "labels": labels})
    return made


def own(rank=None):
    rank = dist.get_rank() if rank is None else rank
    return batches()[sum(COUNTS[:rank]) : sum(COUNTS[: rank + 1])]


def valid(batch):
    return int((batch["labels"] != -100).sum())


def direction(parameters, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in parameters.items()}


def numbers(value, path=""):
    """All numbers of a record, by their path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value} if isinstance(value, int | float | str | None) and "seconds" not in path else {}
    return {key: number for name, inner in items for key, number in numbers(inner, f"{path}.{name}").items()}


def furthest(here, there):
    """The largest relative difference of two records, and where it is."""
    here, there = numbers(here), numbers(there)
    assert here.keys() == there.keys()
    worst = (0.0, "")
    for name, a in here.items():
        b = there[name]
        if isinstance(a, float) and isinstance(b, float):
            worst = max(worst, (abs(a - b) / max(abs(a), abs(b), 1e-3), name))
        else:
            assert a == b, (name, a, b)
    return worst


def everything(objective, prefix=""):
    d = {prefix + name: tensor for name, tensor in direction(dict(tagger().named_parameters())).items()}
    whole = {"breakdown": True, "within_layers": True, "landscape": True}
    exact, finite = (measure(objective, {"d": d}, method, **whole)["d"] for method in ("autograd", "difference"))
    multipliers = layer_multipliers(objective, d)
    records = {
        "exact": exact.record(),
        "finite": finite.record(),
        "edge": edge(objective, d, slope="gradient", decay={name: 0.1 * t for name, t in d.items()}).record(),
        "multipliers": {"gain": multipliers.gain, "slopes": multipliers.slopes},
        "weights": objective.weights,
    }
    # Rounding of slopes, over the length of a difference: an error bar, or what lies within one.
    for name in ("numerical_error", "sharpness", "sharpness_stderr", "within_layer", "cross_layer", "layers", "top"):
        records["finite"].pop(name)
    return numbers({name: renamed(record, prefix) for name, record in records.items()})


def renamed(record, prefix):
    if not isinstance(record, dict):
        return record
    return {str(key).removeprefix(prefix): renamed(value, prefix) for key, value in record.items()}


# ------------------------------------------------------------------------------------------------------------ cases


def one_process():
    return everything(Objective(tagger(), None, batches(), valid)) if dist.get_rank() == 0 else {}


def split():
    """Batches on three of four ranks."""
    objective = Objective(tagger(), None, own(), valid, process_group=dist.group.WORLD)
    return everything(objective)


def of_ddp():
    """On two of the four ranks, once with the wrapper and once with the module inside."""
    pair = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        return {}
    wrapped = nn.parallel.DistributedDataParallel(tagger(), process_group=pair)
    mine = batches()[:4] if dist.get_rank() == 0 else batches()[4:]
    inside = everything(Objective(wrapped.module, None, mine, valid, process_group=pair))
    return {"outside": everything(Objective(wrapped, None, mine, valid, process_group=pair), "module."), "in": inside}


def tried_weights():
    """Without dropout and `weight_fn`: ranks with a single micro-batch, or none, use what others have found."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (1, 5, 2, 2)]

    def loss(m, x):
        return m(x).square().mean()

    mine = {0: parts[:1], 1: [], 2: parts[1:], 3: []}[dist.get_rank()]
    together = Objective(model, loss, mine, process_group=dist.group.WORLD)
    alone = Objective(model, loss, parts)
    agreed = (together.weights, together.weighting.by, together.weighting.check)
    return agreed == (alone.weights, alone.weighting.by, alone.weighting.check)


def errors():
    """What one rank alone meets, all say."""
    rank, world = dist.get_rank(), dist.group.WORLD
    model = tagger()

    def made(**settings):
        return Objective(model, None, **{"batches": own(), "weight_fn": valid, "process_group": world, **settings})

    objective = made()
    here = dict(model.named_parameters())
    far = {name: (1e200 if rank == 2 else 1.0) * tensor for name, tensor in direction(here).items()}

    def raising(m, b):
        if rank == 2:
            raise KeyError("a bug of rank 2")
        return m(**b)["loss"]

    def exhausted(m, b):
        if rank == 2:
            raise torch.OutOfMemoryError("no memory on rank 2")
        return m(**b)["loss"]

    said = {
        "names": refused(lambda: Objective(nn.Sequential(model) if rank == 1 else model, None, own(), valid,
                                           process_group=world)),
        "dtype": refused(lambda: made(dtype=torch.float32 if rank == 3 else None)),
        "batches": refused(lambda: made(batches=own()[0] if rank == 0 else own())),
        "none": refused(lambda: made(batches=[])),
        "weight": refused(lambda: made(weight_fn=lambda b: -1.0 if rank == 2 else 1.0)),
        "direction": refused(lambda: measure(objective, {"d": far})),
        "shape": refused(lambda: measure(objective, {"d": {"head.bias": torch.ones(5 + (rank == 1))}})),
        "loss": refused(lambda: Objective(model, raising, own(), valid, process_group=world).loss()),
        "memory": refused(lambda: Objective(model, exhausted, own(), valid, process_group=world).loss()),
        "step": refused(objective.loss if rank else objective.gradient),
        "rows": refused(lambda: next(iter(hessian_rows(objective, [])), 0)),
    }  # fmt: skip
    with torch.no_grad():
        model.head.bias[0] += float(rank == 3)
    said["weights"] = refused(objective.loss)
    with torch.no_grad():
        model.head.bias[0] -= float(rank == 3)
    said["after"] = refused(objective.loss)
    return said


def no_double_backward():
    """On one rank alone: all measure by differences."""

    def loss(m, x):
        # Only one rank's micro-batches meet the operation.
        return m(x).square().mean() + (torch.cdist(m(x), m(x)).mean() if len(x) > 3 else 0.0)

    model = nn.Linear(3, 2).double()
    mine = [torch.ones(5, 3).double().cumsum(0)] if dist.get_rank() == 1 else [torch.ones(2, 3).double()]
    objective = Objective(model, loss, mine, lambda b: len(b), process_group=dist.group.WORLD)
    found = measure(objective, {"d": {"weight": torch.ones(2, 3).double()}})["d"]
    return found.method


def moved_statistics():
    """Each rank has running statistics of its own: the first one's count, and each gets its own back."""
    rank = dist.get_rank()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    model(parts[rank])

    def loss(m, x):
        return m(x).square().mean()

    before = [t.clone() for t in model.state_dict().values()]
    together = Objective(model, loss, [parts[rank]], len, process_group=dist.group.WORLD).loss()
    kept = all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    alone = Objective(model, loss, parts, len).loss() if rank == 0 else 0.0
    return kept, together, alone


def training():
    """Training with measurements between its steps ends where it does without."""

    def trained(*, probed):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        model = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(dist.get_rank())
        for _ in range(3):
            x = torch.randn(6, 3, generator=generator)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if probed:
                mine = [x] if dist.get_rank() != 1 else []
                objective = Objective(model, lambda m, x: m(x).square().mean(), mine, process_group=dist.group.WORLD)
                step = {name: -0.01 * p.grad for name, p in model.named_parameters()}
                measure(objective, {"d": step}, landscape=True)
                edge(objective, step)
            optimizer.step()
        return [t.clone() for t in (*model.state_dict().values(), torch.get_rng_state())]

    return all(torch.equal(a, b) for a, b in zip(trained(probed=False), trained(probed=True), strict=True))


def checked():
    """The self-check is that of one process."""
    found = self_check(Objective(tagger(), None, own(), valid, process_group=dist.group.WORLD))
    return [found.second_derivative, *found.suspicions]


CASES = (one_process, split, of_ddp, tried_weights, errors, no_double_backward, moved_statistics, training, checked)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(CASES, 4, tmp_path_factory.mktemp("ranks"))


def test_split_batches_give_the_numbers_of_one_process(results):
    reference = results["one_process"][0]
    for rank in results["split"]:
        assert furthest(rank, reference) < (1e-12, "")


def test_ranks_give_the_same_numbers_to_the_bit(results):
    first, *others = results["split"]
    assert all(first == other for other in others)


def test_a_wrapped_model_and_the_one_inside(results):
    for rank in results["of_ddp"][:2]:
        assert furthest(rank["outside"], results["one_process"][0]) < (1e-12, "")
        assert rank["outside"] == rank["in"]


def test_weights_are_those_of_a_trial_on_any_rank(results):
    assert results["tried_weights"] == [True] * 4


MISTAKES = {
    "names": ("UsageError", "differ in models or options", None),
    "dtype": ("UsageError", "differ in models or options", None),
    "batches": ("UsageError", "batches is a dict", 0),
    "none": ("UsageError", "no batches", None),
    "weight": ("UsageError", "weight_fn gave -1.0", 2),
    "direction": ("UsageError", "infinite or NaN", 2),
    "shape": ("UsageError", "has shape (6,)", 1),
    "loss": ("UsageError", "a bug of rank 2", 2),
    "memory": ("RuntimeError", "no memory on rank 2", 2),
    "step": ("OutOfStepError", "let all make the same steps", None),
    "rows": ("UsageError", "can't be computed over a process_group", None),
    "weights": ("UsageError", "differ in the values of parameters", None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_one_rank_is_said_on_all(results, mistake):
    kind, text, whose = MISTAKES[mistake]
    for rank, said in enumerate(results["errors"]):
        assert text in said[mistake]
        if rank != whose:
            assert said[mistake].startswith(f"{kind}: " if whose is None else f"{kind}: rank {whose}: ")
        assert said["after"] == ""


def test_ranks_choose_one_method(results):
    assert results["no_double_backward"] == ["difference"] * 4


def test_running_statistics_are_those_of_the_first_rank(results):
    alone = results["moved_statistics"][0][2]
    for kept, together, _ in results["moved_statistics"]:
        assert kept
        assert together == pytest.approx(alone, rel=1e-12)


def test_measuring_together_changes_nothing(results):
    assert results["training"] == [True] * 4


def test_the_self_check(results):
    assert results["checked"] == [["agrees"]] * 4


def test_one_process_exchanges_nothing():
    ranks = Ranks(None, torch.device("cpu"))
    with pytest.raises(UsageError, match="as it was"), ranks.agreed("anything"):
        raise UsageError("as it was")
    assert (ranks.concatenated([2.0]), ranks.before(3)) == ([2.0], 0)
