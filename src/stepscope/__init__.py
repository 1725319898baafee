"""stepscope: see why an optimizer's step is good or bad, on your own model, while it trains."""

from stepscope.clipping import clip_grad_fraction_, clip_optimizer
from stepscope.directions import PseudoUpdates, next_update
from stepscope.errors import UsageError
from stepscope.measuring import Measurement, clip_sweep, measure
from stepscope.objective import Objective
from stepscope.probe import Probe

__version__ = "0.1.0"

__all__ = [
    "Measurement",
    "Objective",
    "Probe",
    "PseudoUpdates",
    "UsageError",
    "clip_grad_fraction_",
    "clip_optimizer",
    "clip_sweep",
    "measure",
    "next_update",
]
