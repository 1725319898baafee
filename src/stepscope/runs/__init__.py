"""Run directories and their records."""

from stepscope.runs.directory import Record, RunDirectory, latest, number, read_run, versions, write_atomically

__all__ = [
    "Record",
    "RunDirectory",
    "latest",
    "number",
    "read_run",
    "versions",
    "write_atomically",
]
