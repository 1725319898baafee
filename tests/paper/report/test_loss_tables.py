"""The tables of trainings hold what was measured, and say what diverged."""

from dataclasses import replace

from experiment_records import experiment
from stepscope.paper.report.loss_tables import loss_table, verdict_table


def test_losses_have_their_rates_and_marks():
    records = experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])
    table = loss_table(records)
    assert table.headers == ("optimizer", "code: rate", "code: loss")
    assert [row[0] for row in table.rows] == ["sgd", "sgd clip 10%"]
    assert [row[2] for row in table.rows] == ["3.133 ± 0.153", "2.100 ± 0.100"]
    assert table.marks == {("sgd clip 10%", "code: loss"): "best"}
    other = [replace(record, task="poetry") for record in records if record.optimizer == "sgd"]
    assert [row[3:] for row in loss_table([*records, *other]).rows][1] == ("–", "–"), "not trained on that task"


def test_a_diverged_training_has_no_loss():
    records = experiment([2.0, 2.1, None], [3.0, 3.1, 3.3])
    assert loss_table(records).rows[1][2] == "diverged"
    assert verdict_table(records).rows[0][2:] == ("–", "–", "–", "cannot tell")


def test_verdicts_have_their_intervals():
    (row,) = verdict_table(experiment([2.0, 2.1, 2.2], [3.0, 3.1, 3.3])).rows
    assert row[:2] == ("sgd clip 10%", "code")
    # Differences −1, −1, −1.1: mean −1.0333, deviation 0.0577, Student's t(2) at 95% 4.303.
    assert row[2] == "−1.033 [−1.177, −0.890]"
    assert row[5] == "faster"


def test_one_seed_has_no_interval():
    assert verdict_table(experiment([2.0], [3.0])).rows[0][2:4] == ("−1.000", "–")


def test_nothing_measured_is_no_table():
    assert loss_table([]).rows == verdict_table([]).rows == ()
