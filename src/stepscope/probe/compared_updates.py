"""The updates that are compared at a step: the optimizer's own, its own of clipped gradients, and those of others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.clipping import check_fraction, clamp_, fraction_threshold, name_of, parts_of
from stepscope.directions import Factory, PseudoUpdates, decay_part, own_update
from stepscope.errors import UsageError, said
from stepscope.objective import Direction, Ranks, dtensors, vectors
from stepscope.probe import gradient_scales
from stepscope.probe.alike import check_gradients

_LOGGER = logging.getLogger("stepscope")

DEFAULT_OTHERS: dict[str, Factory] = {
    # Not fused: torch's kernel fails where a parameter gets its first gradient later than others.
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, dampening=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-3, fused=_is_fusible(ps)),
}


def _is_fusible(parameters: Sequence[Tensor]) -> bool:
    """Whether one kernel can make a whole step of theirs: a third of the time that operation by operation takes."""
    return all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() and not dtensors.is_spread(p) for p in parameters
    )


class NoUpdateError(UsageError):
    """There is nothing to compare at this step: no gradients, or a learning rate of 0."""


class ComparedUpdates:
    """An optimizer in training, and others that follow the same gradients on the same parameters.

    Args:
        optimizer: the one that trains, or several whose steps together are one. Of a model's parameters, those that
            they hold are compared on.
        others: ``{label: factory}``; ``None`` for `DEFAULT_OTHERS` and the optimizer's own with clipped gradients.
        clip_fractions: the fractions of the gradients' coordinates that are clipped there, one update for each;
            ``None`` for the paper's (10% for SGD, 50% for others), and none where others are given.
        logger: for warnings.

    Attributes:
        name: of the optimizer that trains.
        own: the label of the optimizer's own update.
        followed: how many steps in a row the others have followed.

    Raises:
        UsageError: a label is the own one, or a fraction isn't in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        others: Mapping[str, Factory] | None = None,
        clip_fractions: Sequence[float] | None = None,
        logger: logging.Logger = _LOGGER,
    ) -> None:
        self._logger = logger
        if others is not None and not isinstance(others, Mapping):
            raise UsageError(
                f"directions is a {type(others).__name__}: give {{label: factory}}, as in {{'adam': torch.optim.Adam}}"
            )
        self._optimizers = parts_of(optimizer)
        self.name = name_of(self._optimizers)
        self.own = f"own {self.name}"
        self.others = dict(DEFAULT_OTHERS if others is None else others)
        if self.own in self.others:
            raise UsageError(f"direction {self.own!r} is the optimizer's own: give another label")
        if clip_fractions is None:
            # The paper's fractions: 10% for SGD, 50% for adaptive ones.
            clip_fractions = () if others is not None else (0.1,) if "sgd" in self.own.lower() else (0.5,)
        for fraction in clip_fractions:
            check_fraction(fraction)
        self._clips = {f"{self.own} clip {100 * fraction:g}%": fraction for fraction in clip_fractions if fraction}
        if taken := set(self._clips) & set(self.others):
            raise UsageError(f"direction {min(taken)!r} is the optimizer's own, clipped: give another label")
        self.followed = 0
        self._followers: PseudoUpdates | None = None
        self._followed_on: set[tuple[int, torch.dtype]] = set()
        self._warned: set[str] = set()

    @property
    def of_the_optimizer(self) -> set[str]:
        """The labels of the optimizer's own update and of those of its clipped gradients."""
        return {self.own, *self._clips}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, as they are now."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @property
    def count(self) -> int:
        """How many updates are compared."""
        return 1 + len(self._clips) + len(self.others)

    def held(self, trainable: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those of the parameters that the optimizer holds.

        Raises:
            UsageError: it holds none of them.
        """
        ids = {id(p) for group in self.groups for p in group["params"]}
        held = {name: p for name, p in trainable.items() if id(p) in ids}
        if not held:
            raise UsageError(
                f"{self.name} holds no trainable parameter of the model: make it of those, once the model is final"
            )
        return held

    def rehearse(self, trainable: Mapping[str, nn.Parameter]) -> PseudoUpdates:
        """A step of gradients of ones, on trial: shows what can't be compared. Gives the others, fresh.

        Some rules divide by the length of their gradients, and fail with zeros.

        Raises:
            UsageError: the optimizer's own update can't be known in advance, or one of the others can't follow.
        """
        held = self.held(trainable)
        if not any(isinstance(o, torch.optim.SparseAdam) for o in self._optimizers):  # takes no dense gradients
            self._own_update(held, {name: torch.ones_like(p) for name, p in held.items()})
        for label, factory in self.others.items():
            try:
                PseudoUpdates(held, {label: factory}).step({name: torch.ones_like(p) for name, p in held.items()})
            except UsageError:
                raise
            except Exception as error:
                raise UsageError(f"direction {label!r} can't follow: {said(error)}") from error
        return PseudoUpdates(held, self.others)

    def check_gradients(self, ranks: Ranks, trainable: Mapping[str, nn.Parameter]) -> None:
        """Refuses gradients where ranks have them of different parameters, before anything is computed with them.

        Args:
            ranks: those that measure together.
            trainable: the model's trainable parameters.

        Raises:
            UsageError: on all ranks.
        """
        if not ranks.alone:
            check_gradients(ranks, {name: p.grad for name, p in self.held(trainable).items() if p.grad is not None})

    def skipped(self) -> bool:
        """Whether a gradient scaler will have the step skipped because of infinite gradients."""
        return gradient_scales.skips(self._optimizers)

    def follow(self, trainable: Mapping[str, nn.Parameter]) -> None:
        """Shows the others the gradients that are on the parameters, if they are finite: they would stay for good."""
        held = self.held(trainable)
        _, gradients = self._gradients(held)
        if self.others and vectors.is_finite(gradients):
            if self._followers is None:
                self._followers = PseudoUpdates(held, self.others)
                self._followed_on = _marks(held)
            self._followers.step(gradients)
        self.followed += 1

    def lost_track(self, trainable: Mapping[str, nn.Parameter]) -> bool:
        """Whether the optimizer holds other parameters than those that the others follow on, or of another dtype."""
        return self._followers is not None and self._followed_on != _marks(self.held(trainable))

    def lose(self) -> None:
        """The others forget the run."""
        self._followers, self.followed = None, 0

    def updates(
        self, trainable: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor] | None = None
    ) -> dict[str, Direction]:
        """The updates that all would make now; none makes its step.

        Args:
            trainable: the model's trainable parameters.
            gradients: ``None`` for those that are on the parameters.

        Raises:
            NoUpdateError: there is no gradient, or all updates are zero.
            UsageError: the optimizer's own update isn't finite, or can't be known in advance.
        """
        held = self.held(trainable)
        given, dense = self._gradients(held, gradients)
        if not given:
            raise NoUpdateError("no parameter has a gradient")
        updates = {self.own: self._own_update(held, given)}
        if not any(gradient.is_sparse for gradient in given.values()):
            for label, fraction in self._clips.items():
                clipped = {name: gradient.detach().clone() for name, gradient in dense.items()}
                clamp_(clipped.values(), fraction_threshold(list(clipped.values()), fraction))
                updates[label] = self._own_update(held, gradient_scales.of_the_step(self._optimizers, held, clipped))
        if self.others:
            updates |= (self._followers or PseudoUpdates(held, self.others)).peek(dense)
        return self._moving(updates, dense)

    def own_update(self, trainable: Mapping[str, nn.Parameter]) -> Direction:
        """The update that the optimizer itself would make of the gradients that are on the parameters.

        Raises:
            NoUpdateError: there is no gradient, or it wouldn't move.
            UsageError: its update isn't finite, or can't be known in advance.
        """
        held = self.held(trainable)
        given, _ = self._gradients(held)
        if not given:
            raise NoUpdateError("no parameter has a gradient")
        update = self._own_update(held, given)
        length = vectors.norm(update)
        if not math.isfinite(length):
            raise UsageError("the optimizer's own update is infinite or NaN")
        if length == 0:
            raise NoUpdateError("the optimizer wouldn't move")
        return update

    def decay(self, trainable: Mapping[str, nn.Parameter]) -> Direction | None:
        """The part of the optimizer's own update that weight decay makes; ``None`` where it can't be told apart."""
        return decay_part(self._optimizers, self.held(trainable))

    def _gradients(
        self, held: Mapping[str, nn.Parameter], given: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradients that the step gets, and dense ones of the loss: a gradient scaler makes them differ."""
        if given is not None:
            dense = {name: gradient for name, gradient in given.items() if name in held}
            return gradient_scales.of_the_step(self._optimizers, held, dense), dense
        step = gradient_scales.on_the_parameters(self._optimizers, held)
        return step, gradient_scales.of_the_loss(self._optimizers, held, step)

    def _own_update(self, held: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]) -> Direction:
        # A `step` that somebody has put on the object may be what is being executed.
        return own_update(self._optimizers, held, gradients, as_found=False)

    def _warn(self, label: str, length: str) -> None:
        if (text := f"the update of {label} is {length}: it is left out") not in self._warned:
            self._warned.add(text)
            self._logger.warning("%s", text)

    def _why_it_rests(self, given: Mapping[str, Tensor]) -> str:
        rates = [group.get("lr") for group in self.groups]
        if all(rate is not None and float(rate) == 0 for rate in rates):
            return "its learning rate is 0"
        if vectors.norm(given) == 0:
            return "all gradients are zero"
        return "though neither the gradients nor its learning rate are"

    def _moving(self, updates: Mapping[str, Direction], given: Mapping[str, Tensor]) -> dict[str, Direction]:
        lengths = {label: vectors.norm(direction) for label, direction in updates.items()}
        if not math.isfinite(lengths[self.own]):
            raise UsageError("the optimizer's own update is infinite or NaN")
        for label, length in lengths.items():
            if not math.isfinite(length):
                self._warn(label, "infinite or NaN")
        moving = {label: updates[label] for label, length in lengths.items() if math.isfinite(length) and length > 0}
        if not moving:
            raise NoUpdateError("no optimizer would move (a learning rate of 0?)")
        if lengths[self.own] == 0:
            self._warn(self.own, f"zero ({self._why_it_rests(given)})")
        return moving


def _marks(parameters: Mapping[str, nn.Parameter]) -> set[tuple[int, torch.dtype]]:
    return {(id(p), p.dtype) for p in parameters.values()}
