"""stepscope: see why an optimizer's step is good or bad, on your own model, while it trains.

A public name is imported when it is first used, and torch with it: the help of the command line needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepscope.clipping import clip_grad_fraction_, clip_optimizer
    from stepscope.directions import PseudoUpdates, next_update
    from stepscope.errors import UsageError
    from stepscope.judging import findings
    from stepscope.measuring import Edge, Measurement, clip_sweep, edge, measure
    from stepscope.objective import Objective
    from stepscope.probe import Probe

__version__ = "0.1.0"

__all__ = [
    "Edge",
    "Measurement",
    "Objective",
    "Probe",
    "PseudoUpdates",
    "UsageError",
    "clip_grad_fraction_",
    "clip_optimizer",
    "clip_sweep",
    "edge",
    "findings",
    "measure",
    "next_update",
]

_ROOMS = {
    "Edge": "measuring",
    "Measurement": "measuring",
    "Objective": "objective",
    "Probe": "probe",
    "PseudoUpdates": "directions",
    "UsageError": "errors",
    "clip_grad_fraction_": "clipping",
    "clip_optimizer": "clipping",
    "clip_sweep": "measuring",
    "edge": "measuring",
    "findings": "judging",
    "measure": "measuring",
    "next_update": "directions",
}


def __getattr__(name: str) -> object:
    if name in _ROOMS.values():
        return import_module(f"{__name__}.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing: object = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
