"""The borders of model, loss, optimizer and batch: training stays as it is, and a number is right, or one line says
that it can't be had and what to do."""

import copy
import dataclasses
import itertools
import logging
import math
import types
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from drawn.rules import RULES
from drawn.snapshot import differences, snapshot
from drawn.trial import Combination, tried
from stepscope import Objective, Probe, UsageError, measure, next_update
from stepscope.measuring.selfcheck import self_check


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def labeled(n=8, dtype=torch.float32):
    return torch.randn(n, 6, dtype=dtype), torch.randint(0, 3, (n,))


def length(direction):
    return math.sqrt(sum(float(t.double().square().sum()) for t in direction.values()))


@contextmanager
def listening():
    """What stepscope says meanwhile, by its log and by warnings."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("stepscope")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield said
            said += [str(w.message) for w in warned]
    finally:
        logger.removeHandler(handler)


def refusal(call):
    """The line in which a call is refused; ``None`` if it isn't. Any other error is the caller's to see."""
    try:
        with listening():
            call()
    except UsageError as error:
        line = str(error)
        assert "\n" not in line
        return line
    return None


def assert_leaves_alone(build):
    """``build(probed)`` trains, and gives what is to be the same without and with a probe, by name."""
    torch.manual_seed(0)
    plain = snapshot(build(False))
    torch.manual_seed(0)
    with listening():
        probed = snapshot(build(True))
    assert differences(plain, probed) == []


def probe(model, optimizer, loss, batches, **settings):
    """Attaches a probe; ``None`` where that is refused."""
    try:
        return Probe(model, optimizer, loss, batches, quiet=True, **{"every": 2, "max_overhead": None, **settings})
    except UsageError:
        return None


def closed(attached):
    if attached is not None:
        attached.close()


# What a loss reaches beside the model.


def test_a_discriminator_is_not_trained_by_measuring():
    def build(probed):
        generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        critic = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.LeakyReLU(), nn.Linear(8, 1))
        ours, theirs = (torch.optim.Adam(m.parameters(), 1e-2) for m in (generator, critic))

        def loss(model, noise):
            return F.softplus(-critic(model(noise))).mean()

        attached = probe(generator, ours, loss, [torch.zeros(5, 4)]) if probed else None
        for _ in range(6):
            theirs.zero_grad()
            fake = generator(torch.randn(5, 4)).detach()
            (F.softplus(-critic(torch.randn(5, 6))) + F.softplus(critic(fake))).mean().backward()
            theirs.step()
            ours.zero_grad()
            loss(generator, torch.randn(5, 4)).backward()
            ours.step()
        closed(attached)
        return {"generator": generator, "critic": critic, "optimizers": [ours, theirs]}

    assert_leaves_alone(build)


@pytest.mark.parametrize("in_training_only", [True, False])
def test_a_criterion_with_a_running_mean_is_not_moved_whether_refused_or_not(in_training_only):
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, loss):
            if self.training or not in_training_only:
                self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
            return loss / (self.mean + 1)

    def build(probed):
        model, criterion, batch = net(), Criterion(), labeled()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss(model, batch):
            return criterion(cross_entropy(model, batch))

        attached = probe(model, optimizer, loss, [batch]) if probed else None
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        closed(attached)
        return {"model": model, "criterion": criterion, "optimizer": optimizer}

    assert_leaves_alone(build)


def test_a_teacher_with_batch_norm_keeps_its_statistics():
    def build(probed):
        teacher, model, x = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), nn.Linear(6, 5), torch.randn(8, 6)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss(model, x):
            return F.mse_loss(model(x), teacher(x).detach())

        attached = probe(model, optimizer, loss, [x + 1]) if probed else None
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
        closed(attached)
        return {"model": model, "teacher": teacher}

    assert_leaves_alone(build)


# A module's whole state.


@pytest.mark.parametrize("by", ["probe", "measure"])
def test_dynamic_positions_and_their_counter_go_back_together(by):
    transformers = pytest.importorskip("transformers")

    def build(probed):
        config = transformers.LlamaConfig(
            vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=4, rope_scaling={"rope_type": "dynamic", "factor": 2.0},
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = [{"input_ids": (ids := torch.randint(0, 13, (2, n))), "labels": ids} for n in (6, 8, 8, 8, 12)]
        attached = probe(model, optimizer, None, batches[-1:]) if probed and by == "probe" else None
        for index, batch in enumerate(batches[:-1]):
            if probed and by == "measure" and index == 1:
                objective = Objective(model, None, batches[-1:])
                measure(objective, {"x": {n: p.detach() for n, p in objective.parameters.items()}})
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        closed(attached)
        return {"model": model, "optimizer": optimizer}

    assert_leaves_alone(build)


def test_a_table_made_at_the_first_call_is_made_by_the_training():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(6, 3)

        def forward(self, x):
            if not hasattr(self, "scale"):
                self.register_buffer("scale", torch.linspace(0.5, 1, 6, dtype=x.dtype), persistent=False)
                self.shift = x.mean(0).detach()
            return self.inside(x * self.scale - self.shift)

    def build(probed):
        model, (x, y) = Lazy().bfloat16(), labeled()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        attached = probe(model, optimizer, cross_entropy, [(x.bfloat16() + 1, y)]) if probed else None
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model, (x.bfloat16(), y)).backward()
            optimizer.step()
        closed(attached)
        return {"model": model}

    assert_leaves_alone(build)


def test_weights_written_in_evaluation_mode_are_put_back():
    transformers = pytest.importorskip("transformers")

    def build(probed):
        config = transformers.RwkvConfig(
            vocab_size=13, hidden_size=8, num_hidden_layers=2, intermediate_size=8, attention_hidden_size=8,
            context_length=8, rescale_every=1, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        model, ids = transformers.RwkvForCausalLM(config).train(), torch.randint(3, 13, (2, 5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batch = {"input_ids": ids, "labels": ids}
        attached = probe(model, optimizer, None, [batch]) if probed else None
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        closed(attached)
        return {"model": model}

    assert_leaves_alone(build)


# Optimizers whose state is elsewhere.


@pytest.mark.parametrize("name", RULES)
def test_a_rule_by_hand_is_measured_rightly_or_refused(name):
    verdict = tried(Combination("function", "MLP", f"rule: {name}", "tuple", "plain"))
    assert verdict.kind in ("identical", "refused"), verdict.line


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adafactor"])
def test_a_rate_of_zero_is_said(name):
    model, batch = net(), labeled()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.0)
    with listening() as said:
        attached = probe(model, optimizer, cross_entropy, [batch], every=1)
        cross_entropy(model, batch).backward()
        optimizer.step()
        closed(attached)
    assert said


# What a mean averages over.


class Tagger(nn.Module):
    """Labels for each token, not shifted; its head is zero at the start, as many are."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, labels, num_items_in_batch=None):
        logits = self.head(torch.tanh(self.embedding(input_ids))).flatten(0, 1)
        if num_items_in_batch is None:
            return types.SimpleNamespace(loss=F.cross_entropy(logits, labels.flatten()))
        loss = F.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch
        return types.SimpleNamespace(loss=loss)


def _tokens(valid):
    ids, labels = torch.randint(0, 11, (3, 8)), torch.randint(0, 11, (3, 8))
    labels[:, valid:] = -100
    return {"input_ids": ids, "labels": labels}


def _pooled_as_joined(model, loss_fn, parts, join, weight_fn=None):
    """Whether the gradient of two micro-batches is that of their examples in one; ``None`` where refused."""
    line = refusal(lambda: Objective(model, loss_fn, parts, weight_fn))
    if line is not None:
        assert "weight_fn" in line
        return None
    whole = Objective(model, loss_fn, [join(parts)]).gradient()[1]
    apart = Objective(model, loss_fn, parts, weight_fn).gradient()[1]
    return length({n: whole[n] - apart[n] for n in whole}) <= 1e-9 * length(whole)


def _joined(parts):
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def test_a_head_of_zeros_does_not_hide_what_is_a_target():
    assert _pooled_as_joined(Tagger().double(), None, [_tokens(2), _tokens(8)], _joined) is not False


@pytest.mark.parametrize("number", ["its own", "of all"])
def test_a_loss_divided_by_the_number_of_items_that_is_given(number):
    """Where it is that of all micro-batches, as in gradient accumulation, their losses add up to the batch's."""
    model = Tagger().double()
    nn.init.normal_(model.head.weight)
    parts = [_tokens(2), _tokens(8)]
    counts = [int((part["labels"] != -100).sum()) for part in parts]
    whole = Objective(model, None, [_joined(parts) | {"num_items_in_batch": torch.tensor(sum(counts))}])
    if number == "of all":
        counts = [sum(counts)] * 2
    given = [part | {"num_items_in_batch": torch.tensor(n)} for part, n in zip(parts, counts, strict=True)]
    line = refusal(lambda: Objective(model, None, given))
    if line is not None:
        assert number == "of all"
        assert "num_items_in_batch" in line or "weight_fn" in line
        return
    expected, found = whole.gradient()[1], Objective(model, None, given).gradient()[1]
    assert length({n: expected[n] - found[n] for n in expected}) <= 1e-9 * length(expected)


def test_a_loss_of_the_users_whose_mean_is_over_something_else():
    """A mean over the pixels that count, which the default takes for one over examples."""

    def loss(model, batch):
        errors = (model(batch["x"]) - batch["y"]).square().mean(1)
        return (errors * batch["counts"]).sum() / batch["counts"].sum()

    def part(counting):
        counts = (torch.arange(6) < counting).double()
        return {"x": torch.randn(6, 6).double(), "y": torch.randn(6, 3).double(), "counts": counts}

    parts = [part(1), part(6)]
    assert _pooled_as_joined(net().double(), loss, parts, _joined) is not False
    assert _pooled_as_joined(net().double(), loss, parts, _joined, lambda b: float(b["counts"].sum())) is True


def test_a_summed_loss_is_no_mean():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")

    parts = [{"x": x, "y": y} for x, y in (labeled(2, torch.float64), labeled(6, torch.float64))]
    assert _pooled_as_joined(net().double(), loss, parts, _joined) is not False


def test_an_ordinary_loss_is_not_refused():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    parts = [{"x": x, "y": y} for x, y in (labeled(2, torch.float64), labeled(6, torch.float64))]
    assert _pooled_as_joined(net().double(), loss, parts, _joined) is True


# Losses whose gradient isn't theirs.


class Rounded(nn.Module):
    """Weights in eighths, by a straight-through gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        weight = self.a.weight
        return self.b(torch.tanh(F.linear(x, weight + ((weight * 8).round() / 8 - weight).detach(), self.a.bias)))


class Stopped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return -F.cosine_similarity(self.b(self.a(x)), self.a(x * 0.9).detach()).mean()


class Reversed(nn.Module):
    """A hook on an activation turns its gradient around."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: -gradient)
        return self.b(hidden)


FOREIGN = {
    "straight-through": (Rounded, cross_entropy),
    "stop-gradient": (Stopped, lambda model, batch: model(batch[0])),
    "gradient reversal": (Reversed, cross_entropy),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_gradient_that_is_not_the_loss_s_is_named(name):
    kind, loss = FOREIGN[name]
    objective = Objective(kind().double(), loss, [labeled(5, torch.float64)])
    gradient = objective.gradient()[1]
    direction = {n: -g for n, g in gradient.items()}
    step = 1e-3 / length(gradient)
    slope = (objective.loss_at(direction, step) - objective.loss_at(direction, -step)) / (2e-3)
    with listening() as said:
        check = self_check(objective)
        found = measure(objective, {"down": direction}, landscape=True)["down"]
    right = abs(found.slope - slope) <= 0.05 * abs(slope)
    told = " ".join([*said, *check.suspicions, *(str(v) for v in found.record().values() if isinstance(v, str))])
    assert right or any(word in told for word in ("straight-through", "stop-gradient", "detach", "hook"))


# Batches.


@dataclasses.dataclass
class Normalized:
    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self):
        self.x = (self.x - 128) / 64


@dataclasses.dataclass
class Noted:
    x: torch.Tensor
    y: torch.Tensor


class Scaled(list):
    scale = 1.0


class Pair(tuple):
    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


def _noted(x, y):
    batch = Noted(x, y)
    batch.temperature = 3.0
    return batch


def _scaled(x, y):
    batch = Scaled([x, y])
    batch.scale = 3.0
    return batch


BATCHES = {
    "a constructor that normalizes": (
        lambda x, y: Normalized(64 * x + 128, y),
        lambda m, b: F.cross_entropy(m(b.x), b.y),
    ),
    "an attribute set later": (_noted, lambda m, b: F.cross_entropy(m(b.x) * b.temperature, b.y)),
    "a list with an attribute": (_scaled, lambda m, b: F.cross_entropy(m(b[0]) * b.scale, b[1])),
    "a tuple with a constructor of its own": (Pair, cross_entropy),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_is_copied_not_built_anew(kind):
    make, loss = BATCHES[kind]
    model, batch = net(), make(*labeled())
    objective = Objective(model, loss, [batch])
    assert objective.loss() == pytest.approx(float(loss(model, batch).detach()), rel=1e-6)


# Second derivatives and state.


def test_where_double_backward_is_nan_and_differences_are_not_they_are_taken():
    """A power of 1.5 behind a ReLU: its second derivative is computed as 0 times infinity where the unit is off."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).double()
    objective = Objective(model, lambda m, x: m(x).pow(1.5).mean(), [torch.randn(8, 6).double()])
    direction = {n: torch.randn_like(p) for n, p in objective.parameters.items()}
    found = measure(objective, {"random": direction})["random"]
    finite = measure(objective, {"random": direction}, "difference")["random"]
    assert math.isfinite(finite.sharpness)
    assert found.sharpness == pytest.approx(finite.sharpness, rel=1e-3)


def test_a_backward_hook_on_all_modules_does_not_change_what_is_measured():
    model, batch = net().double(), labeled(8, torch.float64)
    expected = Objective(model, cross_entropy, [batch]).gradient()[1]
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda module, given, came: tuple(None if g is None else 3 * g for g in given)
    )
    try:
        with listening():
            found = Objective(model, cross_entropy, [batch]).gradient()[1]
    finally:
        handle.remove()
    assert length({n: found[n] - expected[n] for n in expected}) <= 1e-12 * length(expected)


def test_a_loss_that_drifts_slowly_is_measured_rightly_or_refused():
    class Annealed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(6, dtype=torch.float64))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return (1 + self.w.square().mean()) * (1 - 2e-5 * self.calls)

    def found():
        model = Annealed()
        objective = Objective(model, lambda m, b: m(b), [torch.ones(2, 1)])
        return measure(objective, {"up": {"w": 1e-6 * model.w.detach()}}, landscape=True)["up"]

    if refusal(found) is None:
        up = found()
        assert up.lr_loss - up.loss == pytest.approx(2e-6, rel=1e-3)


def test_cached_parametrizations_do_not_freeze_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = labeled(8, torch.float64)
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}

    def sharpness():
        return measure(Objective(model, cross_entropy, [batch]), {"random": direction})["random"].sharpness

    with parametrize.cached():
        cross_entropy(model, batch)
        cached = sharpness()
    assert cached == pytest.approx(sharpness(), rel=1e-12)


def test_parameters_that_overlap_are_refused():
    class Overlapping(nn.Module):
        def __init__(self):
            super().__init__()
            memory = torch.randn(10)
            self.a, self.b = nn.Parameter(memory[:6]), nn.Parameter(memory[4:])

        def forward(self, x):
            return x @ self.a + x @ self.b

    line = refusal(lambda: Objective(Overlapping(), lambda m, x: m(x).square().mean(), [torch.randn(3, 6)]))
    assert line is not None
    assert "share" in line or "overlap" in line


# What used to be an error from inside, or nothing at all. Each runs, or is refused in a line.


class Detector(nn.Module):
    """Gives losses in training mode only."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(6, 3)

    def forward(self, x, y):
        return {"loss": F.cross_entropy(self.inside(x), y)} if self.training else [self.inside(x)]


def _attached(model=None, loss=cross_entropy, batches=None, **settings):
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Probe(model, optimizer, loss, [labeled()] if batches is None else batches, quiet=True, **settings) as attached:
        assert attached.check.repeatable


def _reformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.ReformerConfig(
        attn_layers=["local"], hidden_size=8, feed_forward_size=8, num_attention_heads=2, attention_head_size=4,
        vocab_size=13, is_decoder=True, axial_pos_embds=False, max_position_embeddings=16, local_attn_chunk_length=4,
    )  # fmt: skip
    ids = torch.randint(3, 13, (2, 8))
    _attached(transformers.ReformerModelWithLMHead(config), None, [{"input_ids": ids, "labels": ids}])


def _doubled_midway():
    model, batch = net(), labeled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attached = Probe(model, optimizer, cross_entropy, [batch], quiet=True, every=1, max_overhead=None)
    model.double()
    cross_entropy(model, (batch[0].double(), batch[1])).backward()
    with listening() as said:
        optimizer.step()
    attached.close()
    assert attached.records or said
    assert not any(name in line for line in said for name in ("RuntimeError", "TypeError", "AttributeError"))


def _other(name):
    package = pytest.importorskip("pytorch_optimizer")
    model = net()
    optimizer = package.load_optimizer(name)(model.parameters(), lr=1e-2)
    with Probe(model, optimizer, cross_entropy, [labeled()], quiet=True) as attached:
        assert attached.check.repeatable


def _heavyball():
    heavyball = pytest.importorskip("heavyball")
    heavyball.utils.compile_mode = None
    model, batch = net(), labeled()
    optimizer = heavyball.SOAP(model.parameters(), lr=1e-3)
    attached = Probe(model, optimizer, cross_entropy, [batch], quiet=True, every=1, max_overhead=None)
    with listening() as said:
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
    attached.close()
    assert attached.records or said


RAW = {
    "AdaHessian": lambda: _other("adahessian"),
    "SophiaH": lambda: _other("sophiah"),
    "heavyball's SOAP": _heavyball,
    "a detector": lambda: _attached(Detector(), lambda m, b: m(*b)["loss"]),
    "Reformer": _reformer,
    "a lazy layer before its first call": lambda: _attached(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))),
    "a model that is doubled midway": _doubled_midway,
    "a batch for a list of them": lambda: _attached(batches=labeled()),
    "directions in a list": lambda: _attached(directions=[torch.optim.Adam]),
    "a batch in float64": lambda: _attached(batches=[labeled(dtype=torch.float64)]),
    "a model for an objective": lambda: measure(net(), {"d": {}}),
    "parameters without names": lambda: next_update(
        torch.optim.SGD((model := net()).parameters(), 0.1), model.parameters()
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_it_runs_or_a_line_says_what_to_do(name):
    refusal(RAW[name])  # any error but a refusal fails here


def test_a_batch_for_a_list_of_them_is_not_taken_for_two():
    assert refusal(RAW["a batch for a list of them"]) is not None


def test_a_loader_without_an_end_is_refused():
    def endless():
        for number in itertools.count():
            if number > 20_000:
                raise RecursionError("20,000 batches were read")
            yield torch.zeros(1, 6), torch.zeros(1, dtype=torch.long)

    assert refusal(lambda: Objective(net(), cross_entropy, endless())) is not None


@pytest.mark.parametrize("given", [5, 1.5])
def test_an_overhead_that_is_meant_in_percent_is_said(given):
    with listening() as said:
        line = refusal(lambda: _attached(max_overhead=given))
    assert line is not None or any("overhead" in text for text in said)


def test_an_optimizer_that_is_replaced_after_attaching_is_said():
    model, batch = net(), labeled()
    first = torch.optim.SGD(model.parameters(), 0.1)
    with listening() as said:
        attached = Probe(model, first, cross_entropy, [batch], quiet=True, every=1, max_overhead=None)
        second = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            second.zero_grad()
            cross_entropy(model, batch).backward()
            second.step()
        attached.close()
    assert attached.records == []
    assert any("step" in line for line in said)


def test_a_gradient_that_is_empty_everywhere_is_no_sharpness_of_zero():
    """The parameters that the loss uses are other tensors than the model's, as when something has flattened them."""
    model = net()
    twin = copy.deepcopy(model)
    objective = Objective(model, lambda m, b: cross_entropy(twin, b), [labeled()])
    direction = {n: torch.randn_like(p) for n, p in objective.parameters.items()}
    line = refusal(lambda: measure(objective, {"random": direction}))
    assert line is not None
