"""Run directories and their records."""

from stepscope.runs.direction_record import DirectionRecord, RecordedLandscape, RecordedMagnitudes, RecordedShare
from stepscope.runs.directory import MEASUREMENTS_FILE, Head, RunDirectory, read_head, read_run
from stepscope.runs.records import Record, latest
from stepscope.runs.storage import versions, write_atomically

__all__ = [
    "MEASUREMENTS_FILE",
    "DirectionRecord",
    "Head",
    "Record",
    "RecordedLandscape",
    "RecordedMagnitudes",
    "RecordedShare",
    "RunDirectory",
    "latest",
    "read_head",
    "read_run",
    "versions",
    "write_atomically",
]
