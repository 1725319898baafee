"""What attaches to a training loop: the schedule, the updates that are compared, the step check, trackers."""

from stepscope.probe.probe import Probe

__all__ = [
    "Probe",
]
