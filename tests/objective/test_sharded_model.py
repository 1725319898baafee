"""Models that lie in parts on several ranks: the numbers of one process, and a training that nothing disturbs."""

import functools
import signal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ranks import on_ranks, refused
from stepscope import Objective, UsageError, clip_sweep, edge, measure, next_update
from stepscope.measuring import layer_multipliers, self_check

pytestmark = pytest.mark.slow

OF_SAMPLES = ("sharpness_stderr", "realized_stderr", "slope_stderr", "signal_to_noise",
              "numerical_error", "sharpness_finite_error")  # fmt: skip
"""Of rounds, in which all ranks evaluate a micro-batch together, not of micro-batches; and error bars, of rounding."""


SETTINGS = {2: (True,), 4: (None, False)}
"""Of `reshard_after_forward`, on as many ranks."""


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    """Its parts are uneven on two and four ranks, and some of them empty."""

    def __init__(self, width=10, words=11):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(width, words)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return 1.0 * self.head(self.scale * x)  # FSDP warns of views


def model(dtype=torch.float64):
    torch.manual_seed(1)
    return Model().to(dtype)


def loss_fn(m, batch):
    logits = m(batch["tokens"])
    return F.cross_entropy(logits.flatten(0, 1).double(), batch["labels"].flatten(), ignore_index=-100)


@functools.cache
def batches():
    generator = torch.Generator().manual_seed(2)
    made = []
    for rows in (1, 2, 3, 1, 2):
        labels = torch.randint(11, (rows, 6), generator=generator)
        labels[torch.rand(rows, 6, generator=generator) < 0.4] = -100
        made.append({"tokens": torch.randint(11, (rows, 6), generator=generator), "labels": labels})
    return made


def own():
    """Uneven counts; the last rank has a micro-batch of weight 0 alone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank == size - 1:
        return [{**batches()[0], "labels": torch.full((1, 6), 3)}]
    return batches()[rank :: size - 1]


def counted(batch):
    return 0 if bool((batch["labels"] == 3).all()) else int((batch["labels"] != -100).sum())


def direction(shard=lambda m: m, dtype=torch.float64, size=0.05):
    """Random numbers, in the places of the parameters of a model that is sharded like another."""
    twin, generator = model(dtype), torch.Generator().manual_seed(3)
    for parameter in twin.parameters():
        parameter.data = size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return {name: parameter.detach() for name, parameter in shard(twin).named_parameters() if parameter.requires_grad}


def sharded(m, mesh=None, **settings):
    for block in m.blocks:
        fully_shard(block, mesh=mesh, **settings)
    return fully_shard(m, mesh=mesh, **settings)


def measured(mine, shard=lambda m: m, dtype=torch.float64):
    objective = Objective(shard(model(dtype)), loss_fn, mine, counted)
    d = direction(shard, dtype)
    finite = measure(objective, {"d": d}, "difference", landscape=True)["d"].record()
    multiples = edge(objective, d, slope="gradient", decay={name: 0.1 * t for name, t in d.items()}).record()
    for record in (finite, multiples):
        for name in (*OF_SAMPLES, "seconds", "method_reason"):
            record.pop(name, None)
    multiples.pop("lowest_multiple")  # of equally low ones
    of_differences = (
        "sharpness",
        "sharpness_finite",
        "sharpness_robust",
        "edge_ratio",
        "predicted_step",
        "predicted_decrease",
    )
    curvatures = {name: finite.pop(name) for name in of_differences}
    return {"losses": multiples, "finite": finite, "curvatures": curvatures, "exact": exactly(objective, d)}


def exactly(objective, d):
    try:
        exact = measure(objective, {"d": d}, "autograd")["d"]
    except UsageError as error:
        return str(error)
    return {name: getattr(exact, name) for name in ("loss", "slope", "sharpness")}


def in_parts(mine, shard=lambda m: m, method="difference"):
    """What is said of layers and coordinates, and of directions that are made of one."""
    objective = Objective(shard(model()), loss_fn, mine, counted)
    d = direction(shard)
    d["head.bias"].zero_()
    tied = {name: t.sign() for name, t in d.items()}
    layers = {"embedding": "first", "blocks": "blocks", "scale": "last", "head.weight": "last", "head.bias": "bias"}
    found = measure(objective, {"d": d}, method, breakdown=True, within_layers=True, layer=layers)
    found |= measure(objective, {"tied": tied}, method, breakdown=True)
    swept = clip_sweep(objective, d, fractions=[0.01, 1])
    multiplied = layer_multipliers(objective, d, layers, method)
    counts = {label: vars(m.breakdown.magnitudes) for label, m in found.items()}
    norms = {f"{label} {p:g}": part["norm"] for label, m in found.items() for p, part in m.breakdown.top.items()}
    sharpness = {
        f"{label} {p:g}": part["sharpness"] for label, m in found.items() for p, part in m.breakdown.top.items()
    }
    return {
        "counts": counts,
        "norms": norms,
        "losses": {"gain": multiplied.gain, **{f"{p:g}": m.best_decrease for p, m in swept.measurements.items()}},
        "curvatures": {
            "top": sharpness,
            "layers": {label: m.breakdown.layers for label, m in found.items()},
            "within": [found["d"].within_layer, found["d"].cross_layer],
            "swept": {f"{p:g}": m.sharpness for p, m in swept.measurements.items()},
            "multipliers": multiplied.multipliers,
            "slopes": multiplied.slopes,
            "interactions": multiplied.interactions,
        },
    }


def alone_only(*args):
    """In one process, for comparison: by the first rank."""
    return measured(batches(), *args) if dist.get_rank() == 0 else {}


def furthest(here, there, path=""):
    """The largest relative difference of numbers of two records."""
    if isinstance(here, dict):
        assert here.keys() == there.keys()
        return max((furthest(here[k], there[k], f"{path}.{k}") for k in here), default=(0.0, ""))
    if isinstance(here, list | tuple):
        assert len(here) == len(there), path
        return max(
            (furthest(a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(here, there, strict=True))),
            default=(0.0, ""),
        )
    if isinstance(here, float) and isinstance(there, float) and here != there:
        return abs(here - there) / max(abs(here), abs(there), 1e-6), path
    assert here == there, path
    return 0.0, path


# ------------------------------------------------------------------------------------------------------------ cases


def alone():
    return alone_only()


def by_fsdp():
    """`reshard_after_forward` in its settings."""
    return {
        str(setting): measured(own(), functools.partial(sharded, reshard_after_forward=setting))
        for setting in SETTINGS[dist.get_world_size()]
    }


def by_tensor_parallelism():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return measured(batches(), lambda m: parallel(m, mesh))


def parallel(m, mesh):
    """Attention and norms stay plain, the same on all ranks; so does the last bias."""
    for block in m.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    plan = {"embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())}
    return parallelize_module(m, mesh, plan)


def by_two_meshes():
    """HSDP, and FSDP of a model that is parallel in its tensors, on 2 × 2 ranks."""
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensors"))
    mine = batches()[dist.get_rank() // 2 :: 2]
    return {
        "hsdp": measured(own(), lambda m: sharded(m, hybrid)),
        "fsdp and tensors": measured(mine, lambda m: sharded(parallel(m, mesh["tensors"]), mesh["data"])),
    }


def tied(m):
    m.head.weight = m.embedding.weight
    return m


def frozen(m):
    m.embedding.requires_grad_(False)
    m.blocks[0].up.bias.requires_grad_(False)
    return m


def divided(m):
    """Gradients are divided by a factor of the user's."""
    m = sharded(m)
    for module in (m, *m.blocks):
        module.set_gradient_divide_factor(7.0)
    return m


precise = functools.partial(sharded, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))


def details():
    size = dist.get_world_size()
    found = {"alone": in_parts(batches()) if dist.get_rank() == 0 else {}}
    found["alone, exact"] = in_parts(batches(), method="autograd") if dist.get_rank() == 0 else {}
    if size == 2:
        mesh = init_device_mesh("cpu", (size,))
        found["fsdp"] = in_parts(own(), sharded)
        found["fsdp, exact"] = in_parts(own(), sharded, "autograd")
        found["tensors"] = in_parts(batches(), lambda m: parallel(m, mesh))
        return found
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensors"))
    mine = batches()[dist.get_rank() // 2 :: 2]
    found["hsdp"] = in_parts(own(), lambda m: sharded(m, hybrid))
    found["fsdp x tensors"] = in_parts(mine, lambda m: sharded(parallel(m, mesh["tensors"]), mesh["data"]))
    return found


def special():
    return {
        "tied": measured(own(), lambda m: sharded(tied(m))),
        "divided": measured(own(), divided),
        "divided alone": alone_only(),
        "tied alone": alone_only(tied),
        "frozen": measured(own(), lambda m: sharded(frozen(m))),
        "frozen alone": alone_only(frozen),
        "float32": measured(own(), precise, torch.float32),
        "float32 alone": alone_only(lambda m: m, torch.float32),
    }


def half_precision():
    """Losses of the bf16 policy, as training's forward pass computes them; and gradients of a custom factor."""
    m = precise(model(torch.float32))
    objective = Objective(m, loss_fn, own(), counted)
    d = direction(precise, torch.float32, size=0.3)
    found = edge(objective, d)

    def pooled():
        m.eval()
        with torch.no_grad():
            terms = torch.tensor([float(loss_fn(m, b)) * counted(b) for b in rounds()])
        m.train()
        dist.all_reduce(total := terms.double().sum())
        return float(total) / sum(map(counted, batches()))

    before = pooled()
    m.reshard()
    with torch.no_grad():
        for name, parameter in m.named_parameters():
            parameter.add_(d[name])
    return [found.losses[0], before, found.losses[found.multiples.index(1.0)], pooled()]


def rounds():
    """Two micro-batches on each of four ranks; one of them counts nothing."""
    first = own()[0]
    return [*own(), {**first, "labels": torch.full_like(first["labels"], 3)}][:2]


def training():
    """Two steps with measurements before them, one of which fails, end where two steps without end."""

    def trained(setting, policy, *, probed):
        m = sharded(model(torch.float32), reshard_after_forward=setting, mp_policy=policy)
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
        hooked = []
        handle = m.head.bias.register_post_accumulate_grad_hook(lambda _: hooked.append(1))
        for step in range(2):
            optimizer.zero_grad()
            loss_fn(m, batches()[(step + dist.get_rank()) % 5]).backward()
            before = {n: (p.grad.to_local().clone(), p.to_local().clone()) for n, p in m.named_parameters()}
            if probed:
                d = next_update(optimizer, dict(m.named_parameters()))
                objective = Objective(m, loss_fn, own(), counted)
                measure(objective, {"d": d}, landscape=True)
                measure(objective, {"d": d}, "autograd")
                assert refused(lambda: measure(Objective(m, failing, own(), counted), {"d": d}))  # noqa: B023
                edge(objective, d)
            for name, p in m.named_parameters():
                gradient, weight = before[name]
                assert torch.equal(p.grad.to_local(), gradient), name
                assert torch.equal(p.to_local(), weight), name
            optimizer.step()
        handle.remove()
        assert len(hooked) == 2
        return [p.detach().to_local().clone() for p in m.parameters()]

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    settings = [(None, MixedPrecisionPolicy()), (False, policy)]
    return [
        all(map(torch.equal, trained(*setting, probed=False), trained(*setting, probed=True))) for setting in settings
    ]


def failing(m, batch):
    """Fails in the middle of a forward pass."""
    handle = m.blocks[1].out.register_forward_hook(lambda *_: 1 / 0)
    try:
        return loss_fn(m, batch)
    finally:
        handle.remove()


def mutants():
    """What is wrong silently is seen by losses that don't go with slopes."""

    def agrees(break_it, setting=None):
        m = sharded(model(), reshard_after_forward=setting)
        objective = Objective(m, loss_fn, own(), counted)
        break_it(objective._how, objective)
        try:
            return self_check(objective).gradient_agrees
        except (RuntimeError, UsageError) as error:  # which says it as well
            return "mixed torch.Tensor and DTensor" not in str(error)

    def factor(s, _):
        s._factor = 1.0

    def no_reshard(s, _):
        s.reshard = lambda: None

    def weight(s, objective):
        right = s.gradient
        s.gradient = lambda loss, *rest, **named: right(loss * (3.0 if dist.get_rank() == 0 else 1.0), *rest, **named)

    return [agrees(lambda *_: None), agrees(factor), agrees(no_reshard, False), agrees(weight)]


def interrupted(m):
    """Ctrl-C on the third rank, in its first evaluation: all leave before the second."""

    def pressing(m, batch):
        if dist.get_rank() == 2:
            signal.raise_signal(signal.SIGINT)
        return loss_fn(m, batch)

    before = [p.detach().to_local().clone() for p in m.parameters()]
    try:
        said = refused(Objective(m, pressing, own(), counted).gradient)
    except KeyboardInterrupt:
        said = "RuntimeError: rank 2: KeyboardInterrupt"
    m.reshard()
    return said if all(torch.equal(b, p.to_local()) for b, p in zip(before, m.parameters(), strict=True)) else "moved"


def refusals():
    m = sharded(model())
    d = direction(sharded)
    objective = Objective(m, loss_fn, own(), counted)
    whole = {"head.bias": torch.ones(11).double()}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    hybrid, other = sharded(model(), mesh), direction(lambda m: sharded(m, mesh))
    if dist.get_rank() == 1:
        other["head.bias"].to_local().mul_(2)
    said = {
        "weights": lambda: Objective(m, loss_fn, own()),
        "dtype": lambda: Objective(m, loss_fn, own(), counted, dtype=torch.float32),
        "memory": lambda: Objective(m, loss_fn, own(), counted, memory=0.5),
        "no batch": lambda: Objective(m, loss_fn, own() if dist.get_rank() < 3 else [], counted),
        "whole": lambda: measure(objective, {"d": whole}),
        "names": lambda: measure(objective, {"d": d if dist.get_rank() else dict(list(d.items())[1:])}),
        "order": lambda: measure(objective, {"d": d if dist.get_rank() else dict(reversed(d.items()))}),
        "one shape": lambda: measure(objective, {"d": d if dist.get_rank() else whole}),
        "copies": lambda: measure(Objective(hybrid, loss_fn, own(), counted), {"d": other}),
        "batches": lambda: Objective(parallel(model(), init_device_mesh("cpu", (4,))), loss_fn, own(), counted),
        "half": lambda: measure(Objective(sharded(model(torch.bfloat16)), loss_fn, own(), counted), {"d": d}),
        "offload": lambda: Objective(sharded(model(), offload_policy=CPUOffloadPolicy(pin_memory=False)), loss_fn,
                                     own(), counted),
        "compiled": lambda: Objective(torch.compile(m), loss_fn, own(), counted),
    }  # fmt: skip
    found = {name: refused(call) for name, call in said.items()}
    m.set_requires_gradient_sync(False)
    loss_fn(m, batches()[0]).backward()
    found["waiting"] = refused(objective.loss)
    m.set_requires_gradient_sync(True)
    loss_fn(m, batches()[0]).backward()
    found["Ctrl-C"] = interrupted(m)
    found["after"] = refused(objective.loss)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    cases = (alone, by_fsdp, by_tensor_parallelism, details, special, training, mutants)
    return on_ranks(cases, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    cases = (alone, by_fsdp, by_two_meshes, details, half_precision, refusals)
    return on_ranks(cases, 4, tmp_path_factory.mktemp("four"))


def check(found, reference, curvatures=1e-6, rounding=1e-10, exact=(("exact", 1e-10),)):
    for name, tolerance in (("losses", rounding), ("finite", rounding), ("curvatures", curvatures), *exact):
        assert furthest(found[name], reference[name]) < (tolerance, "")


def test_fsdp_gives_the_numbers_of_one_process(two, four):
    for results in (two, four):
        first, *others = results["by_fsdp"]
        for found in first.values():
            check(found, results["alone"][0])
        assert all(other == first for other in others)


def test_tensor_parallelism_gives_the_numbers_of_one_process(two):
    for rank in two["by_tensor_parallelism"]:
        check(rank, two["alone"][0], exact=())
        assert "wrong under tensor parallelism" in rank["exact"]


@pytest.mark.parametrize("form", ["hsdp", "fsdp and tensors"])
def test_two_meshes_give_the_numbers_of_one_process(four, form):
    for rank in four["by_two_meshes"]:
        check(rank[form], four["alone"][0], exact=() if "tensors" in form else (("exact", 1e-10),))


def test_layers_largest_coordinates_sweeps_and_multipliers_are_those_of_one_process(two, four):
    for results, count in ((two, 3), (four, 2)):
        first = results["details"][0]
        for rank in results["details"]:
            forms = [form for form in rank if not form.startswith("alone")]
            assert len(forms) == count
            for form in forms:
                exact = form.endswith("exact")
                reference = first["alone, exact" if exact else "alone"]
                tolerances = {"counts": 1e-300, "norms": 1e-14, "losses": 1e-10, "curvatures": 1e-10 if exact else 1e-6}
                for name, tolerance in tolerances.items():
                    assert furthest(rank[form][name], reference[name]) < (tolerance, ""), form


@pytest.mark.parametrize("form", ["tied", "frozen", "divided"])
def test_tied_and_frozen_weights_and_another_factor(two, form):
    for rank in two["special"]:
        check(rank[form], two["special"][0][f"{form} alone"])


def test_gradients_in_float32_without_the_policy(two):
    for rank in two["special"]:
        curvature, alone = rank["float32"]["curvatures"], two["special"][0]["float32 alone"]["curvatures"]
        assert curvature["sharpness"] == pytest.approx(alone["sharpness"], rel=5e-4)


def test_losses_are_those_of_the_policy(four):
    for here, by_hand, there, by_hand_there in four["half_precision"]:
        assert here == pytest.approx(by_hand, rel=1e-7)
        assert there == pytest.approx(by_hand_there, rel=1e-7)


def test_training_goes_on_as_if_nothing_was_measured(two):
    assert two["training"] == [[True] * 2] * 2


def test_the_self_check_sees_what_is_wrong(two):
    assert two["mutants"] == [[True, False, False, False]] * 2


def test_ctrl_c_on_one_rank_ends_the_measurement_on_all(four):
    for said in four["refusals"]:
        assert said["Ctrl-C"].startswith("RuntimeError: rank 2: KeyboardInterrupt")
        assert said["after"] == ""


REFUSED = {
    "weights": "give weight_fn",
    "dtype": "give no dtype",
    "memory": "no memory",
    "no batch": "a rank has no batches",
    "names": "differ in direction 'd'",
    "order": "differ in direction 'd'",
    "one shape": "isn't sharded as its parameter is",
    "whole": "isn't sharded as its parameter is",
    "copies": "differ in direction 'd'",
    "batches": "differ in batches",
    "half": "only edge measures them",
    "offload": "offloaded to the CPU",
    "compiled": "compiled",
    "waiting": "gradients wait for their synchronization",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_isnt_known_to_be_right_is_refused(four, what):
    for said in four["refusals"]:
        assert said[what].startswith("UsageError: ")
        assert REFUSED[what] in said[what]
        assert said["after"] == ""
