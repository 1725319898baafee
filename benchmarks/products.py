"""Ways to compute ``dᵀHd`` for several directions: the paper's, and those of four packages, each by its own interface.

A way takes a workload and directions and gives a function that computes all the values. None of them knows how to run
a transformer's fused attention, which has no second derivative: the caller turns it off (`differentiable`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import Batch, Direction, Workload, loss

Values = Callable[[], list[float]]
Way = Callable[[Workload, Sequence[Direction]], Values]


def differentiable() -> AbstractContextManager[None]:
    """Attention as plain operations, which can be differentiated twice."""
    return sdpa_kernel(SDPBackend.MATH)


def vhp_loop(work: Workload, directions: Sequence[Direction]) -> Values:
    """The paper's way: for each direction and micro-batch the gradient with its graph, differentiated once more."""
    parameters = list(work.parameters.values())

    def one(direction: Direction) -> float:
        along, total = _ordered(work, direction), 0.0
        for batch in work.batches:
            gradient = torch.autograd.grad(loss(work.model, batch), parameters, create_graph=True)
            total += _dot(along, torch.autograd.grad(gradient, parameters, along))
        return total / len(work.batches)

    return lambda: [one(d) for d in directions]


def curvlinops(work: Workload, directions: Sequence[Direction]) -> Values:
    """One product with a matrix of all directions, as `HessianLinearOperator` offers it."""
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        _Loss(work.model),
        _Identity(),
        list(work.parameters.values()),
        [(dict(batch), batch["labels"]) for batch in work.batches],
        check_deterministic=False,
        batch_size_fn=lambda batch: len(batch["labels"]),
        num_data=sum(len(batch["labels"]) for batch in work.batches),
    )

    def values() -> list[float]:
        columns = [torch.stack(tensors, -1) for tensors in zip(*(_ordered(work, d) for d in directions), strict=True)]
        products = operator @ columns
        return (
            torch.stack([(c * p).flatten(0, -2).sum(0) for c, p in zip(columns, products, strict=True)]).sum(0).tolist()
        )

    return values


def pyhessian(work: Workload, directions: Sequence[Direction]) -> Values:
    """The product over a data loader that its power iteration uses."""
    from pyhessian import hessian

    data = [(_Inputs(batch), batch["labels"]) for batch in work.batches]
    device = next(work.model.parameters()).device
    of_model = hessian(_Loss(work.model), lambda value, _: value, dataloader=data, cuda=device.type == "cuda")

    def values() -> list[float]:
        try:
            return [of_model.dataloader_hv_product(_ordered(work, d))[0] for d in directions]
        finally:
            work.model.zero_grad()

    return values


def eigenthings(work: Workload, directions: Sequence[Direction]) -> Values:
    """The operator's product with one flat vector."""
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(work.model, work.batches, loss)

    def one(direction: Direction) -> float:
        flat = torch.cat([t.reshape(-1) for t in _ordered(work, direction)])
        return float(operator.matvec(flat) @ flat)

    return lambda: [one(d) for d in directions]


def backpack(work: Workload, directions: Sequence[Direction]) -> Values:
    """Its product without a stored Hessian, for each micro-batch."""
    from backpack.hessianfree.hvp import hessian_vector_product

    parameters = list(work.parameters.values())

    def one(direction: Direction) -> float:
        along = _ordered(work, direction)
        products = [hessian_vector_product(loss(work.model, batch), parameters, along) for batch in work.batches]
        return sum(_dot(along, product) for product in products) / len(products)

    return lambda: [one(d) for d in directions]


WAYS: dict[str, Way] = {
    "vhp loop": vhp_loop,
    "curvlinops": curvlinops,
    "PyHessian": pyhessian,
    "hessian-eigenthings": eigenthings,
    "BackPACK": backpack,
}
DISTRIBUTIONS = {
    "curvlinops": "curvlinops-for-pytorch",
    "PyHessian": "pyhessian",
    "hessian-eigenthings": "hessian-eigenthings",
    "BackPACK": "backpack-for-pytorch",
}


def reference(work: Workload, directions: Sequence[Direction]) -> list[float]:
    """The values by `vhp_loop` of a copy in float64."""
    batches = [{k: t.double() if t.is_floating_point() else t for k, t in batch.items()} for batch in work.batches]
    exact = Workload(copy.deepcopy(work.model).double(), batches, {})
    with differentiable():
        return vhp_loop(exact, [{k: t.double() for k, t in d.items()} for d in directions])()


def negative_directions(work: Workload, count: int, depth: int = 6) -> dict[str, Direction]:
    """Directions of negative curvature: the lowest Ritz vector of a few products with a random vector, each.

    Args:
        work: the model and its batches.
        count: how many directions.
        depth: products for each.

    Raises:
        RuntimeError: none was found, as where the loss is convex.
    """
    return {f"negative {i}": _lowest_ritz_vector(work, i, depth) for i in range(count)}


def _lowest_ritz_vector(work: Workload, seed: int, depth: int) -> Direction:
    parameters = list(work.parameters.values())
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(work.size, generator=generator).to(parameters[0].device)
    basis: list[Tensor] = []
    products: list[Tensor] = []
    with differentiable():
        for _ in range(depth):
            for _ in range(2):  # once is not enough in float32
                for b in basis:
                    flat = flat - (b @ flat) * b
            basis.append(flat / flat.norm())
            flat = _product(work, basis[-1])
            products.append(flat)
    q, hq = torch.stack(basis, 1).double(), torch.stack(products, 1).double()
    values, vectors = torch.linalg.eigh((q.T @ hq + hq.T @ q) / 2)
    if values[0] >= 0:
        raise RuntimeError("no direction of negative curvature was found")
    # As long as a usual step, so that every way works with usual numbers.
    return _unflattened(work, (1e-2 * q @ vectors[:, 0]).to(parameters[0].dtype))


def _product(work: Workload, flat: Tensor) -> Tensor:
    parameters = list(work.parameters.values())
    along = list(_unflattened(work, flat).values())
    total = torch.zeros_like(flat)
    for batch in work.batches:
        gradient = torch.autograd.grad(loss(work.model, batch), parameters, create_graph=True)
        product = torch.autograd.grad(gradient, parameters, along)
        total += torch.cat([t.reshape(-1) for t in product]) / len(work.batches)
    return total


def _unflattened(work: Workload, flat: Tensor) -> Direction:
    sizes = [p.numel() for p in work.parameters.values()]
    return {k: t.view_as(p) for (k, p), t in zip(work.parameters.items(), flat.split(sizes), strict=True)}


def _ordered(work: Workload, direction: Direction) -> list[Tensor]:
    return [direction[name] for name in work.parameters]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum(torch.sum(a * b) for a, b in zip(left, right, strict=True)))


class _Loss(nn.Module):
    """A module whose output is the loss, for packages that want model and loss apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return loss(self.model, batch)


class _Identity(nn.Module):
    """The loss function of what is a loss already."""

    reduction = "mean"

    def forward(self, value: Tensor, labels: Any) -> Tensor:  # noqa: ARG002
        return value


class _Inputs(dict[str, Tensor]):
    """A batch with the two methods of a tensor that PyHessian calls."""

    def size(self, _: int) -> int:
        return len(self["labels"])

    def to(self, _: Any) -> _Inputs:
        return self
