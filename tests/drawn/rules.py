"""Optimizers as people write them by hand: state in every place but where `torch.optim.Optimizer` keeps it."""

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

MODULE_STATE: dict[str, Any] = {}


class Rule(Optimizer):
    """Steps each parameter by `one`; `prepare` is called once, when the parameters are known."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})
        self.prepare()

    def prepare(self) -> None: ...

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        raise NotImplementedError

    def held(self) -> Iterator[nn.Parameter]:
        return (p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.one(parameter, group["lr"])


class RateOnParameter(Rule):
    """A parameter says itself by how much its rate is multiplied."""

    def prepare(self) -> None:
        for index, parameter in enumerate(self.held()):
            parameter.lr_mul = 1.0 + index

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        parameter.add_(parameter.grad, alpha=-lr * getattr(parameter, "lr_mul", 1.0))


class MomentumOnParameter(Rule):
    def one(self, parameter: nn.Parameter, lr: float) -> None:
        if not hasattr(parameter, "momentum"):
            parameter.momentum = torch.zeros_like(parameter)
        parameter.momentum.mul_(0.9).add_(parameter.grad)
        parameter.add_(parameter.momentum, alpha=-lr)


class ById(Rule):
    def prepare(self) -> None:
        self.momentum: dict[int, Tensor] = {}

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        momentum = self.momentum.setdefault(id(parameter), torch.zeros_like(parameter))
        momentum.mul_(0.9).add_(parameter.grad)
        parameter.add_(momentum, alpha=-lr)


class StateById(Rule):
    def one(self, parameter: nn.Parameter, lr: float) -> None:
        momentum = self.state[id(parameter)].setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(0.9).add_(parameter.grad)
        parameter.add_(momentum, alpha=-lr)


class Weak(Rule):
    def prepare(self) -> None:
        self.momentum = WeakIdKeyDictionary()

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        if parameter not in self.momentum:
            self.momentum[parameter] = torch.zeros_like(parameter)
        self.momentum[parameter].mul_(0.9).add_(parameter.grad)
        parameter.add_(self.momentum[parameter], alpha=-lr)


class _Slot:
    """An object that can be weakly referred to."""

    def __init__(self) -> None:
        self.value: Tensor | None = None


class WeakObjects(Rule):
    """Momentum in objects of a plain weak dictionary, which something else keeps alive."""

    def prepare(self) -> None:
        self.slots = [_Slot() for _ in self.held()]
        self.momentum = weakref.WeakValueDictionary(enumerate(self.slots))
        self.numbers = {id(p): index for index, p in enumerate(self.held())}

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        slot = self.momentum[self.numbers[id(parameter)]]
        slot.value = parameter.grad.clone() if slot.value is None else 0.9 * slot.value + parameter.grad
        parameter.add_(slot.value, alpha=-lr)


class Closure(Rule):
    """Momentum in the closure of a function, in float64."""

    def prepare(self) -> None:
        momenta: dict[int, Tensor] = {}

        def moved(index: int, parameter: nn.Parameter) -> Tensor:
            momentum = momenta.setdefault(index, torch.zeros_like(parameter, dtype=torch.float64))
            momentum.mul_(0.9).add_(parameter.grad)
            return momentum.to(parameter.dtype)

        self.moved = moved

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for index, parameter in enumerate(self.held()):
            if parameter.grad is not None:
                parameter.add_(self.moved(index, parameter), alpha=-self.param_groups[0]["lr"])


class OnClass(Rule):
    """Counts its steps on the class."""

    steps = 0

    def prepare(self) -> None:
        type(self).steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        type(self).steps += 1
        super().step()

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        parameter.add_(parameter.grad, alpha=-lr / type(self).steps)


class OfModule(Rule):
    """Counts its steps, and keeps its momentum, in a global of its module."""

    def prepare(self) -> None:
        MODULE_STATE.clear()
        MODULE_STATE.update(steps=0, momentum=[torch.zeros_like(p) for p in self.held()])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        MODULE_STATE["steps"] += 1
        for parameter, momentum in zip(self.held(), MODULE_STATE["momentum"], strict=True):
            if parameter.grad is not None:
                momentum.mul_(0.9).add_(parameter.grad)
                parameter.add_(momentum, alpha=-self.param_groups[0]["lr"] / MODULE_STATE["steps"] ** 0.5)


class Views(Rule):
    """Writes to views of the parameters that it made at the start."""

    def prepare(self) -> None:
        self.views = [p.data.view(-1) for p in self.held()]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for view, parameter in zip(self.views, self.held(), strict=True):
            if parameter.grad is not None:
                view.add_(parameter.grad.view(-1).to(view.dtype), alpha=-self.param_groups[0]["lr"])


class Flat(Rule):
    """Parameters are views of one buffer, which the step updates, with a momentum as flat."""

    def prepare(self) -> None:
        self.flat = torch.cat([p.data.flatten() for p in self.held()])
        self.momentum = torch.zeros_like(self.flat)
        start = 0
        for parameter in self.held():
            parameter.data = self.flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.held()]
        self.momentum.mul_(0.9).add_(torch.cat([part.flatten() for part in parts]).to(self.flat.dtype))
        self.flat.add_(self.momentum, alpha=-self.param_groups[0]["lr"])


class HalfState(Rule):
    """Momentum in bfloat16."""

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter, dtype=torch.bfloat16))
        momentum.mul_(0.9).add_(parameter.grad.to(momentum.dtype))
        parameter.add_(momentum.to(parameter.dtype), alpha=-lr)


class MasterCopy(Rule):
    """Weights in float64 in the state; the parameter is a rounded copy."""

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        master = self.state[parameter].setdefault("master", parameter.detach().double())
        master.add_(parameter.grad, alpha=-lr)
        parameter.copy_(master)


class DataReplaced(Rule):
    """Gives the parameter new memory at each step."""

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        parameter.data = parameter.data - lr * parameter.grad


class Options(Rule):
    """Options by parameter, in a dictionary that is keyed by the parameter itself."""

    def prepare(self) -> None:
        self.options = {p: {"lr": 0.02 * (1 + index), "decay": index % 2} for index, p in enumerate(self.held())}

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        options = self.options[parameter]
        parameter.mul_(1 - 0.01 * options["decay"]).add_(parameter.grad, alpha=-options["lr"])


class Noisy(Rule):
    """Adds random numbers to the gradient, as Langevin dynamics does."""

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        parameter.add_(parameter.grad + 0.1 * torch.randn_like(parameter), alpha=-lr)


class OwnNoise(Rule):
    """As `Noisy`, from a generator of its own."""

    def prepare(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        noise = torch.rand(parameter.shape, generator=self.generator).to(parameter.dtype)
        parameter.add_(parameter.grad + 0.1 * noise, alpha=-lr)


class Averaged(Rule):
    """Keeps a running average of the weights, and pulls the weights to it: slow weights."""

    def one(self, parameter: nn.Parameter, lr: float) -> None:
        state = self.state[parameter]
        slow = state.setdefault("slow", parameter.detach().clone())
        state["count"] = state.get("count", 0) + 1
        parameter.add_(parameter.grad, alpha=-lr)
        if state["count"] % 2 == 0:
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)


def _clipping_step(optimizer: Optimizer) -> Optimizer:
    """`step` of the object clips the gradients, then calls the original."""
    original = optimizer.step

    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)
        return original(*args, **kwargs)

    optimizer.step = types.MethodType(step, optimizer)
    return optimizer


def _decaying_step(optimizer: Optimizer) -> Optimizer:
    """`step` of the object calls the original, then shrinks the weights."""
    original = optimizer.step

    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.99)
        return result

    optimizer.step = types.MethodType(step, optimizer)
    return optimizer


RULES: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "lr_mul on parameters": RateOnParameter,
    "momentum on parameters": MomentumOnParameter,
    "momentum by id": ById,
    "state by id": StateById,
    "momentum in a weak dictionary": Weak,
    "momentum in weak objects": WeakObjects,
    "momentum in a closure": Closure,
    "counter on its class": OnClass,
    "state of its module": OfModule,
    "views": Views,
    "one flat buffer": Flat,
    "momentum in bfloat16": HalfState,
    "float64 master copy": MasterCopy,
    "p.data replaced": DataReplaced,
    "options by parameter": Options,
    "random noise": Noisy,
    "noise of its own": OwnNoise,
    "slow weights": Averaged,
    "step replaced: clips first": lambda parameters: _clipping_step(torch.optim.SGD(parameters, lr=0.5, momentum=0.9)),
    "step replaced: decays after": lambda parameters: _decaying_step(torch.optim.SGD(parameters, lr=0.1)),
}
