"""A probe on all ranks: the numbers of one process, and a training that nothing disturbs."""

import contextlib
import functools
import logging
import math
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ranks import on_ranks, refused
from stepscope import Probe, clip_optimizer
from stepscope.objective import dtensors, interrupts
from stepscope.runs import DirectionRecord, read_run, read_steps
from traces import Log

pytestmark = pytest.mark.slow

STEPS, WIDTH, ROWS = 6, 5, 12


class Model(nn.Module):
    """Its parts are uneven on two ranks."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, WIDTH)
        self.up, self.down, self.norm = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        x = self.embedding(tokens).mean(1)
        return self.head(self.norm(x + self.down(nn.functional.gelu(self.up(x)))))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def rows_of(batch):
    return len(batch["x"])


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(n, s, generator=generator) for n, s in ((7, (count, ROWS, 4)), (3, (count, ROWS))))
    return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]


def part(batch, share):
    """The rows of one of so many data ranks."""
    number, count = share
    return {name: tensor[number * ROWS // count : (number + 1) * ROWS // count] for name, tensor in batch.items()}


def as_it_is(model):
    return model


def by_ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def by_fsdp(model):
    for module in (model.up, model.down):
        fully_shard(module)
    return fully_shard(model)


def by_tensors(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def in_half_precision(model):
    """As large models train, and all weights stay gathered from the forward to the backward pass."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for module in (model.up, model.down, model):
        fully_shard(module, mp_policy=policy, reshard_after_forward=False)
    return model


def by_copies_of_shards(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    fully_shard(model.up, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_shards_of_tensors(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensors"))
    parallelize_module(model, mesh["tensors"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


def everywhere():
    return dist.get_rank(), dist.get_world_size()


WAYS = {
    "alone": (as_it_is, lambda: (0, 1), False),
    "ddp": (by_ddp, everywhere, True),
    "fsdp": (by_fsdp, everywhere, False),
    "tensors": (by_tensors, lambda: (0, 1), False),
    "half": (in_half_precision, everywhere, False),
    "hsdp": (by_copies_of_shards, everywhere, False),
    "fsdp x tensors": (by_shards_of_tensors, lambda: (dist.get_rank() // 2, 2), False),
}


def trained(way, probed=True, accumulate=1, clip=None, dtype=torch.float64, loss=loss_fn, factory=None, **settings):
    """A training on batches that are shared out: what its probe measured, and what it left behind."""
    wrap, share_of, group = WAYS[way]
    share = share_of()
    torch.manual_seed(1)
    model = wrap(Model().to(dtype))
    optimizer = (factory or (lambda p: torch.optim.AdamW(p, lr=0.05)))(model.parameters())
    evaluation = [part(batch, share) for batch in data(2, seed=2)]
    given = {
        "every": 4, "max_overhead": None, "directions": {"sgd": lambda p: torch.optim.SGD(p, lr=0.1)}, "quiet": True,
        "steps": STEPS, "weight_fn": rows_of, "process_group": dist.group.WORLD if group else None,
    }  # fmt: skip
    probe = Probe(model, optimizer, loss, evaluation, **given | settings) if probed else None
    for batches in zip(*[iter(data(STEPS * accumulate, seed=3))] * accumulate, strict=True):
        optimizer.zero_grad()
        for batch in batches:
            mine = part(batch, share)
            with probe.batch(mine) if probe else contextlib.nullcontext():
                (loss_fn(model, mine) / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    if probe is not None:
        probe.close()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    left = [(t.to_local() if hasattr(t, "to_local") else t).detach().clone() for t in tensors]
    return probe, [*left, torch.get_rng_state()]


UNTOLD = ("seconds", "layers", "top", "magnitudes", "method", "method_reason", "numerical_error", "sharpness_stderr",
          "sharpness_finite_error", "step_error", "landscape", "batch_noise", "slope_by", "slope_stderr",
          "signal_to_noise", "realized_stderr", "noise")  # fmt: skip
"""What belongs to the machine, to the method or to rounds, in which ranks evaluate together."""


def told(probe):
    """The numbers of the records."""

    def plain(value, path=""):
        if isinstance(value, dict):
            return [n for key, inner in value.items() if key not in UNTOLD for n in plain(inner, f"{path}.{key}")]
        if isinstance(value, list | tuple):
            return [n for place, inner in enumerate(value) for n in plain(inner, f"{path}[{place}]")]
        return [(path, value)]

    return {"steps": plain(probe.step_records), "records": plain(probe.records)}


# ------------------------------------------------------------------------------------------------------------ cases


def numbers():
    """With the optimizers that are compared by default, which follow the run."""
    settings = {"directions": None, "every": 6}
    found = {way: told(trained(way, **settings)[0]) for way in ("ddp", "fsdp", "tensors")}
    return found | {"alone": told(trained("alone", **settings)[0]) if dist.get_rank() == 0 else {}}


def on_two_meshes():
    found = {way: told(trained(way, every=6)[0]) for way in ("hsdp", "fsdp x tensors")}
    return found | {"alone": told(trained("alone", every=6)[0]) if dist.get_rank() == 0 else {}}


def half_precision():
    """Whether training is as without, how many steps were measured, and the first one's terms, beside exact ones."""
    probe, left = trained("half", dtype=torch.float32, every=1000)
    plain = trained("half", probed=False, dtype=torch.float32)[1]
    exact = trained("alone", dtype=torch.float32, every=1000)[0] if dist.get_rank() == 0 else None
    first, reference = probe.step_records[0], exact.step_records[0] if exact else None
    names = ("batch_loss", "batch_slope", "batch_change")
    return [
        all(map(torch.equal, plain, left)), len(probe.step_records), [first[name] for name in names],
        [reference[name] for name in names] if reference else [],
    ]  # fmt: skip


def accumulated():
    """Steps of two backward passes each, clipped."""
    settings = {"accumulate": 2, "clip": 0.1, "every": 1000}
    found = {way: told(trained(way, **settings)[0])["steps"] for way in ("ddp", "fsdp")}
    return found | {"alone": told(trained("alone", **settings)[0])["steps"] if dist.get_rank() == 0 else []}


def by_fraction(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    clip_optimizer(optimizer, 0.1)
    return optimizer


def changed():
    """Steps of gradients that are no multiple of what the backward pass left: their largest coordinates are clipped."""
    return {way: told(trained(way, factory=by_fraction, every=1000)[0])["steps"] for way in ("ddp", "fsdp")}


def asked_for():
    """What is measured when the loop asks for it."""

    def now(way):
        wrap, share_of, group = WAYS[way]
        torch.manual_seed(1)
        model = wrap(Model().double())
        given = {"process_group": dist.group.WORLD if group else None, "weight_fn": rows_of, "quiet": True}
        evaluation = [part(batch, share_of()) for batch in data(2, seed=2)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Probe(model, optimizer, loss_fn, evaluation, directions={}, clip_fractions=[0.2], **given) as probe:
            found = probe.measure()
            return [probe.loss(), *(n for one in found.values() for n in (one.slope, one.sharpness, one.best_step))]

    found = {way: now(way) for way in ("ddp", "fsdp")}
    return found | {"alone": now("alone") if dist.get_rank() == 0 else []}


def scaled_by(way, probed=True):
    """A gradient scaler skips a step that is infinite on one data rank: no step of the training."""
    wrap, share_of, group = WAYS[way]
    torch.manual_seed(1)
    model, share = wrap(Model()), share_of()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    evaluation = [part(batch, share) for batch in data(1, seed=2)]
    settings = {"every": 2, "max_overhead": None, "directions": {}, "steps": STEPS, "weight_fn": rows_of, "quiet": True}
    settings["process_group"] = dist.group.WORLD if group else None
    probe = Probe(model, optimizer, loss_fn, evaluation, **settings) if probed else None
    for step, batch in enumerate(data(STEPS, seed=3)):
        optimizer.zero_grad()
        mine = part(batch, share)
        with probe.batch(mine) if probe else contextlib.nullcontext():
            loss = loss_fn(model, mine)
            infinite = step == 3 and share[0] == share[1] - 1
            scaler.scale(loss * math.inf if infinite else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    weights = [dtensors.part(p).clone() for p in model.parameters()]
    if probe is None:
        return weights
    probe.close()
    slopes = [r["batch_slope"] for r in probe.step_records if r["batch_slope"] is not None]
    errors = [r["step_error"] < 1e-5 for r in probe.records if r["step_error"] is not None]
    return weights, [probe.step, slopes, errors]


def scaled():
    """Beside a training without a probe."""
    found = {}
    for way in ("ddp", "fsdp") if dist.get_world_size() == 2 else ("hsdp", "fsdp x tensors"):
        weights, records = scaled_by(way)
        found[way] = [*records, all(map(torch.equal, weights, scaled_by(way, probed=False)))]
    return found


class Counted:
    """A loss that fails in some evaluations of evaluation batches, of some ranks."""

    def __init__(self, fail):
        self.fail = fail

    def __call__(self, model, batch):
        loss = loss_fn(model, batch)
        if not model.training:
            self.fail(model)
        return loss


def raising(_):
    if dist.get_rank() == 1:
        raise KeyError("of rank 1")


def raising_inside(model):
    """On all ranks, in the middle of the forward pass."""
    handle = model.norm.register_forward_hook(lambda *_: 1 / 0)
    try:
        model(torch.zeros(1, 4, dtype=torch.long))
    finally:
        handle.remove()


def bit_identical():
    """With a probe as without, also where measurements fail."""

    def same(way, **settings):
        settings |= {"dtype": torch.float32, "every": 5}
        return all(map(torch.equal, trained(way, probed=False, dtype=torch.float32)[1], trained(way, **settings)[1]))

    return {
        "ddp": same("ddp"),
        "ddp, one fails": same("ddp", loss=Counted(raising)),
        "fsdp": same("fsdp"),
        "fsdp, all fail": same("fsdp", loss=Counted(raising_inside)),
        "fsdp, one fails outside": same("fsdp", loss=Counted(raising)),
        "tensors": same("tensors"),
    }


def warned(run):
    """What the first rank's log says meanwhile, and the others'."""
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("stepscope")
    logger.addHandler(handler)
    try:
        return run(), kept
    finally:
        logger.removeHandler(handler)


def skipped():
    """Full measurements at which one rank fails: all skip them, and the first says so."""
    failing = {"raises": Counted(raising), "NaN": lambda m, b: loss_fn(m, b) * (math.nan if raised(m) else 1.0)}
    found = {}
    for way in ("ddp", "fsdp"):
        for name, loss in failing.items():
            (probe, _), said = warned(lambda: trained(way, loss=loss))  # noqa: B023
            found[f"{way}, {name}"] = [said, len(probe.records), len(probe.step_records)]
    return found


def raised(model):
    return dist.get_rank() == 1 and not model.training


def interrupted():
    """Ctrl-C on rank 1 alone, in a full measurement: all ranks leave before that step, which comes again."""
    found = {}
    for way in ("ddp", "fsdp"):
        pressed = Log()

        def press(_):
            if dist.get_rank() == 1 and not len(pressed):  # noqa: B023
                pressed()  # noqa: B023
                signal.raise_signal(signal.SIGINT)

        wrap, share_of, group = WAYS[way]
        torch.manual_seed(1)
        model = wrap(Model())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batch, seen = part(data(1, 2)[0], share_of()), []
        with Probe(
            model, optimizer, Counted(press), [batch], every=2, max_overhead=None, directions={}, weight_fn=rows_of,
            process_group=dist.group.WORLD if group else None, quiet=True,
        ) as probe:  # fmt: skip
            for _ in range(3):
                optimizer.zero_grad()
                with probe.batch(batch):
                    loss_fn(model, batch).backward()
                before = [dtensors.part(p).clone() for p in model.parameters()]
                try:
                    optimizer.step()
                except KeyboardInterrupt:
                    seen.append(all(map(torch.equal, before, map(dtensors.part, model.parameters()))))
                    optimizer.step()
                seen.append(probe.step)
        found[way] = [*seen, [r["step"] for r in probe.records]]
    return found


def full_disk():
    """The first rank can't write at the second measurement; no other writes at all."""
    folder = tempfile.mkdtemp()
    sync, calls = os.fsync, []

    def fsync(file):
        calls.append(file)
        if 3 < len(calls) < 9:
            raise OSError(28, "No space left on device")
        sync(file)

    os.fsync = fsync
    try:
        (probe, _), said = warned(lambda: trained("ddp", every=2, run_dir=folder + "/run"))
    finally:
        os.fsync = sync
    written = [len(read_run(probe.run_dir, DirectionRecord)[1]), len(read_steps(probe.run_dir))] if calls else []
    shutil.rmtree(folder)
    return [said, len(probe.records), len(probe.step_records), written, str(probe.run_dir is None)]


def refusals():
    rank = dist.get_rank()

    def made(way="ddp", **settings):
        wrap, _, group = WAYS[way]
        model = wrap(Model())
        given = {"weight_fn": rows_of, "process_group": dist.group.WORLD if group else None, "quiet": True}
        optimizer = settings.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.1)
        return Probe(model, optimizer, loss_fn, data(1, 2), **given | settings)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        from torch.distributed.optim import ZeroRedundancyOptimizer
    zero = functools.partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.SGD)
    said = {
        "settings": lambda: made(every=0 if rank == 0 else 1),
        "differ": lambda: made(steps=10 + rank),
        "directory": lambda: made(run_dir=__file__),
        "weights": lambda: made("fsdp", weight_fn=None),
        "memory": lambda: made("fsdp", memory=0.5),
        "zero": lambda: made(optimizer=zero),
    }
    found = {name: refused(call) for name, call in said.items()}
    first = data(1, 2)[0]
    (probe, _), found["passes"] = warned(lambda: uneven(first))
    return found | {"uneven records": len(probe.step_records)}


def uneven(batch):
    """One rank makes two forward passes for a step, the other one."""
    torch.manual_seed(1)
    model = by_ddp(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, loss_fn, [batch], steps=3, process_group=dist.group.WORLD, quiet=True)
    with model.no_sync() if dist.get_rank() == 0 else contextlib.nullcontext():
        if dist.get_rank() == 0:
            probe.loss_fn(model, batch).backward()
    probe.loss_fn(model, batch).backward()
    optimizer.step()
    probe.close()
    return probe, None


def report_of_one():
    """The page, by the first rank alone, when other parameters are trained than were measured."""
    model, batch = Model(), part(data(1, 2)[0], everywhere())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer, loss_fn, [batch], process_group=dist.group.WORLD, quiet=True) as probe:
        probe.measure()
        model.head.bias.requires_grad_(False)
        if dist.get_rank() == 0:
            probe.report("page.html")
        dist.barrier()
        return probe.measure()["own SGD"].slope


def without(optimizer):
    optimizer.zero_grad()


def zero(optimizer):
    optimizer.zero_grad(set_to_none=False)


def noisy(optimizer):
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad += torch.randn_like(parameter)


def clipped(optimizer):
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-3)


def slower(optimizer):
    optimizer.param_groups[0]["lr"] *= 0.9


def resting(optimizer):
    optimizer.param_groups[0]["lr"] = 0.0


CHANGES = (without, zero, noisy, clipped, slower, resting)


def unlike():
    """Rank 1 alone changes its second step of four: what is said, and the steps measured on their batch and in full."""
    found = {}
    for change in CHANGES:
        torch.manual_seed(1)
        model, batch = by_ddp(Model()), part(data(1, 2)[0], everywhere())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = Probe(
            model, optimizer, loss_fn, [batch], every=2, max_overhead=None, steps=4, process_group=dist.group.WORLD,
            directions={"sgd": lambda p: torch.optim.SGD(p, lr=0.1)}, quiet=True,
        )  # fmt: skip

        def train():
            for step in range(4):
                optimizer.zero_grad()  # noqa: B023
                optimizer.param_groups[0]["lr"] = 0.1  # noqa: B023
                probe.loss_fn(model, batch).backward()  # noqa: B023
                if step == 1 and dist.get_rank() == 1:
                    change(optimizer)  # noqa: B023
                optimizer.step()  # noqa: B023
                for parameter in model.parameters():  # noqa: B023
                    dist.broadcast(parameter.data, 0)

        said = warned(train)[1]
        steps = [r["step"] for r in probe.step_records if r["batch_change"] is not None]
        found[change.__name__] = [said, steps, sorted({r["step"] for r in probe.records})]
        probe.close()
    return found


def missing():
    """Rank 1 alone lacks gradients in its second step of four, some or all: what is said, and what is measured."""
    found = {}
    for way in ("ddp", "fsdp", "tensors"):
        for which in ("bias", ""):
            torch.manual_seed(1)
            model, batch = WAYS[way][0](Model()), part(data(1, 2)[0], WAYS[way][1]())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            probe = Probe(
                model, optimizer, loss_fn, [batch], every=2, max_overhead=None, steps=4, weight_fn=rows_of, quiet=True,
                directions={"sgd": lambda p: torch.optim.SGD(p, lr=0.1)}, process_group=dist.group.WORLD,
            )  # fmt: skip

            def train():
                for step in range(4):
                    optimizer.zero_grad()  # noqa: B023
                    probe.loss_fn(model, batch).backward()  # noqa: B023
                    for name, parameter in model.named_parameters():  # noqa: B023
                        if step == 1 and dist.get_rank() == 1 and which in name:  # noqa: B023
                            parameter.grad = None
                    optimizer.step()  # noqa: B023

            said = warned(train)[1]
            steps = [r["step"] for r in probe.step_records if r["batch_change"] is not None]
            found[f"{way} {which}"] = [said, steps, sorted({r["step"] for r in probe.records})]
            probe.close()
    return found


def closed():
    """Rank 1 closes its probe after the first of four steps: nobody waits for it, then or later."""
    found = {}
    for way in ("ddp", "fsdp"):
        torch.manual_seed(1)
        model, batch = WAYS[way][0](Model()), part(data(1, 2)[0], everywhere())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"every": 2, "max_overhead": None, "directions": {}, "weight_fn": rows_of, "quiet": True}
        settings["process_group"] = dist.group.WORLD
        probe = Probe(model, optimizer, loss_fn, [batch], steps=4, **settings)

        def train():
            for step in range(4):
                optimizer.zero_grad()  # noqa: B023
                probe.loss_fn(model, batch).backward()  # noqa: B023
                optimizer.step()  # noqa: B023
                if step == 0 and dist.get_rank() == 1:
                    probe.close()  # noqa: B023

        said = warned(train)[1]
        asked = refused(probe.measure)
        probe.close()
        with Probe(model, optimizer, loss_fn, [batch], **settings) as another:
            found[way] = [said, asked, len(probe.step_records), len(probe.records), len(another.measure())]
    return found


def joined():
    """Rank 1 has half as many batches, in torch's `join()`, which the first step is in, or the third."""
    found = []
    for outside in (0, 2):
        torch.manual_seed(1)
        model, (batch,) = by_ddp(Model()), data(1, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"every": 2, "max_overhead": None, "directions": {}, "steps": 8, "quiet": True}
        probe = Probe(model, optimizer, loss_fn, [batch], process_group=dist.group.WORLD, **settings)

        def train(steps):
            for _ in range(steps):
                optimizer.zero_grad()  # noqa: B023
                probe.loss_fn(model, batch).backward()  # noqa: B023
                optimizer.step()  # noqa: B023

        def unevenly():
            train(outside)  # noqa: B023
            with model.join():  # noqa: B023
                train(6 if dist.get_rank() == 0 else 3)
            probe.close()  # noqa: B023

        found.append([warned(unevenly)[1], len(probe.step_records), len(probe.records)])
    return found


def validated_before_the_step():
    """Of a sharded model, whose weights that leaves gathered: torch trains on with them as they were."""
    found = {}
    for way in ("plain", "probe", "reshard", "reshard and probe"):
        torch.manual_seed(1)
        model, (batch, held_out) = by_fsdp(Model()), data(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"every": 2, "max_overhead": None, "directions": {}, "steps": 6, "quiet": True, "weight_fn": rows_of}
        probe = Probe(model, optimizer, loss_fn, [held_out], **settings) if "probe" in way else None

        def train():
            losses = []
            for _ in range(6):
                optimizer.zero_grad()  # noqa: B023
                loss = (probe.loss_fn if probe else loss_fn)(model, batch)  # noqa: B023
                loss.backward()
                with torch.no_grad():
                    loss_fn(model, held_out)  # noqa: B023
                if "reshard" in way:  # noqa: B023
                    model.reshard()  # noqa: B023
                optimizer.step()  # noqa: B023
                losses.append(float(loss.detach()))
            return losses

        found[way] = [*warned(train), len(probe.step_records) if probe else 0]
    return found


def in_threads():
    """Two trainings in two threads of each rank, which come to their measurements in another order on the other."""
    groups, patience, ends = [dist.new_group(), dist.new_group()], interrupts._PATIENCE, {}

    def train(number):
        model, (batch,) = Model(), data(1, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Probe(model, optimizer, loss_fn, [batch], process_group=groups[number], steps=4, quiet=True) as probe:
            for _ in range(4):
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                starts.wait()
                time.sleep(0.2 * (number != dist.get_rank()))
                optimizer.step()
        ends[number] = probe.step

    starts, interrupts._PATIENCE = threading.Barrier(2), 0.5
    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        interrupts._PATIENCE = patience
    return ends


CASES = (
    numbers, half_precision, accumulated, asked_for, scaled, bit_identical, skipped, interrupted, full_disk, refusals,
    report_of_one, unlike, missing, closed, joined, validated_before_the_step, in_threads, changed,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(CASES, 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return on_ranks((on_two_meshes, scaled), 4, tmp_path_factory.mktemp("four"))


def same_numbers(here, there, tolerance):
    assert [path for path, _ in here] == [path for path, _ in there]
    for (path, a), (_, b) in zip(here, there, strict=True):
        assert a == (pytest.approx(b, rel=tolerance, abs=1e-12) if isinstance(b, float) else b), path


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensors"])
def test_numbers_are_those_of_one_process_on_the_whole_batch(results, way):
    alone = results["numbers"][0]["alone"]
    assert any(path.endswith("batch_slope") and slope for path, slope in alone["steps"])
    assert sum(path.endswith(".sharpness") for path, _ in alone["records"]) == 4
    for rank in results["numbers"]:
        same_numbers(rank[way]["steps"], alone["steps"], 1e-9)
        same_numbers(rank[way]["records"], alone["records"], 1e-5)  # curvature by differences of gradients


@pytest.mark.parametrize("way", ["hsdp", "fsdp x tensors"])
def test_numbers_on_two_meshes_are_those_of_one_process(of_four, way):
    alone = of_four["on_two_meshes"][0]["alone"]
    for rank in of_four["on_two_meshes"]:
        same_numbers(rank[way]["steps"], alone["steps"], 1e-9)
        same_numbers(rank[way]["records"], alone["records"], 1e-5)


def test_the_step_in_half_precision(results):
    for same, count, found, _ in results["half_precision"]:
        assert same
        assert count == STEPS
        assert found == pytest.approx(results["half_precision"][0][3], rel=0.1)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_accumulated_and_clipped_steps_are_those_of_one_process(results, way):
    alone = results["accumulated"][0]["alone"]
    assert any(path.endswith("batch_slope") and slope for path, slope in alone)
    for rank in results["accumulated"]:
        same_numbers(rank[way], alone, 1e-9)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_steps_whose_gradients_are_changed_are_those_of_one_process(results, way):
    alone = told(trained("alone", factory=by_fraction, every=1000)[0])["steps"]
    assert sum(path.endswith("batch_slope") and slope is not None for path, slope in alone) == STEPS
    for rank in results["changed"]:
        same_numbers(rank[way], alone, 1e-9)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_what_a_loop_asks_for_is_measured_together(results, way):
    alone = results["asked_for"][0]["alone"]
    assert len(alone) == 7
    for rank in results["asked_for"]:
        assert rank[way] == pytest.approx(alone, rel=1e-5)


def test_a_step_that_a_scaler_skips_is_none(results, of_four):
    expected = results["scaled"][0]["ddp"][1]
    assert [slope < 0 for slope in expected] == [True] * (STEPS - 1)
    for rank in (*results["scaled"], *of_four["scaled"]):
        for steps, slopes, errors, same in rank.values():
            assert (steps, errors, same) == (STEPS - 1, [True] * 2, True)
            assert slopes == pytest.approx(expected, rel=1e-4)


def test_ranks_have_the_same_records(results):
    first, second = results["numbers"]
    for way in ("ddp", "fsdp", "tensors"):
        assert first[way] == second[way]


@pytest.mark.parametrize(
    "case", ["ddp", "ddp, one fails", "fsdp", "fsdp, all fail", "fsdp, one fails outside", "tensors"]
)
def test_training_is_bit_identical(results, case):
    assert [rank[case] for rank in results["bit_identical"]] == [True, True]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize(("failure", "text"), [("raises", "of rank 1"), ("NaN", "the loss is nan")])
def test_what_one_rank_alone_meets_all_skip(results, way, failure, text):
    (said, *first), (unsaid, *second) = (rank[f"{way}, {failure}"] for rank in results["skipped"])
    assert first == second == [0, first[1]]
    assert first[1] == STEPS
    assert [text in line for line in said] == [True] * len(said)
    assert (len(said) > 0, unsaid) == (True, [])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ctrl_c_on_one_rank_ends_the_step_on_all(results, way):
    assert [rank[way] for rank in results["interrupted"]] == [[1, True, 2, 3, [2]]] * 2


def test_a_full_disk_of_the_first_rank_stops_nobody(results):
    (said, *kept, written, _), (unsaid, *others, none, elsewhere) = results["full_disk"]
    assert ["No space left" in line for line in said] == [True]
    assert (unsaid, none, elsewhere) == ([], [], "True")
    assert kept == others
    assert 0 < written[0] <= kept[0]
    assert 0 < written[1] < kept[1]


REFUSALS = {
    "settings": "every is 0",
    "differ": "differ in models or settings",
    "directory": "is a file",
    "weights": "give weight_fn",
    "memory": "give no dtype, no memory",
    "zero": "ZeroRedundancyOptimizer",
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_a_mistake_is_said_on_all_ranks(results, mistake):
    for rank in results["refusals"]:
        assert rank[mistake].startswith("UsageError: ")
        assert REFUSALS[mistake] in rank[mistake]


def test_steps_of_unequal_passes_are_left_out(results):
    assert ["the passes of a step" in line for line in results["refusals"][0]["passes"]] == [True]
    assert [rank["uneven records"] for rank in results["refusals"]] == [0, 0]


def test_one_rank_may_make_the_page_after_parameters_were_frozen(results):
    first, second = results["report_of_one"]
    assert first == second


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
def test_a_step_that_differs_between_ranks_is_left_out_on_all(results, change):
    (said, *first), (unsaid, *second) = (rank[change] for rank in results["unlike"])
    assert first == second == [[1, 3, 4], [4]]
    assert sorted("on its own batch (the ranks of the process group differ in" in line for line in said) == [0, 1]
    assert all("at step 2" in line or "step 2 wasn't" in line for line in said)
    assert unsaid == []


@pytest.mark.parametrize("which", ["bias", ""])
@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensors"])
def test_a_step_whose_gradients_one_rank_lacks_is_left_out_on_all(results, way, which):
    (said, *first), (unsaid, *second) = (rank[f"{way} {which}"] for rank in results["missing"])
    assert first == second == [[1, 3, 4], [4]]
    assert ["differ in the gradients of a step" in line for line in said if "is zero" not in line] == [True, True]
    assert unsaid == []


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_nobody_waits_for_a_rank_that_has_closed_its_probe(results, way):
    (said, asked, *first), (unsaid, asked_there, *second) = (rank[way] for rank in results["closed"])
    assert said == ["the probe is off: rank 1 has closed its probe; training goes on"]
    assert unsaid == []
    assert asked == "UsageError: rank 1 has closed its probe: nothing is measured without it"
    assert asked_there == "UsageError: the probe is closed: make another"
    assert first == second == [1, 0, 1]


def test_ranks_that_may_end_after_others_are_not_waited_for(results):
    first, second = results["joined"]
    assert [["join()" in line for line in said] for said, *_ in first] == [[True]] * 2
    assert [counts for _, *counts in first] == [counts for _, *counts in second] == [[0, 0], [2, 1]]


def test_weights_that_are_gathered_at_the_step_are_left_so_and_that_is_said(results):
    for found in results["validated_before_the_step"]:
        assert found["plain"][0] == found["probe"][0] != found["reshard"][0] == found["reshard and probe"][0]
        assert found["probe"][2] == 0
        assert found["reshard and probe"][1:] == [[], 6]
    first, second = (found["probe"][1] for found in results["validated_before_the_step"])
    assert len(first) == 1
    assert "call model.reshard() before optimizer.step()" in first[0]
    assert second == []


def test_ranks_whose_threads_measure_in_another_order_do_not_wait_forever(results):
    assert results["in_threads"] == [{0: 4, 1: 4}] * 2
