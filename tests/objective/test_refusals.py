"""What can't be measured or clipped is refused in one line, with what to do; what only looks alike is not."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepscope
from stepscope import Objective, Probe, PseudoUpdates, UsageError, measure, next_update
from stepscope.measuring.curvature import curvature

BATCH = (torch.linspace(-1, 1, 30).reshape(5, 6), torch.arange(5) % 3)


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def probe(model, batches=(BATCH,), loss=loss_fn, optimizer=None, **settings):
    attached = Probe(
        model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1), loss, list(batches), quiet=True, **settings
    )
    assert attached.check.repeatable
    return attached


def refusal(work, cause=None):
    with pytest.raises(UsageError) as refused:
        work()
    assert "\n" not in str(refused.value)
    if cause is not None:
        assert isinstance(refused.value.__cause__, cause)
    return str(refused.value)


class LossesInTraining(nn.Linear):
    def forward(self, x, y):
        scores = super().forward(x)
        return {"loss": F.cross_entropy(scores, y)} if self.training else [scores]


@pytest.mark.parametrize("batches", [BATCH, list(BATCH), (torch.ones(4, 2), torch.ones(4))])
def test_the_parts_of_one_batch_are_no_micro_batches(batches):
    assert "the parts of one batch: give a list of micro-batches, [batch]" in refusal(
        lambda: Objective(net(), loss_fn, batches)
    )


def test_tensors_of_one_kind_may_be_micro_batches():
    square = lambda model, x: model(x).square().mean()  # noqa: E731
    assert len(Objective(net(), square, (torch.ones(2, 6), torch.ones(5, 6))).batches) == 2
    # Of a pair that can't be told apart the first evaluation says it.
    said = refusal(
        lambda: Objective(nn.Linear(6, 6), lambda m, b: F.mse_loss(m(b[0]), b[1]), (BATCH[0][:3, :4],) * 2).loss()
    )
    assert "if they are the parts of one batch, give [batch]" in said


def test_a_packed_sequence_is_one_batch():
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    assert "batches is a PackedSequence, which is one batch" in refusal(lambda: Objective(net(), loss_fn, packed))


def test_a_loader_without_end():
    read = []

    def endless():
        for n in itertools.count():
            read.append(n)
            yield BATCH

    assert "list(itertools.islice(batches, 8))" in refusal(lambda: Objective(net(), loss_fn, endless()))
    assert len(read) < 1000
    assert len(Objective(net(), loss_fn, itertools.islice(endless(), 3)).batches) == 3
    long = [(BATCH[0][:1], BATCH[1][:1])] * 600
    assert len(Objective(net(), loss_fn, long).batches) == 600


def test_what_is_no_objective_and_no_mapping():
    model = net()
    objective = Objective(model, loss_fn, [BATCH])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    direction = {"0.bias": torch.ones(5)}
    for work in (lambda: measure(model, {"d": direction}), lambda: stepscope.clip_sweep(model)):
        assert refusal(work) == "objective is a Sequential, not an Objective: give Objective(model, loss_fn, batches)"
    assert "directions is a list: give {label:" in refusal(lambda: measure(objective, [direction]))
    assert "directions is a list: give {label: factory}" in refusal(lambda: probe(model, directions=[torch.optim.Adam]))
    assert "dict(model.named_parameters())" in refusal(lambda: next_update(optimizer, model.parameters()))
    assert "dict(model.named_parameters())" in refusal(lambda: PseudoUpdates(list(model.parameters()), {}))
    assert "optimizers is a list: give {label:" in refusal(lambda: PseudoUpdates(objective.parameters, [optimizer]))


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_wants_a_first_forward(lazy):
    model = nn.Sequential(nn.Linear(6, 5), lazy, nn.LazyLinear(3))
    assert "call the model on a batch first" in refusal(lambda: Objective(model, loss_fn, [BATCH]))
    model(BATCH[0])
    assert Objective(model, loss_fn, [BATCH]).loss() > 0


def test_a_batch_in_another_dtype():
    wide = (BATCH[0].double(), BATCH[1])
    said = refusal(lambda: probe(net(), [wide]), cause=RuntimeError)
    assert said.startswith("the loss of micro-batch 0 can't be computed (RuntimeError: ")
    assert said.endswith("it holds torch.float64, the model torch.float32; give the batches in the model's dtype")
    assert "micro-batch 1" in refusal(lambda: Objective(net(), loss_fn, [BATCH, wide]).loss())


def test_a_model_that_gives_losses_in_training_mode_only():
    model = LossesInTraining(6, 3)
    said = refusal(lambda: probe(model, loss=lambda m, b: m(*b)["loss"]), cause=TypeError)
    assert "(TypeError: list indices must be integers or slices, not str)" in said
    assert "give a loss_fn that computes it in evaluation mode" in said
    assert model.training


class RefusesItsBackward(torch.autograd.Function):
    """As Reformer's layers do in evaluation mode."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("put the model\ninto training mode")


def test_a_model_whose_backward_fails_in_evaluation_mode():
    said = refusal(
        lambda: probe(net(), loss=lambda m, b: RefusesItsBackward.apply(loss_fn(m, b))), cause=AssertionError
    )
    assert said.startswith(
        "this model can't be measured (AssertionError: put the model): call loss_fn(model.eval(), batch)"
    )


class OfItsOwn(torch.optim.SGD):
    def step(self, closure=None):
        raise LookupError("no such table")


@pytest.mark.filterwarnings("ignore:optimizer 'OfItsOwn' does not run in float64")
def test_an_optimizer_that_fails_on_copies():
    model = net()
    said = refusal(lambda: probe(model, optimizer=OfItsOwn(model.parameters(), lr=0.1)), cause=LookupError)
    assert said == "OfItsOwn can't step on copies (LookupError: no such table): its update can't be known in advance"


def test_a_later_failure_is_the_models_own():
    broken = []

    def fails_later(model, batch):
        if broken:
            raise KeyError("mine")
        return loss_fn(model, batch)

    objective = Objective(net(), fails_later, [BATCH])
    objective.loss()
    broken.append(1)
    with pytest.raises(KeyError, match="mine"):
        objective.loss()


def test_a_loss_that_differentiates_inside_still_is_tried_again():
    def penalty(model, batch):
        x = batch[0].clone().requires_grad_()
        [slope] = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()

    assert Objective(net(), penalty, [BATCH]).loss() > 0


def test_batches_follow_the_model_to_another_dtype():
    model = net()
    objective = Objective(model, loss_fn, [(*BATCH, BATCH[0].half())])
    before = objective.loss()
    model.double()
    assert objective.loss() == pytest.approx(before, rel=1e-6)
    direction = {name: torch.ones_like(p) for name, p in objective.parameters.items()}
    assert measure(objective, {"d": direction})["d"].dtype == "float64"
    model.bfloat16()
    assert objective.loss() == pytest.approx(before, rel=1e-2)


class NeedsTheGraph(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            [curved] = torch.autograd.grad(p.grad.sum(), p, retain_graph=True)
            p.data.sub_(0.1 * curved)


def test_an_optimizer_that_differentiates_its_gradients():
    model = net()
    optimizer = NeedsTheGraph(model.parameters(), lr=0.1)
    wanted = "'NeedsTheGraph' needs the graph of its gradients (create_graph)"
    assert wanted in refusal(lambda: probe(model, optimizer=optimizer))
    loss_fn(model, BATCH).backward()
    assert wanted in refusal(lambda: next_update(optimizer, dict(model.named_parameters())))


def with_parameters(*tensors):
    model = nn.Module()
    model.p = nn.ParameterList(nn.Parameter(t) for t in tensors)
    return model


def objective_of(*tensors):
    return Objective(with_parameters(*tensors), lambda m, _: sum(p.square().sum() for p in m.p), [torch.ones(1)])


def test_parameters_that_overlap_are_refused():
    flat = torch.arange(12.0)
    shared = "share memory: tie them as one Parameter object"
    assert shared in refusal(lambda: objective_of(flat, flat[2:]))
    assert "p.1 and p.2 share memory" in refusal(lambda: objective_of(torch.ones(3), flat[:6], flat[5:]))
    grid = flat.view(3, 4)
    assert shared in refusal(lambda: objective_of(grid[:, :2], grid[1]))
    assert shared in refusal(lambda: objective_of(flat[:4], flat.view(torch.float64)[1:2]))
    assert "p.0 holds elements that share memory" in refusal(lambda: objective_of(torch.ones(1).expand(4)))


def test_disjoint_views_of_one_buffer_pass():
    flat = torch.arange(12.0)
    grid = flat.view(3, 4)
    assert objective_of(flat[:5], flat[5:5], flat[5:]).loss() == float(flat.square().sum())
    assert objective_of(grid[:, ::2], grid[:, 1::2]).loss() == float(flat.square().sum())
    assert objective_of(torch.ones(1, 3).expand(1, 3)).loss() == 3


def test_a_gradient_that_is_empty_everywhere_is_an_error():
    """Else the sharpness would be recorded as 0."""
    model, other = net(), nn.Linear(6, 3)
    objective = Objective(model, lambda _, b: loss_fn(other, b), [BATCH])
    direction = {"0.bias": torch.ones(5)}
    for method in ("auto", "autograd", "difference"):
        work = lambda method=method: measure(objective, {"d": direction}, method)  # noqa: E731
        assert "uses none of the model's trainable parameters" in refusal(work)
    assert "uses none" in refusal(objective.gradient)
    assert "uses none" in refusal(lambda: curvature(objective, {}, "autograd"))
    assert "uses none" in refusal(lambda: probe(model, loss=lambda _, b: loss_fn(other, b)))
    # Some micro-batches may use none.
    one_of_two = lambda m, b: loss_fn(m if len(b[0]) == 5 else other, b)  # noqa: E731
    some = Objective(model, one_of_two, [BATCH, [t[:2] for t in BATCH]], lambda _: 1)
    assert measure(some, {"d": direction})["d"].sharpness != 0


@pytest.mark.parametrize("mark", ["ds_id", "_is_flat_param", "_fsdp_flattened"])
def test_parameters_that_are_marked_as_sharded(mark):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn(model, BATCH).backward()
    setattr(model[2].bias, mark, 1)
    owner = "DeepSpeed's ZeRO" if mark == "ds_id" else "FSDP"
    assert f"by {owner}, which can't be measured: use fully_shard" in refusal(
        lambda: Objective(model, loss_fn, [BATCH])
    )
    for clip in (
        lambda: stepscope.clip_optimizer(optimizer, 0.1),
        lambda: stepscope.clip_grad_fraction_(model.parameters(), 0.1),
    ):
        assert f"by {owner}: the threshold of a part isn't that of all" in refusal(clip)
    delattr(model[2].bias, mark)
    handle = stepscope.clip_optimizer(optimizer, 0.1)
    setattr(model[2].bias, mark, 1)
    assert "isn't that of all" in refusal(optimizer.step)
    handle.remove()


def test_options_of_another_kind():
    assert "weight_fn is a int: give a function" in refusal(lambda: Objective(net(), loss_fn, [BATCH], 3))
    said = refusal(lambda: Objective(net(), loss_fn, [BATCH], lambda batch: "all"))
    assert "weight_fn gave 'all' for micro-batch 0" in said
    for dtype in ("float64", torch.int32):
        said = refusal(lambda dtype=dtype: Objective(net(), loss_fn, [BATCH], dtype=dtype))
        assert "give a floating-point type" in said


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_a_loss_of_another_kind(dtype):
    of_kind = lambda m, b: loss_fn(m, b).to(dtype)  # noqa: E731
    assert f"the loss is of {dtype}" in refusal(lambda: Objective(net(), of_kind, [BATCH]).loss())
    assert f"the loss is of {dtype}" in refusal(lambda: Objective(net(), of_kind, [BATCH]).gradient())
