"""Along a direction: curvature, landscape, breakdown, smoothness, and the checks of all of these."""

from stepscope.measuring.breakdown import Grouping, grouping
from stepscope.measuring.edge import Edge, edge
from stepscope.measuring.gauss_newton_matrix import chosen_names, gauss_newton
from stepscope.measuring.hessian_rows import Coordinate, hessian_rows
from stepscope.measuring.layer_multipliers import LayerMultipliers, layer_multipliers
from stepscope.measuring.measurement import Measurement, measure, measure_units
from stepscope.measuring.measurements import Measurements
from stepscope.measuring.selfcheck import ANOTHER_GRADIENT, SelfCheck, self_check
from stepscope.measuring.smoothness import check_removal, removals
from stepscope.measuring.sweep import clip_sweep

__all__ = [
    "ANOTHER_GRADIENT",
    "Coordinate",
    "Edge",
    "Grouping",
    "LayerMultipliers",
    "Measurement",
    "Measurements",
    "SelfCheck",
    "check_removal",
    "chosen_names",
    "clip_sweep",
    "edge",
    "gauss_newton",
    "grouping",
    "hessian_rows",
    "layer_multipliers",
    "measure",
    "measure_units",
    "removals",
    "self_check",
]
