"""What any optimizer would do with the gradients of this step."""

from stepscope.directions.decay import decay_part
from stepscope.directions.optimizers import ACClip, Adafactor, Lion, NormalizedSGD, SignSGD, muon_with_adamw
from stepscope.directions.updates import Factory, PseudoUpdates, next_update, own_update

__all__ = [
    "ACClip",
    "Adafactor",
    "Factory",
    "Lion",
    "NormalizedSGD",
    "PseudoUpdates",
    "SignSGD",
    "decay_part",
    "muon_with_adamw",
    "next_update",
    "own_update",
]
