"""The square root of the Gauss-Newton matrix against the matrix made densely, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian, jacobian

from cases import bert, case, substituted
from stepscope import Objective, UsageError
from stepscope.measuring import gauss_newton_matrix
from stepscope.measuring.gauss_newton_matrix import softmax_root
from traces import fingerprint


class Classifier(nn.Module):
    """Embedding, layer norm, one matrix used twice under two names, padding left out of the mean, an unused weight."""

    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, classes)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.norm(self.embedding(input_ids))
        x = F.gelu(self.second(F.gelu(self.first(self.dropout(x)))))
        mask = attention_mask[..., None].to(x.dtype)
        logits = self.head((x * mask).sum(1) / mask.sum(1))
        return {"logits": logits, "loss": None if labels is None else F.cross_entropy(logits, labels)}


def batch_of(lengths, classes, width=None):
    width = width or max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    ids = torch.randint(1, 9, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, classes, (len(lengths),))}


def tiny(classes):
    torch.manual_seed(classes)
    return Classifier(classes).double(), batch_of([5, 2, 3, 1, 5, 4], classes)


def tiny_bert(classes):
    torch.manual_seed(classes)
    model = bert()
    model.config.num_labels = model.num_labels = classes
    model.classifier = nn.Linear(4, classes)
    return model.double(), batch_of([5, 2, 3], classes)


def dense(model, batch):
    """``Σ Jᵀ(diag(p) − ppᵀ)J / b`` over the trainable parameters, by the Jacobian of all logits."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    modes = [(m, m.training) for m in model.modules()]
    model.eval()

    def logits(*values):
        with substituted(model, dict(zip(parameters.values(), values, strict=True))):
            output = model(**batch)
            return output["logits"]

    point = tuple(p.detach().clone() for p in parameters.values())
    z = logits(*point)
    jacobians = jacobian(logits, point)
    for module, training in modes:
        module.training = training
    J = torch.cat([j.reshape(*z.shape, -1) for j in jacobians], -1)
    p = z.softmax(-1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("bcd,bce,bef->df", J, A, J) / len(z)


def matrix_of(found):
    R = torch.cat([torch.stack(parts) for parts in found.rows.values()], 1)
    return R.T @ R


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("make", [tiny, tiny_bert])
def test_agrees_with_the_dense_matrix(make, classes):
    model, batch = make(classes)
    model.train()
    expected = dense(model, batch)
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]))
    b = len(batch["labels"])
    assert {len(parts) for parts in found.rows.values()} == {b * (classes - 1)}
    assert found.examples == b
    assert list(found.rows) == [n for n, _ in model.named_parameters()]
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(matrix_of(found), expected, atol=1e-10, rtol=0)
    [norm] = found.spectral_norms([None])
    assert norm == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), abs=1e-10)
    columns = torch.cat(list(found.column_norms().values()))
    torch.testing.assert_close(columns.square(), expected.diagonal(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_is_the_hessian_of_a_linear_model(classes):
    x, labels = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, classes, (7,))
    model = nn.Linear(4, classes, bias=False).double()

    def loss(w):
        return F.cross_entropy(x @ w.view(classes, 4).T, labels)

    expected = hessian(loss, model.weight.detach().reshape(-1))
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, labels)])
    found = gauss_newton_matrix.gauss_newton(objective, logits_fn=lambda m, b: m(b[0]))
    torch.testing.assert_close(matrix_of(found), expected, atol=1e-12, rtol=0)


def test_two_classes_have_the_papers_rows():
    """``√(p₀p₁)·(∇z₀ − ∇z₁)``, one an example, up to its sign."""
    model, batch = tiny(2)
    model.eval()
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), "head.weight")
    z = model(**batch)["logits"]
    for example, row in enumerate(found.rows["head.weight"]):
        p = z[example].softmax(0)
        [gradient] = torch.autograd.grad(z[example, 0] - z[example, 1], model.head.weight, retain_graph=True)
        expected = (p[0] * p[1]).sqrt() * gradient.reshape(-1) / len(z) ** 0.5
        assert min((row - expected).abs().max(), (row + expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "logits",
    [[0.3, -1.0], [60.0, -60.0, 0.0], [-800.0, 0.0], [0.0] * 6, [3.0, 3.0, -2.0, 40.0], [1e4, -1e4, 0.0, 1.0]],
)
def test_root_of_the_softmax_hessian(logits):
    logits = torch.tensor(logits, dtype=torch.float64)
    S = softmax_root(logits)
    p = logits.softmax(0)
    assert S.shape == (len(logits), len(logits) - 1)
    torch.testing.assert_close(S @ S.T, torch.diag(p) - torch.outer(p, p), atol=1e-15, rtol=0)
    # A shift of all logits changes nothing.
    assert float(S.sum(0).abs().max()) < 1e-15


def test_root_of_certain_predictions_keeps_its_digits():
    """Where ``p₁ = 1`` to rounding, ``1 − p₁`` would be zero; ``√(p₀p₁)`` is e⁻³⁰."""
    S = softmax_root(torch.tensor([0.0, 60.0], dtype=torch.float64))
    torch.testing.assert_close(S[:, 0].abs(), torch.full((2,), -30.0, dtype=torch.float64).exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_micro_batches_change_nothing(classes):
    model, batch = tiny(classes)
    whole = matrix_of(gauss_newton_matrix.gauss_newton(Objective(model, None, [batch])))
    for sizes in ([1] * 6, [4, 2]):
        parts = list(zip(*(value.split(sizes) for value in batch.values()), strict=True))
        batches = [dict(zip(batch, part, strict=True)) for part in parts]
        found = gauss_newton_matrix.gauss_newton(Objective(model, None, batches))
        torch.testing.assert_close(matrix_of(found), whole, atol=1e-14, rtol=0)


def test_blocks_of_columns_change_nothing(monkeypatch):
    model, batch = tiny(5)
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]))
    keep = {name: torch.rand(size) < 0.7 for name, size in found.sizes.items()}
    norms, spectral = found.column_norms(), found.spectral_norms([None, keep])
    monkeypatch.setattr(gauss_newton_matrix, "_BLOCK", 60)  # two columns of the 24 rows
    assert spectral == pytest.approx(found.spectral_norms([None, keep]), rel=1e-12)
    for name, part in found.column_norms().items():
        torch.testing.assert_close(part, norms[name], rtol=1e-12, atol=0)


def test_examples_without_a_label_are_left_out():
    model, batch = tiny(2)
    fewer = {name: value[[0, 2, 3]] for name, value in batch.items()}
    labels = batch["labels"].clone()
    labels[[1, 4, 5]] = -100
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch | {"labels": labels}]))
    assert found.examples == 3
    expected = gauss_newton_matrix.gauss_newton(Objective(model, None, [fewer]))
    torch.testing.assert_close(matrix_of(found), matrix_of(expected), atol=1e-14, rtol=0)


def test_weights_of_micro_batches_are_the_objectives():
    model, batch = tiny(2)
    parts = [{n: v[i : i + 1] for n, v in batch.items()} for i in range(2)]
    one, other = (matrix_of(gauss_newton_matrix.gauss_newton(Objective(model, None, [part]))) for part in parts)
    for number, part in enumerate(parts):
        part["weight"] = torch.tensor([1 + 2 * number])
    objective = Objective(
        model,
        lambda m, b: m(b["input_ids"], b["attention_mask"], b["labels"])["loss"],
        parts,
        weight_fn=lambda b: float(b["weight"]),
    )
    found = gauss_newton_matrix.gauss_newton(
        objective, logits_fn=lambda m, b: m(b["input_ids"], b["attention_mask"])["logits"]
    )
    torch.testing.assert_close(matrix_of(found), (one + 3 * other) / 4, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("head.*", ["head.weight", "head.bias"]),
        (["head.bias", "norm.*"], ["norm.weight", "norm.bias", "head.bias"]),
        (lambda name: name.endswith("bias"), ["norm.bias", "first.bias", "second.bias", "head.bias"]),
    ],
)
def test_chosen_coordinates_are_a_diagonal_block(chosen, names):
    model, batch = tiny(2)
    whole = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]))
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), chosen)
    assert list(found.rows) == names
    torch.testing.assert_close(matrix_of(found), matrix_of(whole.of(names)))
    assert all(whole.of(names).rows[name][0] is whole.rows[name][0] for name in names)


def test_attention_of_a_transformer_in_training_mode_and_single_precision():
    """Dropout off, masks as they are: what a float32 model gives is what its float64 copy gives."""
    exact, single = case("bert"), case("bert", torch.float32)
    pattern = "*.attention.*.weight"
    expected = gauss_newton_matrix.gauss_newton(exact.objective(), pattern)
    found = gauss_newton_matrix.gauss_newton(single.objective(), pattern)
    assert found.spectral_norms([None]) == pytest.approx(expected.spectral_norms([None]), rel=1e-4)
    raised = gauss_newton_matrix.gauss_newton(
        Objective(single.model, None, single.batches, dtype=torch.float64), pattern
    )
    assert next(iter(raised.rows.values()))[0].dtype == torch.float64
    assert raised.spectral_norms([None]) == pytest.approx(expected.spectral_norms([None]), rel=1e-10)


def test_leaves_no_trace():
    c = case("bert")
    optimizer = torch.optim.SGD(c.model.parameters(), lr=0.1)
    c.model(**c.batches[0]).loss.backward()
    next(c.model.parameters()).register_hook(lambda g: 2 * g)
    before = fingerprint(c.model, optimizer)
    gauss_newton_matrix.gauss_newton(c.objective())
    assert fingerprint(c.model, optimizer) == before
    with pytest.raises(UsageError, match="finite"):
        gauss_newton_matrix.gauss_newton(c.objective(), logits_fn=lambda m, b: m(**b).logits * float("inf"))
    assert fingerprint(c.model, optimizer) == before


class Infinite(nn.Module):
    """A finite value with an infinite derivative, as √ has at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x, labels):
        logits = self.weight.sqrt().expand(len(x), 2)
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


def logits_of(change):
    return lambda m, b: change(m(b["input_ids"], b["attention_mask"])["logits"])


@pytest.mark.parametrize(
    ("logits_fn", "message"),
    [
        (logits_of(lambda z: z[:, :1]), r"not a classifier: logits have shape \(6, 1\), expected .* two classes"),
        (logits_of(lambda z: z[:, None]), r"not a classifier: logits have shape \(6, 1, 3\)"),
        (logits_of(lambda z: z.tolist()), "not a classifier: a list where logits were expected; pass logits_fn"),
        (logits_of(lambda z: z.detach()), "depend on no trainable parameter"),
        (logits_of(lambda z: z / 0), "logits are infinite or NaN"),
    ],
)
def test_what_is_no_classifier(logits_fn, message):
    model, batch = tiny(3)
    with pytest.raises(UsageError, match=message):
        gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), logits_fn=logits_fn)


def test_no_logits_in_the_output():
    model, batch = tiny(3)
    model.forward = lambda **batch: {"loss": Classifier.forward(model, **batch)["loss"]}
    with pytest.raises(UsageError, match="not a classifier: no logits where logits were expected"):
        gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]))


def test_another_loss_is_refused():
    model, batch = tiny(3)

    def forward(input_ids, attention_mask, labels):
        logits = Classifier.forward(model, input_ids, attention_mask)["logits"]
        return {"logits": logits, "loss": 1.1 * F.cross_entropy(logits, labels)}

    model.forward = forward
    with pytest.raises(UsageError, match="only the cross-entropy's Gauss-Newton matrix"):
        gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]))
    found = gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), logits_fn=lambda m, b: m(**b)["logits"])
    assert found.examples == 6


def test_labels_of_several_classes_an_example_are_refused():
    model, batch = tiny(3)
    model.forward = lambda input_ids, attention_mask, labels: {
        "logits": (z := Classifier.forward(model, input_ids, attention_mask)["logits"]),
        "loss": F.binary_cross_entropy_with_logits(z, labels),
    }
    with pytest.raises(UsageError, match=r"one class an example: labels are torch.float64 of shape \(6, 3\)"):
        gauss_newton_matrix.gauss_newton(
            Objective(model, None, [batch | {"labels": torch.rand(6, 3, dtype=torch.float64)}])
        )


def test_infinite_gradients():
    batch = {"x": torch.ones(2, 1), "labels": torch.tensor([0, 1])}
    with pytest.raises(UsageError, match="gradient by weight isn't finite"):
        gauss_newton_matrix.gauss_newton(Objective(Infinite(), None, [batch]))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("attention.*", r"'attention.\*' fits no trainable parameter \(they are unused, embedding.weight, norm.weight"),
        (["head.*", "nothing"], "'nothing' fits no trainable parameter"),
        ([], "no parameters are chosen: give names or patterns"),
        (lambda name: False, "no parameters are chosen"),
    ],
)
def test_nothing_chosen(chosen, message):
    model, batch = tiny(2)
    with pytest.raises(UsageError, match=message):
        gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), chosen)


def test_frozen_parameters_cannot_be_chosen():
    model, batch = tiny(2)
    model.head.weight.requires_grad_(False)
    with pytest.raises(UsageError, match=r"'head.weight' fits no trainable parameter"):
        gauss_newton_matrix.gauss_newton(Objective(model, None, [batch]), "head.weight")
