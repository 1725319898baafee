"""The optimizers of the table: torch's, other packages' where they are installed, and rules written by hand."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drawn import rules


@dataclass(frozen=True)
class Spec:
    """An optimizer of the table.

    Attributes:
        build: ``parameters -> optimizer``.
        matrices: whether it takes matrices alone.
        sparse: whether it takes sparse gradients (only, or too).
        closure: whether its step needs one.
        curved: whether it needs gradients with their graph.
    """

    build: Callable[[list[nn.Parameter]], Any]
    matrices: bool = False
    sparse: bool = False
    closure: bool = False
    curved: bool = False


def _torch() -> dict[str, Spec]:
    optim = torch.optim
    settings: dict[str, dict[str, Any]] = {
        "ASGD": {"lr": 0.1, "t0": 2.0},
        "Adadelta": {"lr": 1.0, "eps": 1e-3},
        "Adafactor": {"lr": 1e-2},
        "Adagrad": {"lr": 1e-2},
        "Adam": {"lr": 1e-2},
        "Adam amsgrad": {"lr": 1e-2, "amsgrad": True, "weight_decay": 0.1},
        "Adam fused": {"lr": 1e-2, "fused": True},
        "Adam rate in a tensor": {"lr": torch.tensor(1e-2)},
        "AdamW": {"lr": 1e-2},
        "AdamW one by one": {"lr": 1e-2, "foreach": False},
        "Adamax": {"lr": 1e-2},
        "NAdam": {"lr": 1e-2},
        "RAdam": {"lr": 1e-1},
        "RMSprop": {"lr": 1e-2, "momentum": 0.9, "centered": True},
        "Rprop": {"lr": 1e-2},
        "SGD": {"lr": 0.1},
        "SGD nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "SGD fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
    }

    def maker(name: str) -> Callable[[list[nn.Parameter]], Any]:
        def make(parameters: list[nn.Parameter]) -> Any:
            given = {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in settings[name].items()}
            return getattr(optim, name.split()[0])(parameters, **given)

        return make

    plain = {name: Spec(maker(name), sparse=name in ("SGD", "Adagrad")) for name in settings}
    return plain | {
        "Muon": Spec(lambda p: optim.Muon(p, lr=1e-1), matrices=True),
        "SparseAdam": Spec(lambda p: optim.SparseAdam(p, lr=1e-1), sparse=True),
        "LBFGS": Spec(lambda p: optim.LBFGS(p, lr=1e-1, max_iter=2), closure=True),
        "SGD in two groups": Spec(_two_groups),
        "SGD and AdamW in one": Spec(Combined),
    }


class Combined(torch.optim.Optimizer):
    """Two optimizers that share the parameters out, as one."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        halves = [(torch.optim.SGD, parameters[::2], 0.1), (torch.optim.AdamW, parameters[1::2], 1e-2)]
        self.optimizers = [kind(half, lr=lr) for kind, half, lr in halves if half]
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> Any:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state_dict: Any) -> None:
        for optimizer, state in zip(self.optimizers, state_dict, strict=True):
            optimizer.load_state_dict(state)


def _two_groups(parameters: list[nn.Parameter]) -> Any:
    groups = [{"params": parameters[::2], "lr": 0.1}, {"params": parameters[1::2], "lr": 0.02, "weight_decay": 0.1}]
    return torch.optim.SGD([group for group in groups if group["params"]], momentum=0.9)


_RATES = {
    "adabelief": 1e-2, "adan": 1e-2, "adamp": 1e-2, "adopt": 1e-2, "ademamix": 1e-2, "amos": 1e-1, "apollo": 1e-2,
    "came": 1e-2, "dadaptadam": 1.0, "emonavi": 1e-2, "fromage": 1e-2, "galore": 1e-2, "grokfastadamw": 1e-2,
    "kron": 1e-2, "lamb": 1e-2, "lars": 1e-1, "lion": 1e-2, "madgrad": 1e-2, "mars": 1e-2, "nero": 1e-2,
    "novograd": 1e-2, "pid": 1e-1, "prodigy": 1.0, "qhadam": 1e-2, "ranger": 1e-1, "scion": 1e-2, "sgdp": 1e-1,
    "shampoo": 1e-1, "sm3": 1e-2, "soap": 1e-2, "splus": 1e-1, "stableadamw": 1e-2, "stablespam": 1e-2, "swats": 1e-2,
    "tiger": 1e-2, "yogi": 1e-2, "schedulefreeadamw": 1e-2, "adafactor": 1e-2, "vsgd": 1e-1, "scalableshampoo": 1e-2,
}  # fmt: skip


def _pytorch_optimizer() -> dict[str, Spec]:
    import pytorch_optimizer as package

    def maker(name: str, **settings: Any) -> Callable[[list[nn.Parameter]], Any]:
        return lambda parameters: package.load_optimizer(name)(parameters, **settings)

    def muon(parameters: list[nn.Parameter]) -> Any:
        return package.load_optimizer("muon")([{"params": parameters, "use_muon": True}], lr=1e-1)

    adamw = torch.optim.AdamW
    found = {f"pytorch_optimizer {name}": Spec(maker(name, lr=lr)) for name, lr in _RATES.items()}
    return found | {
        "pytorch_optimizer muon": Spec(muon, matrices=True),
        "pytorch_optimizer ranger21": Spec(maker("ranger21", lr=1e-2, num_iterations=6)),
        "pytorch_optimizer adahessian": Spec(maker("adahessian", lr=1e-2), curved=True),
        "pytorch_optimizer sophiah": Spec(maker("sophiah", lr=1e-2, update_period=2), curved=True),
        "pytorch_optimizer Lookahead": Spec(lambda p: package.Lookahead(adamw(p, lr=1e-2), k=2)),
        "pytorch_optimizer ScheduleFreeWrapper": Spec(
            lambda p: _training(package.ScheduleFreeWrapper(adamw(p, lr=1e-2)))
        ),
        "pytorch_optimizer TRAC": Spec(lambda p: package.TRAC(adamw(p, lr=1e-2))),
        "pytorch_optimizer OrthoGrad": Spec(lambda p: package.OrthoGrad(adamw(p, lr=1e-2))),
    }


def _training(optimizer: Any) -> Any:
    optimizer.train()
    return optimizer


def _schedulefree() -> dict[str, Spec]:
    import schedulefree

    return {
        "schedulefree AdamW": Spec(lambda p: _training(schedulefree.AdamWScheduleFree(p, lr=1e-2))),
        "schedulefree SGD": Spec(lambda p: _training(schedulefree.SGDScheduleFree(p, lr=0.1))),
        "schedulefree RAdam": Spec(lambda p: _training(schedulefree.RAdamScheduleFree(p, lr=1e-1))),
    }


def _lion() -> dict[str, Spec]:
    import lion_pytorch

    return {"lion_pytorch Lion": Spec(lambda p: lion_pytorch.Lion(p, lr=1e-2, weight_decay=0.1))}


_PACKAGES: dict[str, Callable[[], dict[str, Spec]]] = {
    "pytorch_optimizer": _pytorch_optimizer,
    "schedulefree": _schedulefree,
    "lion_pytorch": _lion,
}

MISSING = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
"""Packages that aren't installed: their optimizers aren't drawn."""


def _all() -> dict[str, Spec]:
    found = _torch() | {f"rule: {name}": Spec(build) for name, build in rules.RULES.items()}
    for name, make in _PACKAGES.items():
        if name not in MISSING:
            found |= make()
    return found


OPTIMIZERS = _all()
