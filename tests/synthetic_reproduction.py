"""The runs of a reproduction, made up, a table of claims, and their ladder."""

from experiment_records import experiment, removal
from stepscope.paper.claims import Rung
from stepscope.paper.report.ladder_charts import ladder_figure
from stepscope.report import Table
from synthetic_records import CONFIGURATION, run_directory, synthetic_records, with_coordinates

CLAIMS = [Table("Claims", ("claim", "verdict"), (("C1 SGD is the sharpest", "cannot tell"),), "Of 3 seeds.")]
FIGURES = [
    ladder_figure([
        Rung("C1", f"code, part {part}", "< 0.5", "random", scale, part / 10, (part / 20, part / 9), 3, "holds")
        for part in range(1, 12)
        for scale in ("cpu", "desk")
    ])
]  # fmt: skip


def make(path):
    """Four runs, one of them not begun."""
    records = with_coordinates(synthetic_records(seeds=(0, 1), steps=(20, 60), trajectories=("sgd",)))
    run_directory(path / "trajectory-code", records, configuration=CONFIGURATION | {"kind": "code"})
    run_directory(path / "trajectory-images", [], configuration=CONFIGURATION | {"kind": "images"})
    trainings = experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])
    run_directory(path / "convergence", trainings, {}, {"experiment": "convergence", "scale": "cpu"})
    removals = [removal("attention", 4.0, 3.0)]
    run_directory(path / "robustness", removals, {}, {"experiment": "robustness", "scale": "cpu"})
    return path, records
