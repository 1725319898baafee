"""The exact threshold that clips a fraction of coordinates, and the hook on an optimizer's step."""

from stepscope.clipping.clip_at_fraction import (
    check_fraction,
    clamp_,
    clip_grad_fraction_,
    count_of,
    fraction_threshold,
)
from stepscope.clipping.hook import ClipHandle, Target, clip_optimizer, clipped
from stepscope.clipping.joint_steps import JointStepHook, name_of, parts_of
from stepscope.clipping.sharded_threshold import Parts
from stepscope.clipping.steps import StepHook

__all__ = [
    "ClipHandle",
    "JointStepHook",
    "Parts",
    "StepHook",
    "Target",
    "check_fraction",
    "clamp_",
    "clip_grad_fraction_",
    "clip_optimizer",
    "clipped",
    "count_of",
    "fraction_threshold",
    "name_of",
    "parts_of",
]
