"""Run directories and their records."""

from stepscope.runs.direction_record import (
    DirectionRecord,
    RecordedLandscape,
    RecordedMagnitudes,
    RecordedShare,
    family,
    is_own,
)
from stepscope.runs.directory import DirectoryInUseError, RunDirectory
from stepscope.runs.head import RUN_FILE, Head, is_run, read_head
from stepscope.runs.parts import check_whole, gather, open_part, parts_of, read_whole
from stepscope.runs.reading import MEASUREMENTS_FILE, STEPS_FILE, holds_measurements, read_run, read_steps
from stepscope.runs.records import Record, latest
from stepscope.runs.step_record import RecordedEdge, StepRecord
from stepscope.runs.storage import plain, show, versions, write_atomically
from stepscope.runs.training import Training, read_training

__all__ = [
    "MEASUREMENTS_FILE",
    "RUN_FILE",
    "STEPS_FILE",
    "DirectionRecord",
    "DirectoryInUseError",
    "Head",
    "Record",
    "RecordedEdge",
    "RecordedLandscape",
    "RecordedMagnitudes",
    "RecordedShare",
    "RunDirectory",
    "StepRecord",
    "Training",
    "check_whole",
    "family",
    "gather",
    "holds_measurements",
    "is_own",
    "is_run",
    "latest",
    "open_part",
    "parts_of",
    "plain",
    "read_head",
    "read_run",
    "read_steps",
    "read_training",
    "read_whole",
    "show",
    "versions",
    "write_atomically",
]
