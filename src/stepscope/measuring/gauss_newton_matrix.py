"""The Gauss-Newton matrix of a classifier's mean cross-entropy, kept as its square root.

A batch of ``b`` examples and ``C`` classes gives a matrix of rank at most ``b(C − 1)``. Its square root has ``C − 1``
rows an example. The matrix itself, with a number for each pair of parameters, is never computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective import IGNORED_LABEL, Objective, accumulator, interrupts, model_output

Logits = Callable[[nn.Module, Any], Tensor]
Chosen = str | Iterable[str] | Callable[[str], bool] | None
Masks = Mapping[str, Tensor]
"""``{parameter name: bool tensor of its number of coordinates}``."""

_BLOCK = 1 << 19
"""Numbers in a block in double precision: 4 MB, about a processor's cache."""


class GaussNewton:
    """A Gauss-Newton matrix ``RᵀR``, kept as its square root ``R``; the result of `gauss_newton`.

    Attributes:
        rows: ``{parameter name: its columns of each row}``, flat tensors of its number of coordinates. A row belongs to
            an example, and has the square root of the example's weight in the mean loss as a factor.
        examples: how many examples the mean loss is over.
    """

    def __init__(self, rows: Mapping[str, Sequence[Tensor]], examples: int) -> None:
        self.rows = {name: list(own) for name, own in rows.items()}
        self.examples = examples

    @property
    def sizes(self) -> dict[str, int]:
        """The number of coordinates of each parameter."""
        return {name: own[0].numel() for name, own in self.rows.items()}

    def of(self, names: Iterable[str]) -> GaussNewton:
        """The diagonal block of some of the parameters; the rows are shared, not copied."""
        return GaussNewton({name: self.rows[name] for name in names}, self.examples)

    def column_norms(self) -> dict[str, Tensor]:
        """The norm of each column of ``R``: the square root of the matrix's diagonal, in double precision.

        They are the same for every square root of the matrix.
        """
        norms: dict[str, list[Tensor]] = {name: [] for name in self.rows}
        for name, _, block in self._blocks():
            norms[name].append(torch.linalg.vector_norm(block, dim=0).cpu())
        return {name: torch.cat(own) if own else torch.zeros(0, device="cpu") for name, own in norms.items()}

    def spectral_norms(self, kept: Sequence[Masks | None]) -> list[float]:
        """The spectral norm for each choice of coordinates, as that of the Gram matrix ``RRᵀ``.

        Args:
            kept: for each choice, which coordinates stay; None for all of them.
        """
        count = len(next(iter(self.rows.values())))
        grams = [torch.zeros(count, count, dtype=torch.float64, device="cpu") for _ in kept]
        for name, place, block in self._blocks():
            for gram, masks in zip(grams, kept, strict=True):
                # Columns are set to zero, not left out: gathering the others takes as long as the product itself.
                restricted = block if masks is None else block * masks[name][place].to(block)
                gram += (restricted @ block.T).cpu()
        return [max(0.0, float(torch.linalg.eigvalsh(gram)[-1])) for gram in grams]

    def _blocks(self) -> Iterator[tuple[str, slice, Tensor]]:
        """All columns in blocks: the parameter, the slice of it, and these columns in double precision."""
        for name, rows in self.rows.items():
            width = max(1, _BLOCK // len(rows))
            for start in range(0, rows[0].numel(), width):
                place = slice(start, start + width)
                block = torch.stack([row[place] for row in rows])
                yield name, place, block.to(accumulator(block))


def gauss_newton(objective: Objective, parameters: Chosen = None, *, logits_fn: Logits | None = None) -> GaussNewton:
    """The square root of the Gauss-Newton matrix of a classifier's mean cross-entropy.

    With the logits ``z = z(x)`` and ``p = softmax(z)`` of an example, ``J = ∂z/∂x`` and ``SSᵀ = diag(p) − ppᵀ`` with
    ``C − 1`` columns, the example's rows are ``SᵀJ``. With two classes this is one row, ``√(p₀p₁)·(∇z₀ − ∇z₁)``, up to
    its sign. Labels don't enter.

    Each row costs a backward pass through its micro-batch, so micro-batches of one example are the cheapest. The rows
    take the memory of ``b(C − 1)`` times the chosen parameters.

    Args:
        objective: the classifier and its examples, with the weights that micro-batches have in its loss.
        parameters: as for `robust_smoothness`.
        logits_fn: as for `robust_smoothness`.

    Raises:
        UsageError: no parameter is chosen, the model is no classifier, its loss is another than the mean
            cross-entropy, or logits or gradients aren't finite.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204,
        appendix D.
    """
    objective.check_alone("a Gauss-Newton matrix")
    names = chosen_names(objective.parameters, parameters)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    examples = 0

    def evaluate(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits = _logits(model, batch, logits_fn)
        return logits, _valid(batch, logits)

    with objective.measuring():
        for weight, (logits, valid) in objective.evaluations(evaluate):
            count = int(valid.sum())
            for example in valid.nonzero().flatten().tolist():
                for row in _rows(objective, names, logits[example], math.sqrt(weight / count)):
                    for name, columns in row.items():
                        rows[name].append(columns)
            examples += count
            del logits  # one graph at a time
    return GaussNewton(rows, examples)


def chosen_names(parameters: Mapping[str, Any], chosen: Chosen) -> list[str]:
    """The names that are chosen, in the order of the parameters.

    Args:
        parameters: anything by the names to choose from.
        chosen: as for `robust_smoothness`.

    Raises:
        UsageError: none is, or a name or pattern fits none.

    Example:
        >>> chosen_names({"a.weight": 1, "a.bias": 2, "b.weight": 3}, ["b.*", "a.weight"])
        ['a.weight', 'b.weight']
    """
    if chosen is None:
        return list(parameters)
    known = ", ".join(list(parameters)[:3])
    if callable(chosen):
        names = [name for name in parameters if chosen(name)]
    else:
        patterns = [chosen] if isinstance(chosen, str) else list(chosen)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise UsageError(f"{pattern!r} fits no trainable parameter (they are {known}, …)")
        names = [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        raise UsageError(f"no parameters are chosen: give names or patterns (they are {known}, …)")
    return names


def softmax_root(logits: Tensor) -> Tensor:
    """``S`` with ``SSᵀ = diag(p) − ppᵀ``, ``p`` the softmax: the square root of the cross-entropy's Hessian.

    It is ``diag(√p)Q``. ``Q`` is an orthonormal basis of all that is orthogonal to ``√p``: a Householder reflection
    takes ``√p`` to an axis, and its column of that axis is left out. With the axis of the largest ``pᵢ`` nothing
    cancels.

    Args:
        logits: shape (classes,).

    Returns:
        Shape (classes, classes − 1).

    Example:
        >>> S = softmax_root(torch.tensor([0.0, 0.0], dtype=torch.float64))
        >>> (S @ S.T).round(decimals=9).tolist()  # p = (½, ½)
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    root = torch.exp(0.5 * torch.log_softmax(logits, 0))
    axis = int(root.argmax())
    reflected = torch.eye(len(root), dtype=root.dtype, device=root.device)
    v = root.clone()
    v[axis] += 1  # ‖v‖² = 2(1 + √p_axis)
    reflected -= torch.outer(v, v) / v[axis]
    columns = [column for column in range(len(root)) if column != axis]
    return root[:, None] * reflected[:, columns]


def _rows(objective: Objective, names: Sequence[str], logits: Tensor, scale: float) -> Iterator[dict[str, Tensor]]:
    """The rows of one example, by parameter, as flat tensors."""
    parameters = [objective.parameters[name] for name in names]
    for weights in softmax_root(logits.detach()).T * scale:
        interrupts.deliver()
        gradients = torch.autograd.grad(logits @ weights, parameters, retain_graph=True, allow_unused=True)
        row = {}
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            known = torch.zeros_like(parameter) if gradient is None else gradient
            dense = known.to_dense() if known.is_sparse else known
            row[name] = dense.detach().reshape(-1)
            if not bool(row[name].isfinite().all()):
                raise UsageError(f"the logits' gradient by {name} isn't finite: nothing can be measured there")
        yield row


def _logits(model: nn.Module, batch: Any, logits_fn: Logits | None) -> Tensor:
    """The logits of a micro-batch, checked to be those of a classifier."""
    loss = None
    if logits_fn is not None:
        logits: Any = logits_fn(model, batch)
    else:
        output = model_output(model, batch)
        fields = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
        logits, loss = fields.get("logits"), fields.get("loss")
    if not isinstance(logits, Tensor):
        output_type = "no logits" if logits is None else f"a {type(logits).__name__}"
        raise UsageError(f"not a classifier: {output_type} where logits were expected; pass logits_fn")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"not a classifier: logits have shape {tuple(logits.shape)}, "
            "expected (examples, classes), two classes or more"
        )
    if not logits.requires_grad:
        raise UsageError("the logits depend on no trainable parameter: are they detached, or under no_grad?")
    if not bool(logits.isfinite().all()):
        raise UsageError("logits are infinite or NaN at the present parameters: nothing can be measured there")
    _check_loss(loss, logits, batch)
    return logits


def _check_loss(loss: Any, logits: Tensor, batch: Any) -> None:
    """Refuses a model whose own loss isn't the mean cross-entropy, since the matrix is that of the cross-entropy.

    Class weights would change the matrix. Label smoothing would not, but the loss doesn't show which of both it has.
    """
    labels = _labels(batch)
    if not isinstance(loss, Tensor) or labels is None:
        return
    if labels.is_floating_point() or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"not a classifier of one class an example: labels are {labels.dtype} of shape {tuple(labels.shape)}"
        )
    own = float(loss.detach())
    expected = float(F.cross_entropy(logits.detach(), labels, ignore_index=IGNORED_LABEL))
    if not math.isclose(own, expected, rel_tol=1e-3, abs_tol=1e-3):
        raise UsageError(
            f"the model's loss is {own:.4g}, the mean cross-entropy of its logits {expected:.4g}: "
            "only the cross-entropy's Gauss-Newton matrix is measured; pass logits_fn to measure it all the same"
        )


def _valid(batch: Any, logits: Tensor) -> Tensor:
    """Which examples of a micro-batch are in its mean loss."""
    labels = _labels(batch)
    if labels is None or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        return torch.ones(len(logits), dtype=torch.bool, device="cpu")
    valid = labels != IGNORED_LABEL
    if not bool(valid.any()):
        raise UsageError("a micro-batch has no valid label: leave it out")
    return valid


def _labels(batch: Any) -> Tensor | None:
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return labels if isinstance(labels, Tensor) and labels.dim() > 0 else None
