"""stepscope: see why an optimizer's step is good or bad, on your own model, while it trains."""

from stepscope.errors import UsageError
from stepscope.measurement import Measurement, measure
from stepscope.objective import Objective

__version__ = "0.1.0"

__all__ = ["Measurement", "Objective", "UsageError", "measure"]
