"""What attaches to a training loop: schedules, compared updates, own steps on their own batches, trackers."""

from stepscope.probe.probe import Probe

__all__ = [
    "Probe",
]
