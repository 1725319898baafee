"""Optimizers of the user's own, by names that say where they are: ``"torch.optim:NAdam@2e-3"``.

The name is the label in records and tables, so a run directory says what was measured. Only what the command line asks
for is imported: reading records imports nothing.
"""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stepscope.clipping import parts_of
from stepscope.errors import UsageError, said

RATE = 1e-3
"""The learning rate where a name gives none."""

_FORM = (
    "give MODULE:FUNCTION, or MODULE:FUNCTION@RATE, where FUNCTION(parameters, lr=RATE) makes an optimizer, such as "
    "torch.optim:NAdam@2e-3"
)


class Named(NamedTuple):
    """What the name of a user's optimizer says.

    Attributes:
        module: where it is.
        function: what makes it, ``function(parameters, lr=rate)``; dotted for one inside a class.
        rate: its learning rate.
    """

    module: str
    function: str
    rate: float

    @classmethod
    def of(cls, name: str) -> Named:
        """Reads a name.

        Raises:
            UsageError: it isn't such a name.

        Example:
            >>> Named.of("torch.optim:NAdam@2e-3")
            Named(module='torch.optim', function='NAdam', rate=0.002)
        """
        where, separator, rate = name.partition("@")
        module, colon, function = where.partition(":")
        try:
            number = float(rate) if separator else RATE
        except ValueError:
            number = math.nan
        words = [*module.split("."), *function.split(".")]
        if not colon or not all(map(str.isidentifier, words)) or not 0 < number < math.inf:
            raise UsageError(f"{name!r} names no optimizer: {_FORM}")
        return cls(module, function, number)

    def build(self, parameters: list[torch.nn.Parameter], lr: float) -> Any:
        """Makes the optimizer. Modules of the current directory are found too.

        Raises:
            UsageError: it isn't there, or can't be made in this way.
        """
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        try:
            made: Any = importlib.import_module(self.module)
            for word in self.function.split("."):
                made = getattr(made, word)
            optimizer = made(parameters, lr=lr)
            parts_of(optimizer)
        except Exception as error:
            raise self._refusal(error) from error
        return optimizer

    def check(self) -> None:
        """Refuses an optimizer that can't be made or makes no step of its gradients, before anything is trained.

        Raises:
            UsageError: it can't.
        """
        parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with torch.random.fork_rng(devices=[]):
            optimizer = self.build(parameters, self.rate)
            try:
                for part in parts_of(optimizer):
                    part.step()
            except Exception as error:  # one that evaluates the loss again, say
                raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> UsageError:
        return UsageError(f"{self.module}:{self.function} can't be used ({said(error)}): {_FORM}")
