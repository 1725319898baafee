"""Tables of robust smoothness and of theory, from records that were made up."""

import pytest

from experiment_records import bound, correlation, removal, training
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.run_files import render_run
from stepscope.paper.records import Margins

EVIL = "</script><img src=x onerror=alert(1)>[red]"


def test_robust_smoothness_is_told_by_group_and_cut():
    records = [removal("attention", 4.0, ratio, seed) for seed, ratio in enumerate((1.5, 3.0, 6.0))]
    (table,) = EXPERIMENTS["robustness"].load().tables([*records, removal("all", 2.0, None)])
    assert table.rows == (("attention, cut 4", "3", "3", "1.5…6", "2/3", "4.0%", "1.06"),)
    assert table.title == "Robust smoothness, 3 seeds"


def test_violations_and_margins_of_all_bounds_count():
    broken = Margins(violations=3, least_margin=-0.25, median_margin=0.1)
    (table,) = EXPERIMENTS["theory"].load().tables([bound(0), bound(1, block=broken, disagreements=2)])
    assert table.rows == (("quadratic, clip 10%", "80", "3", "-0.25", "25.0%", "50.0%", "2"),)


def test_correlations_count_intervals_above_zero():
    records = [correlation("code, all", 0, 0.2, 0.4), correlation("code, all", 1, -0.1, 0.3)]
    (table,) = EXPERIMENTS["theory"].load().tables(records)
    assert table.rows == (("code, all", "2", "0.10…0.30", "1/2", "-", "0/0"),)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_measured_is_no_table(name):
    assert EXPERIMENTS[name].load().tables([]) == []


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("robustness", [removal(EVIL, 4.0, 3.0)]),
        ("theory", [correlation(EVIL, 0, 0.1, 0.2)]),
        ("convergence", training(EVIL, 0, (6.0, 5.0, 3.0), task=EVIL)),
    ],
)
def test_names_do_no_harm(name, records, capsys):
    pytest.importorskip("altair")
    run = {"configuration": {"experiment": name}, "context": {}}
    assert "<img src=x" not in render_run(run, records)
    EXPERIMENTS[name].load().show(run, records)
    assert "[red]" in capsys.readouterr().out.replace("\n", "").replace(" ", "")
