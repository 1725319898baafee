"""Optimizers of the paper that torch lacks, and the paper's settings of those that it has.

All are ordinary `torch.optim.Optimizer`s. Sign and normalized rules keep their momentum as an exponential moving
average from zero, as Adam does; the scale of the momentum has no influence on their updates. Weight decay is
decoupled, as in AdamW.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import clamp_, fraction_threshold
from stepscope.errors import UsageError

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class _Rule(Optimizer):
    """An optimizer whose closure, if it is given one, is evaluated before the step."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; `closure`, if given, reevaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._make_step()
        return loss

    @abstractmethod
    def _make_step(self) -> None:
        """Moves the parameters; called without gradients being recorded."""


class _MomentumRule(_Rule):
    """One momentum buffer, decoupled weight decay, and an update that a subclass makes of the momentum."""

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if defaults["lr"] < 0:
            raise UsageError(f"lr is {defaults['lr']}: a learning rate is ≥ 0")
        if defaults["weight_decay"] < 0:
            raise UsageError(f"weight_decay is {defaults['weight_decay']}: it must be ≥ 0")
        for name in ("momentum", "betas"):
            for beta in _as_tuple(defaults.get(name, 0.0)):
                if not 0 <= beta < 1:
                    raise UsageError(f"{name} is {defaults[name]}: each must lie in [0, 1)")
        super().__init__(params, defaults)

    def _make_step(self) -> None:
        work = [(group, *self._gathered(group)) for group in self.param_groups]
        self._to_updates([update for _, _, updates in work for update in updates])
        for group, parameters, updates in work:
            if not parameters:
                continue
            lr, decay = group["lr"], group["weight_decay"]
            if group["foreach"]:
                if decay:
                    torch._foreach_mul_(parameters, 1 - lr * decay)
                torch._foreach_add_(parameters, updates, alpha=-lr)
            else:
                for parameter, update in zip(parameters, updates, strict=True):
                    if decay:
                        parameter.mul_(1 - lr * decay)
                    parameter.add_(update, alpha=-lr)

    def _gathered(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that have a gradient, and the (new) momentum that each one's update is made of."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        updates = []
        for parameter in parameters:
            if parameter.grad.is_sparse:
                raise UsageError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            gradient = -parameter.grad if group["maximize"] else parameter.grad
            updates.append(self._momentum(state, gradient, group))
        return parameters, updates

    def _momentum(self, state: dict[str, Tensor], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Advances the buffers, and gives the momentum that the update is made of, as a new tensor."""
        beta, exp_avg = group["momentum"], state["exp_avg"]
        exp_avg.mul_(beta).add_(gradient, alpha=1 - beta)
        return exp_avg.clone()

    @abstractmethod
    def _to_updates(self, momenta: list[Tensor]) -> None:
        """Turns the momenta of the whole model into updates, in place; the step subtracts ``lr`` times those."""


class _AveragedMomentumRule(_MomentumRule):
    """Those whose momentum is ``m ← βm + (1−β)g``, with one ``β``."""

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool = False,
    ) -> None:
        super().__init__(params, _defaults(lr, weight_decay, maximize, foreach, momentum=momentum))


class SignSGD(_AveragedMomentumRule):
    """``x ← x − lr·sign(m)`` with ``m ← βm + (1−β)g``: SGD clipped at a fraction of 100%.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, the length of the step in each coordinate.
        momentum: ``β``.
        weight_decay: decoupled, ``x ← (1 − lr·weight_decay)·x`` before the step.
        maximize: ascend instead.
        foreach: use multi-tensor operations.

    Example:
        >>> w = nn.Parameter(torch.zeros(3)); w.grad = torch.tensor([2.0, -0.1, 0.0])
        >>> SignSGD([w], lr=1.0).step(); w.tolist()
        [-1.0, 1.0, 0.0]
    """

    def _to_updates(self, momenta: list[Tensor]) -> None:
        for momentum in momenta:
            momentum.sign_()


class NormalizedSGD(_AveragedMomentumRule):
    """``x ← x − lr·√n·m/‖m‖`` for each tensor of ``n`` coordinates: its momentum scaled to Frobenius norm ``√n``.

    It separates scaling by weight matrix from scaling by coordinate (arXiv 2306.00204, §5). A tensor whose momentum is
    zero stays.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, the root mean square of the step's coordinates in each tensor.
        momentum: ``β`` of ``m ← βm + (1−β)g``.
        weight_decay: decoupled, ``x ← (1 − lr·weight_decay)·x`` before the step.
        maximize: ascend instead.
        foreach: use multi-tensor operations.

    Example:
        >>> w = nn.Parameter(torch.zeros(4)); w.grad = torch.tensor([3.0, 4.0, 0.0, 0.0])
        >>> NormalizedSGD([w], lr=1.0).step(); w.norm().item()
        2.0
    """

    def _to_updates(self, momenta: list[Tensor]) -> None:
        for momentum in momenta:
            norm = torch.linalg.vector_norm(momentum)
            momentum.mul_(torch.where(norm > 0, momentum.numel() ** 0.5 / norm, 0.0))


class Lion(_MomentumRule):
    """Lion (Chen et al., 2023, arXiv 2302.06675): ``x ← x − lr·sign(β₁m + (1−β₁)g)``, then ``m ← β₂m + (1−β₂)g``.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, the length of the step in each coordinate.
        betas: ``(β₁, β₂)``.
        weight_decay: decoupled, ``x ← (1 − lr·weight_decay)·x`` before the step.
        clip_fraction: the variant in the published code of arXiv 2306.00204: the largest fraction of ``β₁m + (1−β₁)g``
            over the whole model is clipped *instead of* taking its sign. ``None`` is Lion.
        maximize: ascend instead.
        foreach: use multi-tensor operations.

    Example:
        >>> w = nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([0.3, -7.0])
        >>> Lion([w], lr=1.0).step(); w.tolist()
        [-1.0, 1.0]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        clip_fraction: float | None = None,
        maximize: bool = False,
        foreach: bool = False,
    ) -> None:
        _check_fraction(clip_fraction or 0.0)
        settings = _defaults(lr, weight_decay, maximize, foreach, betas=betas, clip_fraction=clip_fraction)
        super().__init__(params, settings)

    def _momentum(self, state: dict[str, Tensor], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        exp_avg = state["exp_avg"]
        update = exp_avg.clone().mul_(beta1).add_(gradient, alpha=1 - beta1)
        exp_avg.mul_(beta2).add_(gradient, alpha=1 - beta2)
        return update

    def _to_updates(self, momenta: list[Tensor]) -> None:
        # Of the whole model, and so no setting of a group; `defaults` outlives copying and pickling.
        fraction = self.defaults["clip_fraction"]
        if fraction is not None:
            clamp_(momenta, fraction_threshold(momenta, fraction))
            return
        for momentum in momenta:
            momentum.sign_()


class ACClip(_MomentumRule):
    """ACClip (Zhang et al., 2020, arXiv 1912.03194): each coordinate of the momentum is clipped to its own threshold.

    ``m ← β₁m + (1−β₁)g``, ``τ ← β₂τ + (1−β₂)|g|``, ``x ← x − lr·min(τ/(|m|+ε), 1)·m``: their Algorithm 2 with α = 1.
    The thresholds are averages of each coordinate's own past, where `stepscope.clip_optimizer` takes one threshold
    from all coordinates of the step.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate.
        betas: ``(β₁, β₂)``.
        eps: ``ε``.
        weight_decay: decoupled, ``x ← (1 − lr·weight_decay)·x`` before the step.
        maximize: ascend instead.
        foreach: use multi-tensor operations.

    Example:
        >>> w = nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([1.0, -4.0])
        >>> ACClip([w], lr=1.0, betas=(0.5, 0.75), eps=0.0).step(); w.tolist()
        [-0.25, 1.0]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool = False,
    ) -> None:
        if eps < 0:
            raise UsageError(f"eps is {eps}: it must be ≥ 0")
        super().__init__(params, _defaults(lr, weight_decay, maximize, foreach, betas=betas, eps=eps))

    def _momentum(self, state: dict[str, Tensor], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        momentum = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        threshold = state.setdefault("threshold", torch.zeros_like(momentum))
        threshold.mul_(beta2).add_(gradient.abs(), alpha=1 - beta2)
        # Where both are 0 the update is, whatever the quotient.
        ratio = threshold / momentum.abs().add_(group["eps"])
        return momentum * ratio.nan_to_num_(nan=0.0).clamp_(max=1.0)

    def _to_updates(self, momenta: list[Tensor]) -> None:
        """They are the updates already."""


class Adafactor(_Rule):
    """Adafactor (Shazeer and Stern, 2018, arXiv 1804.04235) with relative steps and parameter scaling, as in the paper.

    ``ρ = min(lr, 1/√t)``, ``α = max(ε₂, RMS(x))·ρ``, ``u = g/√v̂`` with the second moment ``v̂`` factored for matrices
    and its decay ``1 − t^−0.8``, and ``x ← x − α·u / max(1, RMS(u)/d)``. No first moment.

    Without clipping it agrees with ``torch.optim.Adafactor(eps=(1e-15, 1e-3))``. It exists for
    `clip_fraction`, which clips the numerator ``g`` alone while the second moment sees all of it, as in the
    published code of arXiv 2306.00204. A hook from outside an optimizer can't do that.

    Args:
        params: parameters, named parameters or groups.
        lr: upper end of the relative step ``ρ``.
        eps: ``(ε₁, ε₂)``: added to ``g²``, and the smallest parameter scale.
        d: clipping threshold of the update's root mean square.
        beta2_decay: exponent of the second moment's decay.
        clip_fraction: the fraction of all gradient coordinates that is clipped in the numerator; 0 for none.

    Example:
        >>> w = nn.Parameter(torch.ones(2, 2)); w.grad = torch.eye(2)
        >>> Adafactor([w]).step(); bool((w < 1).any())
        True
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        eps: tuple[float, float] = (1e-30, 1e-3),
        d: float = 1.0,
        beta2_decay: float = -0.8,
        clip_fraction: float = 0.0,
    ) -> None:
        if lr < 0:
            raise UsageError(f"lr is {lr}: a learning rate is ≥ 0")
        _check_fraction(clip_fraction)
        settings = {"lr": lr, "eps": eps, "d": d, "beta2_decay": beta2_decay, "clip_fraction": clip_fraction}
        super().__init__(params, settings)

    def _make_step(self) -> None:
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        threshold = fraction_threshold([p.grad for p, _ in pairs], self.defaults["clip_fraction"])
        for parameter, group in pairs:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            eps1, eps2 = group["eps"]
            decay = state["step"] ** group["beta2_decay"]
            update = parameter.grad.clone()
            clamp_([update], threshold)
            for moment in _second_moments(state, parameter.grad.square().add_(eps1), decay):
                update.div_(moment.sqrt())
            update.div_(max(1.0, _rms(update) / group["d"]))
            rho = min(group["lr"], state["step"] ** -0.5)
            parameter.add_(update, alpha=-rho * max(eps2, _rms(parameter)))


def _second_moments(state: dict[str, Any], squares: Tensor, decay: float) -> list[Tensor]:
    """``v ← (1−decay)·v + decay·squares`` as factors that broadcast: for matrices, row and column means.

    Factors, since their product would underflow in float32 where gradients are zero and only ``ε₁`` is left.
    """
    if squares.dim() < 2:
        return [_averaged(state, "variance", squares, decay)]
    rows = _averaged(state, "row_var", squares.mean(-1, keepdim=True), decay)
    columns = _averaged(state, "col_var", squares.mean(-2, keepdim=True), decay)
    return [rows / rows.mean(-2, keepdim=True), columns]


def _averaged(state: dict[str, Any], name: str, new: Tensor, decay: float) -> Tensor:
    """Advances a moving average that is kept in the state."""
    kept: Tensor = state.setdefault(name, torch.zeros_like(new))
    return kept.lerp_(new, decay)


def _rms(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5)


def muon_with_adamw(lr: float = 2e-2, adamw_lr: float = 1e-3) -> Callable[[Sequence[nn.Parameter]], list[Optimizer]]:
    """A factory of Muon for matrices, and AdamW for the rest, which Muon has no rule for.

    Args:
        lr: learning rate of Muon.
        adamw_lr: learning rate of AdamW.

    Example:
        >>> optimizers = muon_with_adamw()([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
        >>> [type(optimizer).__name__ for optimizer in optimizers]
        ['Muon', 'AdamW']
    """

    def build(parameters: Sequence[nn.Parameter]) -> list[Optimizer]:
        matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        rest = [parameter for parameter in parameters if parameter.dim() != 2]
        muon: list[Optimizer] = [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0)] if matrices else []
        return muon + ([torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.0)] if rest else [])

    return build


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise UsageError(f"clip_fraction is {fraction}: it is the part of all coordinates to clip, between 0 and 1")


def _as_tuple(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _defaults(lr: float, weight_decay: float, maximize: bool, foreach: bool, **others: Any) -> dict[str, Any]:
    return {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach, **others}
