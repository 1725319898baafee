"""The objective: weights, leaving no trace, and the user's mistakes."""

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepscope
from cases import CASES, bert, case, gpt_neo, t5
from stepscope import Objective, UsageError
from stepscope.objective import averaged_over, predicts_next_token
from stepscope.objective.batches import moved
from traces import Log, fingerprint


class Disturbing(nn.Module):
    """Draws random numbers, writes to a buffer, replaces another, and has a hooked parameter."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.bn = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.lin.weight.register_hook(lambda g: 100 * g)
        self.log = Log()
        self.fail_at = None

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(0).detach()
        random.random(), np.random.rand()
        if self.log() == self.fail_at:
            raise KeyboardInterrupt
        return F.dropout(self.drop(self.bn(self.lin(x))), 0.5, training=True).square().mean()


def disturbing():
    model = Disturbing().train()
    model.bn.eval()  # a frozen batch norm in a training model must stay one
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 3)).backward()
        optimizer.step()
    batches = [torch.randn(4, 3), torch.randn(2, 3)]
    return model, optimizer, Objective(model, lambda m, b: m(b), batches)


def test_measuring_leaves_no_trace():
    model, optimizer, objective = disturbing()
    before = fingerprint(model, optimizer)
    _, gradient = objective.gradient()
    for method in ("autograd", "difference"):
        stepscope.measure(objective, {"d": gradient, "e": {"lin.bias": torch.ones(3)}}, method, landscape=True)
    assert fingerprint(model, optimizer) == before


@pytest.mark.parametrize("fail_at", [2, 5, 8, 12])
def test_no_trace_after_an_interruption(fail_at):
    model, optimizer, objective = disturbing()
    _, gradient = objective.gradient()
    model.fail_at = fail_at + len(model.log)
    before = fingerprint(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        stepscope.measure(objective, {"d": gradient}, landscape=True)
    assert fingerprint(model, optimizer) == before
    model.fail_at = None
    stepscope.measure(objective, {"d": gradient})  # and it can be measured again


def test_tensor_hooks_do_not_reach_the_measured_gradient():
    model, _, objective = disturbing()
    _, gradient = objective.gradient()
    plain = Disturbing()
    plain.load_state_dict(model.state_dict())
    plain.lin.weight._backward_hooks.clear()
    assert torch.equal(
        gradient["lin.weight"], Objective(plain, lambda m, b: m(b), objective.batches).gradient()[1]["lin.weight"]
    )


def test_the_users_pending_graph_survives():
    model = nn.Linear(3, 1)
    x = torch.randn(5, 3)
    loss = model(x).square().mean() + model.weight.square().sum()
    objective = Objective(model, lambda m, b: m(b).square().mean(), [x])
    stepscope.measure(objective, {"d": {"weight": torch.ones(1, 3)}}, landscape=True)
    loss.backward()
    expected = torch.autograd.grad(model(x).square().mean() + model.weight.square().sum(), model.weight)[0]
    assert torch.equal(model.weight.grad, expected)


def test_random_losses_are_measured_with_fixed_draws():
    _, _, objective = disturbing()
    assert objective.loss() == objective.loss()


def test_works_where_gradients_are_off_and_under_autocast():
    c = case("mlp")
    c.model.float()
    objective = Objective(c.model, c.loss_fn, moved(c.batches, torch.device("cpu"), lambda _: torch.float32))
    direction = {"d": objective.gradient()[1]}
    expected = stepscope.measure(objective, direction)["d"].sharpness
    with torch.no_grad():
        assert stepscope.measure(objective, direction)["d"].sharpness == expected
    with torch.inference_mode():
        assert stepscope.measure(objective, direction)["d"].sharpness == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert stepscope.measure(objective, direction)["d"].sharpness == expected


def test_half_precision_is_measured_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).to(torch.bfloat16)
    twin = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    batch = (torch.randn(6, 4), torch.randint(0, 2, (6,)))

    def loss(m, b):
        return F.cross_entropy(m(b[0]), b[1])

    direction = {n: torch.randn(p.shape) for n, p in twin.named_parameters()}
    half = stepscope.measure(Objective(model, loss, [(batch[0].bfloat16(), batch[1])]), {"d": direction})["d"]
    full = stepscope.measure(Objective(twin, loss, [(batch[0].bfloat16().float(), batch[1])]), {"d": direction})["d"]
    assert half.dtype == "float32"
    assert half.sharpness == full.sharpness
    assert next(model.parameters()).dtype == torch.bfloat16


def test_float64_reference_of_a_float32_model():
    c = case("layer norm")
    exact = stepscope.measure(c.objective(), {"d": c.objective().gradient()[1]})["d"]
    c32 = case("layer norm")
    c32.model.float()
    objective = Objective(c32.model, c32.loss_fn, c32.batches, dtype=torch.float64)
    measured = stepscope.measure(objective, {"d": objective.gradient()[1]})["d"]
    assert measured.dtype == "float64"
    assert measured.sharpness == pytest.approx(exact.sharpness, rel=1e-5)  # the weights were rounded once


@pytest.mark.parametrize("name", CASES)
def test_pooled_loss_does_not_depend_on_the_cut(name):
    """Rows evaluated one by one and together give the same loss: ragged batches are weighted by what they average."""
    if name == "quadratic":
        pytest.skip("its batches are scales, not rows")
    c = case(name)
    rows = []
    for batch in c.batches:
        count = len(batch["labels"] if isinstance(batch, dict) else batch[1])
        for i in range(count):
            rows.append(
                {k: v[i : i + 1] for k, v in batch.items()}
                if isinstance(batch, dict)
                else tuple(t[i : i + 1] for t in batch)
            )
    assert Objective(c.model, c.loss_fn, rows).loss() == pytest.approx(c.objective().loss(), rel=1e-6)


def test_what_a_mean_averages_over():
    labels = torch.tensor([[-100, 5, 6, -100], [7, 8, -100, -100]])
    assert averaged_over({"input_ids": labels, "labels": labels}, shifted=predicts_next_token(t5("gelu"))) == 4
    assert averaged_over({"input_ids": labels, "labels": labels}, shifted=predicts_next_token(gpt_neo())) == 3
    assert averaged_over({"labels": torch.tensor([0, 1, -100])}, shifted=predicts_next_token(bert())) == 2
    assert averaged_over({"labels": torch.rand(3, 2)}, shifted=predicts_next_token(bert())) == 6
    assert averaged_over((torch.zeros(7, 2), torch.zeros(7)), shifted=predicts_next_token(nn.Linear(1, 1))) == 7
    assert averaged_over([{"a": "text", "b": [torch.zeros(5, 2)]}], shifted=predicts_next_token(nn.Linear(1, 1))) == 5
    with pytest.raises(UsageError, match="pass weight_fn"):
        averaged_over("text", shifted=predicts_next_token(nn.Linear(1, 1)))


def test_batches_are_moved_with_their_structure():
    from transformers import BatchEncoding

    half = torch.zeros(2, dtype=torch.float16)
    batch = {"a": half, "b": (half, [torch.ones(2, dtype=torch.int64)]), "c": "text", "d": BatchEncoding({"e": half})}
    out = moved(batch, torch.device("cpu"), lambda _: torch.float32)
    assert out["a"].dtype == out["b"][0].dtype == out["d"]["e"].dtype == torch.float32
    assert out["b"][1][0].dtype == torch.int64
    assert (out["c"], type(out["d"]).__name__) == ("text", "BatchEncoding")


def test_a_data_loader_is_read_without_touching_the_generator():
    data = [(torch.randn(2), torch.tensor(0)) for _ in range(5)]
    model, loader = nn.Linear(2, 2), torch.utils.data.DataLoader(data, 2)
    before = torch.get_rng_state()
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), loader)
    assert torch.equal(before, torch.get_rng_state())
    assert objective.weights == [0.4, 0.4, 0.2]


def linear():
    return nn.Linear(2, 1)


def frozen():
    return linear().requires_grad_(False)


def sharing():
    model = nn.Sequential(linear(), linear())
    model[1].weight.data = model[0].weight.data
    return model


def mean_square(m, b):
    return m(b).square().mean()


ONES = [torch.ones(3, 2)]
MISTAKES = {
    "not a module": (lambda: Objective(mean_square, linear(), ONES), "model is a function"),
    "one batch": (lambda: Objective(linear(), None, {"labels": torch.ones(2)}), r"\[batch\] for one"),
    "batches is None": (lambda: Objective(linear(), None, None), "give a list of micro-batches"),
    "no batches": (lambda: Objective(linear(), mean_square, []), "at least one micro-batch"),
    "no trainable parameters": (lambda: Objective(frozen(), mean_square, ONES), "no trainable parameters"),
    "shared memory": (lambda: Objective(sharing(), mean_square, ONES), "share memory"),
    "complex": (
        lambda: Objective(
            nn.ParameterDict({"w": nn.Parameter(torch.ones(1, dtype=torch.complex64))}), mean_square, ONES
        ),
        "real floating-point",
    ),
    "negative weight": (lambda: Objective(linear(), mean_square, ONES, lambda b: -1.0), "finite number ≥ 0"),
    "no valid label": (lambda: Objective(linear(), None, [{"labels": torch.full((2,), -100)}]), "no valid label"),
    "not scalar": (lambda: Objective(linear(), lambda m, b: m(b), ONES).loss(), re.escape("not of shape (3, 1)")),
    "not a tensor": (lambda: Objective(linear(), lambda m, b: 3.0, ONES).loss(), "not a float"),
    "detached": (
        lambda: Objective(linear(), lambda m, b: m(b).mean().detach(), ONES).gradient(),
        "no trainable parameter",
    ),
    "nan": (lambda: Objective(linear(), lambda m, b: m(b).mean() * torch.nan, ONES).gradient(), "the loss is nan"),
    "infinite": (
        lambda: stepscope.measure(
            Objective(linear(), lambda m, b: m(b).mean() + torch.inf, ONES), {"d": {"bias": torch.ones(1)}}
        ),
        "the loss is inf",
    ),
    "no loss_fn": (lambda: Objective(linear(), None, ONES).loss(), "must be a mapping"),
    "no labels": (
        lambda: Objective(bert(), None, [{"input_ids": torch.ones(1, 4, dtype=torch.int64)}]).loss(),
        "put labels into the batches",
    ),
}
DIRECTIONS = {
    "wrong name": ({"wieght": torch.ones(1, 2)}, "'wieght', not a trainable parameter .they are weight, bias"),
    "wrong shape": ({"weight": torch.ones(2)}, r"shape \(2,\), the parameter \(1, 2\)"),
    "nan": ({"weight": torch.tensor([[1.0, torch.nan]])}, "infinite or NaN"),
    "zero": ({"weight": torch.zeros(1, 2)}, "zero, so nothing can be measured along it"),
    "empty": ({}, "zero, so nothing can be measured along it"),
    "not a mapping": (torch.ones(3), "not a mapping"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_clear_line(name):
    call, message = MISTAKES[name]
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_wrong_directions_get_one_clear_line(name):
    direction, message = DIRECTIONS[name]
    with pytest.raises(UsageError, match=message) as error:
        stepscope.measure(Objective(linear(), mean_square, ONES), {"mine": direction})
    assert "\n" not in str(error.value)
    assert "'mine'" in str(error.value)


def test_no_directions():
    with pytest.raises(UsageError, match="no directions"):
        stepscope.measure(Objective(linear(), mean_square, ONES), {})


class Merging(nn.Linear):
    """Merges an adapter into its weights when it is put into evaluation mode, as some adapters do."""

    def train(self, mode=True):
        if not mode:
            self.weight.data.add_(1.0)
        return super().train(mode)


def test_modules_that_act_on_a_change_of_mode_are_not_told():
    model = Merging(2, 1)
    before = fingerprint(model)
    stepscope.measure(Objective(model, mean_square, ONES), {"d": {"bias": torch.ones(1)}}, landscape=True)
    assert fingerprint(model) == before


def test_an_embedding_that_rescales_its_weights_does_so_on_a_copy():
    model = nn.Embedding(4, 3, max_norm=0.1)
    before, place = model.weight.detach().clone(), model.weight.data_ptr()
    ids = torch.tensor([0, 1, 2])
    stepscope.measure(Objective(model, mean_square, [ids]), {"d": {"weight": torch.ones(4, 3)}}, landscape=True)
    assert torch.equal(model.weight, before)
    assert model.weight.data_ptr() == place


def test_a_transformer_is_one_function_with_and_without_gradients():
    """Its fast path, without gradients, gives zeros where the input is padded."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 1)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    objective = Objective(model, lambda m, b: m(b, src_key_padding_mask=mask).square().mean(), [torch.randn(2, 3, 4)])
    m = stepscope.measure(objective, {"d": objective.gradient()[1]}, landscape=True)["d"]
    assert m.landscape.losses[0] == pytest.approx(m.loss, rel=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_losses_that_hold_derivatives():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def penalty(m, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        return (slope - x).square().mean()

    objective = Objective(model, penalty, [torch.randn(5, 1)])
    value, gradient = objective.gradient()
    m = stepscope.measure(objective, {"d": gradient}, landscape=True)["d"]
    assert m.landscape.losses[0] == pytest.approx(value, rel=1e-6)


def test_python_and_numpy_draws_are_fixed_too():
    model = linear()
    objective = Objective(model, lambda m, b: m(b).square().mean() * (random.random() + np.random.rand()), ONES)
    state = random.getstate()
    assert objective.loss() == objective.loss()
    assert random.getstate() == state


def test_labels_that_a_decoder_does_not_shift():
    import transformers

    sizes = {"vocab_size": 11, "d_model": 4, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 4}
    bart = transformers.BartForCausalLM(transformers.BartConfig(**sizes, encoder_layers=1, encoder_attention_heads=2))
    ids = torch.randint(3, 11, (2, 5))
    assert averaged_over({"input_ids": ids, "labels": ids}, shifted=predicts_next_token(bart)) == 10


def test_tensors_of_other_kinds_are_no_directions():
    for odd in (torch.ones(1, 2).long(), torch.ones(1, 2).to_sparse(), [[1.0, 2.0]]):
        with pytest.raises(UsageError, match="not a dense real floating-point tensor"):
            stepscope.measure(Objective(linear(), mean_square, ONES), {"mine": {"weight": odd}})


def test_a_buffer_that_modules_share_stays_shared_while_measuring():
    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Module(), nn.Module()
            self.a.register_buffer("count", torch.zeros(()))
            self.b.register_buffer("count", self.a.count)
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            self.a.count += 1
            assert float(self.b.count) == float(self.a.count)
            return (self.w * x).sum()

    model = Writer()
    Objective(model, lambda m, b: m(b), [torch.ones(2)]).gradient()
    assert float(model.a.count) == 0.0


def test_displacements_nest():
    model = linear()
    objective = Objective(model, mean_square, ONES)
    x = model.weight.detach().clone()
    step = {"weight": torch.tensor([[1.0, 2.0]])}
    with objective.measuring(), objective.displaced(step, 1.0):
        with objective.displaced(step, -3.0):
            assert torch.equal(model.weight, x + step["weight"] - 3 * step["weight"])
        assert torch.equal(model.weight, x + step["weight"])
    assert torch.equal(model.weight, x)


def test_autocast_inside_the_loss_has_no_effect():
    c = case("layer norm")
    c.model.float()
    batches = moved(c.batches, torch.device("cpu"), lambda _: torch.float32)

    def inside(m, b):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return c.loss_fn(m, b)

    direction = {"d": Objective(c.model, c.loss_fn, batches).gradient()[1]}
    for method in ("autograd", "difference"):
        plain = stepscope.measure(Objective(c.model, c.loss_fn, batches), direction, method)["d"]
        assert (
            stepscope.measure(Objective(c.model, inside, batches), direction, method)["d"].sharpness == plain.sharpness
        )
    assert inside(c.model.eval(), batches[0]) != c.loss_fn(c.model, batches[0])  # and outside it has


def test_backward_hooks_of_modules_do_not_reach_the_measured_gradient():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    objective = Objective(model, mean_square, ONES)
    _, plain = objective.gradient()
    handle = model[2].register_full_backward_hook(lambda m, gin, gout: (100 * gin[0],))
    _, hooked = objective.gradient()
    assert all(torch.equal(plain[n], hooked[n]) for n in plain)
    assert stepscope.measure(objective, {"d": plain})["d"].method == "autograd"
    model(ONES[0]).square().mean().backward()
    assert not torch.allclose(model[0].weight.grad, plain["0.weight"])  # it works on as before
    handle.remove()


def test_a_micro_batch_without_labels_does_not_count():
    c = case("t5 gelu")
    empty = {**c.batches[0], "labels": torch.full_like(c.batches[0]["labels"], -100)}
    both = Objective(c.model, None, [c.batches[0], empty])
    assert both.weights == [1.0]
    assert both.loss() == Objective(c.model, None, [c.batches[0]]).loss()


def test_a_wrapper_is_pooled_as_the_model_in_it():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case("gpt-neo").model

        def forward(self, **batch):
            return self.inner(**batch)

    c = case("gpt-neo")
    assert Objective(Wrapper(), None, c.batches).weights == c.objective().weights


def test_labels_in_a_tuple_need_a_weight():
    ids = torch.tensor([[1, 2], [3, -100]])
    with pytest.raises(UsageError, match="pass weight_fn"):
        Objective(linear(), mean_square, [(ids, ids), (ids, ids)])


def test_a_loss_that_writes_to_its_batch_writes_to_a_copy():
    x = torch.ones(3, 2)
    objective = Objective(linear(), lambda m, b: m(b.mul_(2)).square().mean(), [x])
    assert objective.loss() == objective.loss()
    assert torch.equal(x, torch.ones(3, 2))


def test_a_loss_that_cannot_be_repeated_is_refused():
    system = random.SystemRandom()
    objective = Objective(linear(), lambda m, b: m(b).square().mean() * system.random(), ONES)
    with pytest.raises(UsageError, match="two evaluations"):
        stepscope.measure(objective, {"d": {"bias": torch.ones(1)}})


def test_a_model_that_has_changed_is_refused():
    model = nn.Sequential(linear(), nn.Linear(1, 1))
    objective = Objective(model, mean_square, ONES)
    model[1] = nn.Linear(1, 1)
    with pytest.raises(UsageError, match="make another Objective"):
        objective.loss()
    objective = Objective(model, mean_square, ONES)
    model[0].bias.requires_grad_(False)
    with pytest.raises(UsageError, match="make another Objective"):
        objective.loss()


def test_sparse_embeddings():
    torch.manual_seed(0)
    sparse, dense = nn.Embedding(5, 3, sparse=True), nn.Embedding(5, 3)
    dense.load_state_dict(sparse.state_dict())
    ids = torch.tensor([0, 3, 3])
    direction = {"d": {"weight": torch.randn(5, 3)}}

    def loss(m, b):
        return m(b).pow(3).sum()

    found = stepscope.measure(Objective(sparse, loss, [ids]), direction, "difference")["d"]
    exact = stepscope.measure(Objective(dense, loss, [ids]), direction)["d"]
    assert found.sharpness == pytest.approx(exact.sharpness, abs=found.numerical_error)


def test_the_memory_of_displaced_points_is_given_back():
    objective = Objective(linear(), mean_square, ONES)
    objective.loss_at({"weight": torch.ones(1, 2)}, 1.0)
    assert objective._how._scratch == []


def test_the_nodes_that_gather_gradients_stay():
    """DistributedDataParallel hooks them, and would no longer synchronize a model in half precision."""
    model = linear().bfloat16()
    fired = Log()
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    for node in nodes:
        node.register_hook(lambda *_: fired() and None)
    batch = torch.ones(3, 2, dtype=torch.bfloat16)
    objective = Objective(model, mean_square, [batch])
    stepscope.measure(objective, {"d": {n: torch.ones_like(p) for n, p in objective.parameters.items()}})
    mean_square(model, batch).backward()
    assert len(fired) == len(nodes) == 2


def test_a_loss_may_write_to_what_is_not_the_models():
    """An exponential average of the weights that the loss itself keeps."""
    model, average = linear(), linear()
    before = [p.detach().clone() for p in average.parameters()]

    def loss(model, batch):
        with torch.no_grad():
            for mean, p in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(p, 0.5)
        return (model(batch) - average(batch).detach()).square().mean()

    objective = Objective(model, loss, ONES)
    assert objective.loss() == objective.loss()
    versions = [p._version for p in average.parameters()]
    stepscope.measure(objective, {"d": {"bias": torch.ones(1)}}, landscape=True)
    assert all(torch.equal(a, b) for a, b in zip(before, average.parameters(), strict=True))
    assert [p._version for p in average.parameters()] == versions


def teacher():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    net(torch.randn(16, 2))  # running statistics that aren't the initial ones
    return net.train()


HIDDEN = {}


def by_closure(net):
    return lambda m, b: (m(b) - net(b).detach()).square().mean()


def by_default(net):
    def loss(m, b, *, net=net):
        return (m(b) - net(b).detach()).square().mean()

    return loss


def by_a_name_that_is_computed(net):
    HIDDEN["net"] = net
    return lambda m, b: (m(b) - globals()["HID" + "DEN"]["net"](b).detach()).square().mean()


def by_its_forward_alone(net):
    HIDDEN["net"] = net
    return lambda m, b: (m(b) - globals()["HID" + "DEN"]["net"].forward(b).detach()).square().mean()


@pytest.mark.parametrize("reached", [by_closure, by_default, by_a_name_that_is_computed, by_its_forward_alone])
def test_modules_that_the_loss_calls_are_evaluated_as_the_model_is(reached):
    """Without dropout and with the running statistics, and found, or noticed when they are called."""
    net, model, batch = teacher(), linear(), torch.randn(5, 2)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objective = Objective(model, reached(net), [batch], modules=[net] if reached is by_its_forward_alone else [])
    found = objective.loss()
    assert net.training
    assert net[1].training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    net.eval()
    assert found == pytest.approx(reached(net)(model, batch).item(), rel=1e-6)
    HIDDEN.clear()


class Rescaling(nn.Module):
    """Halves a weight when it is evaluated, as RWKV does."""

    def __init__(self):
        super().__init__()
        self.lin, self.halved = linear(), False

    def forward(self, x):
        if not self.training and not self.halved:
            with torch.no_grad():
                self.lin.weight.div_(2)
            self.halved = True
        return self.lin(x)


def test_a_model_that_writes_to_its_weights_is_refused():
    model = Rescaling().train()
    before = model.lin.weight.detach().clone()
    version = model.lin.weight._version
    with pytest.raises(UsageError, match=r"lin\.weight is written to when the loss is evaluated"):
        Objective(model, mean_square, ONES).loss()
    assert torch.equal(model.lin.weight, before)
    assert (model.halved, model.lin.weight._version) == (False, version)


class UnshiftedForCausalLM(nn.Module):
    """A class whose name says that it shifts its labels, and which doesn't; its head is zero at first."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, labels):
        logits = self.head(torch.tanh(self.embedding(input_ids)))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_where_all_losses_are_equal_gradients_show_how_they_are_weighted():
    batches = []
    for valid in (2, 8):
        ids = torch.randint(0, 11, (3, 8))
        batches.append({"input_ids": ids, "labels": torch.where(torch.arange(8) < valid, ids, -100)})
    model = UnshiftedForCausalLM()
    assert predicts_next_token(model)
    objective = Objective(model, None, batches)
    assert objective.weights == [0.2, 0.8]
    assert objective.weighting.check == "the loss of two micro-batches together is the mean of theirs"


def test_each_evaluation_starts_from_the_same_count():
    """A loss that does something else at each seventh call is one function all the same."""
    calls, seen = [0], Log()

    def loss(model, batch):
        calls[0] += 1
        seen(calls[0])
        return mean_square(model, batch) * (100 if calls[0] % 7 == 0 else 1)

    stepscope.measure(Objective(linear(), loss, ONES), {"d": {"bias": torch.ones(1)}}, landscape=True)
    assert calls == [0]
    assert len(seen) > 7
    assert set(seen.notes()) == {1}


def in_a_tuple(parameters):
    held = tuple(parameters)
    return lambda: held


def in_a_partial(parameters):
    import functools

    return functools.partial(lambda *held: held, *parameters)


def in_a_default(parameters):
    return lambda held=tuple(parameters): held


def in_a_reference(parameters):
    import weakref

    held = [weakref.ref(p) for p in parameters]
    return lambda: [reference() for reference in held]


def in_an_optimizer(parameters):
    optimizer = torch.optim.SGD(list(parameters), lr=0.1)
    return lambda: optimizer.param_groups[0]["params"]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, None), (torch.float32, torch.float64)])
@pytest.mark.parametrize("held", [in_a_tuple, in_a_partial, in_a_default, in_a_reference, in_an_optimizer])
def test_parameters_that_the_loss_holds_are_those_that_are_measured(held, dtypes):
    """Also where the measured dtype is another than theirs."""
    model = nn.Linear(2, 1, dtype=dtypes[0])
    parameters = held(model.parameters())

    def loss(model, batch):
        return model(batch).square().mean() + sum(p.square().sum() for p in parameters())

    objective = Objective(model, loss, [torch.ones(3, 2, dtype=dtypes[0])], dtype=dtypes[1])
    _, gradient = objective.gradient()
    w = {n: p.detach().double() for n, p in model.named_parameters()}
    output = w["weight"].sum() + w["bias"].sum()
    for name, value in w.items():
        torch.testing.assert_close(gradient[name].double(), 2 * output + 2 * value, rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in model.parameters()} == {dtypes[0]}


def test_a_view_of_a_parameter_moves_with_it():
    model = nn.Linear(2, 1)
    model.view = model.weight.detach().t()
    objective = Objective(model, lambda m, b: (b @ m.view + m.bias).square().mean(), ONES)
    before = model.view.data_ptr()
    found = objective.loss_at({"weight": torch.ones(1, 2)}, 1.0)
    assert model.view.data_ptr() == before == model.weight.data_ptr()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert found == pytest.approx(objective.loss(), rel=1e-6)


def test_a_loss_may_train_something_inside():
    """A discriminator that takes a step of its own optimizer at each call."""
    torch.manual_seed(0)
    model, other = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1)

    def loss(model, batch):
        made = model(batch)
        optimizer.zero_grad()
        F.softplus(other(made.detach())).mean().backward()
        optimizer.step()
        return F.softplus(-other(made)).mean()

    before = fingerprint(other, optimizer)
    objective = Objective(model, loss, ONES)
    assert objective.loss() == objective.loss() == objective.gradient()[0]
    assert fingerprint(other, optimizer) == before
    assert not optimizer.state


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x):
        return self.rnn(x)[0]


def test_examples_may_lie_along_the_second_dimension():
    batches = [(torch.randn(5, n, 3), torch.randn(5, n, 4)) for n in (2, 8)]
    objective = Objective(TimeFirst(), lambda m, b: F.mse_loss(m(b[0]), b[1]), batches)
    assert objective.weights == pytest.approx([0.2, 0.8])


def test_a_mask_in_a_tuple_is_found():
    batches = [(torch.randn(4, 2), torch.arange(8).view(4, 2) < n) for n in (3, 7)]
    objective = Objective(linear(), lambda m, b: (m(b[0]).square() * b[1]).sum() / b[1].sum(), batches)
    assert objective.weights == pytest.approx([0.3, 0.7])


def test_a_list_of_targets_is_not_joined():
    batches = [{"x": torch.randn(2, 2), "targets": [torch.randn(2, 2), torch.randn(5, 2)]} for _ in range(2)]
    objective = Objective(linear(), lambda m, b: m(b["x"]).mean() + sum(t.mean() for t in b["targets"]), batches)
    assert objective.weighting.check == "could not be tried: micro-batches can be neither joined nor split"


def test_a_loss_that_draws_from_a_generator_of_its_own_is_not_compared():
    generator = torch.Generator().manual_seed(0)
    objective = Objective(
        linear(), lambda m, b: (m(b) + torch.randn(len(b), 1, generator=generator)).square().mean(), 2 * ONES
    )
    assert objective.weighting.check == "could not be tried: the loss draws random numbers"


class MadeInForward(nn.Module):
    """Makes modules at each call, as Hugging Face's do with their losses."""

    def __init__(self):
        super().__init__()
        self.lin = linear()

    def forward(self, x):
        return nn.MSELoss()(nn.Dropout(0.5)(self.lin(x)), torch.zeros(len(x), 1))


def test_modules_that_are_made_at_each_call_have_no_dropout_and_leave_nothing():
    model = MadeInForward().train()
    objective = Objective(model, lambda m, b: m(b), ONES)
    with objective.measuring():
        places = len(objective._within.measured._state)
        losses = {objective.loss() for _ in range(5)}
        assert len(objective._within.measured._state) == places
    assert list(losses) == pytest.approx([model.lin(ONES[0]).square().mean().item()], rel=1e-6)
