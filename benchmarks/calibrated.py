"""The tables of the stored calibration, by the mark where each stands in docs/, and the confidence of findings."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

from performance import with_note
from stepscope.calibration import tables
from stepscope.calibration.analysis import calibrated, cases_of
from stepscope.calibration.jobs import SETS, curves
from stepscope.calibration.study import read_study
from stepscope.calibration.training import TrainingRecord

ROOT = Path(__file__).parent.parent
CONFIDENCE = ROOT / "src" / "stepscope" / "judging" / "confidence.json"
FIXED_ON = {"fresh": 114, "long": 40}
"""So many curves of the plan had been seen when the thresholds were fixed, of each set of tasks."""


def of_calibration() -> dict[str, str]:
    """Each table by its mark."""
    made = {table.name: with_note(table) for table in tables.tables_of(trainings("study"))}
    for tasks, seen in FIXED_ON.items():
        records = trainings(tasks)
        cases = cases_of(records)
        later = tables.later(records, curves(tasks)[seen:])
        found = (tables.verdicts(records, cases), tables.rules(records), tables.parts(cases), later)
        made |= {f"{tasks} {table.name}": with_note(table) for table in found}
    return made


@cache
def trainings(tasks: str) -> list[TrainingRecord]:
    """The stored trainings, of one of the sets of tasks."""
    name = "trainings" if tasks == "study" else tasks
    return read_study(ROOT / "docs" / "calibration" / f"{name}.jsonl")


def confidence() -> str:
    """What a finding takes its confidence from."""
    records = [record for tasks in SETS for record in trainings(tasks)]
    return json.dumps(asdict(calibrated(cases_of(records))), indent=1) + "\n"
