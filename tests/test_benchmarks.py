"""The benchmark at its smallest size: what it times is right, and what it stores fills the tables."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import costs  # noqa: E402
import edge  # noqa: E402
import kills  # noqa: E402
import measure  # noqa: E402
import models  # noqa: E402
import multipliers  # noqa: E402
import pages  # noqa: E402
import products  # noqa: E402
import spikes  # noqa: E402
from made_data import data_of  # noqa: E402
from performance import performance  # noqa: E402
from stepscope import Objective  # noqa: E402

SMALL = {"width": 16, "length": 8, "examples": 2, "rounds": 1}


def gradient_difference(work: models.Workload, unit: models.Direction, step: float) -> float:
    """``uᵀHu`` by differences of gradients, as no way of the benchmark computes it."""
    along = [unit[name] for name in work.parameters]
    parameters = list(work.parameters.values())
    slopes = []
    for ahead in (step, -step):
        torch._foreach_add_([p.data for p in parameters], along, alpha=ahead)
        value = sum(models.loss(work.model, batch) for batch in work.batches) / len(work.batches)
        gradient = torch.autograd.grad(value, parameters)
        slopes.append(sum(float((g * a).sum()) for g, a in zip(gradient, along, strict=True)))
        torch._foreach_sub_([p.data for p in parameters], along, alpha=ahead)
    return (slopes[0] - slopes[1]) / (2 * step)


# transformers computes parts of a float64 model in float32, so the step is long; but for a ResNet, which has kinks
@pytest.mark.parametrize(("name", "step"), [("GPT-2", 1e-2), ("Llama", 1e-2), ("ResNet", 1e-6)])
def test_the_reference_is_the_second_derivative(name, step):
    work = models.workload(name, 16, 8, 2, 3)
    units = []
    for direction in work.directions.values():
        length = sum(float(t.double().square().sum()) for t in direction.values()) ** 0.5
        units.append({key: t.double() / length for key, t in direction.items()})
    values = products.reference(work, units)
    work.model.double()
    for batch in work.batches:
        batch |= {key: t.double() for key, t in batch.items() if t.is_floating_point()}
    differences = [gradient_difference(work, unit, step) for unit in units]
    assert values == pytest.approx(differences, abs=1e-2 * max(map(abs, differences)))


def test_negative_directions_are_of_negative_curvature():
    work = models.workload("GPT-2", 16, 8, 2)
    directions = products.negative_directions(work, 2)
    assert len(directions) == 2
    assert max(products.reference(work, list(directions.values()))) < 0


def test_there_are_as_many_directions_as_wanted_and_none_is_another():
    directions = list(models.workload("GPT-2", 16, 8, 2, 9).directions.values())
    assert len(directions) == 9
    flat = torch.stack([torch.cat([t.flatten() for t in d.values()]) for d in directions])
    assert (torch.cdist(flat, flat) + torch.eye(9)).min() > 1e-3 * flat.norm(dim=1).max()


@pytest.fixture(scope="module")
def stored():
    """A section of each kind, as the command stores it."""
    cases = [
        measure.Case("models", "GPT-2", ways=(*measure.OWN, *measure.PEERS), directions=2, **SMALL),
        measure.Case("memory", "GPT-2", ways=("full", "vhp loop"), directions=2, **SMALL),
        measure.Case("probe", "GPT-2", **SMALL),
        measure.Case("overhead", "GPT-2", steps=30, limit=1.0, **SMALL),
    ]
    sections = {}
    for case in cases:
        result = json.loads(json.dumps(costs.measured(case)))
        sections[case.section] = result | {"before": result["rows"], "commit": "abc", "against": "def"}
    return sections


@pytest.mark.slow
def test_every_way_is_timed_and_right_or_says_why_not(stored):
    rows = {row["way"]: row for row in stored["models"]["rows"]}
    assert list(rows) == [*measure.OWN, *measure.PEERS]
    for way, row in rows.items():
        if "reason" in row:
            assert way in measure.PEERS[1:]
            assert row["reason"].startswith("not installed")
        else:
            assert 0 < row["least"] <= row["median"] <= row["greatest"]
            # curvlinops: torch's forward mode is wrong through layer norm
            assert row["error"] < (1e-1 if way == "curvlinops" else 1e-4)
    assert rows["measure, uᵀHu < 0"]["negative"] == 2


@pytest.mark.slow
def test_the_other_sections_say_what_they_measured(stored):
    times = {row["way"]: row["times"] for row in stored["memory"]["rows"]}
    assert times["full"] > 1 < times["vhp loop"]
    (probe,) = stored["probe"]["rows"]
    assert probe["measure"]["median"] > 1
    assert 0.2 < probe["idle"]["median"] < 5
    (overhead,) = stored["overhead"]["rows"]
    assert overhead["same_last_loss"]
    assert overhead["overhead"] > 0


@pytest.mark.slow
def test_what_is_stored_fills_the_tables(stored):
    made = performance(stored)
    assert set(made) == {f"performance {name}" for name in (*measure.SECTIONS, "errors")}
    table = made["performance models"]
    row = stored["models"]["rows"][0]
    assert f"| **`measure`**, K = 2 | {row['median']:.1f}" in table
    assert "| **`measure`**, K = 2, at def | " in table
    assert "commit abc" in table
    for row in stored["models"]["rows"]:
        if "reason" in row:
            assert f"- {row['way']}: {row['reason']} (GPT-2)." in table
    assert all(made[f"performance {name}"].count("|") > 5 for name in (*stored, "errors"))
    assert made["performance sequence"] == "Not measured: `python benchmarks/measure.py --sections sequence`."


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's allocator hands out blocks of its own sizes")
def test_peak_memory_counts_what_is_alive_at_once():
    def work() -> None:
        for _ in range(3):
            torch.empty(1 << 20, dtype=torch.uint8)  # gone at once
        kept = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(4)]
        kept.pop()
        torch.empty(1 << 18, dtype=torch.uint8)

    assert costs.peak_bytes(work) == 4 << 20


def test_a_quick_run_has_every_section_and_names_what_exists():
    assert tuple(costs.SECTIONS) == measure.SECTIONS
    for cases in (measure.cases(), measure.quick_cases()):
        assert {case.section for case in cases} == set(measure.SECTIONS)
        assert {case.model for case in cases} == {*models.MODELS, measure.DEMO}
        assert {way for case in cases for way in case.ways} == {*measure.OWN, *products.WAYS}
    assert tuple(products.WAYS) == measure.PEERS


def test_a_worker_measures_the_source_it_is_given(tmp_path):
    """A package that takes the place of this one is the one that is imported."""
    (tmp_path / "stepscope").mkdir()
    (tmp_path / "stepscope" / "__init__.py").write_text("raise SystemExit(3)")
    worker = measure.Worker(tmp_path)
    with pytest.raises(SystemExit, match="failed"):
        worker.measure(measure.Case("memory", "GPT-2", ways=("vhp loop",), directions=1, **SMALL))
    worker.close()


def test_the_scan_of_an_edge_meets_the_closed_form():
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.tensor([3.0]))})
    objective = Objective(model, lambda m, _: m["w"].square().sum(), [0], lambda _: 1.0)
    assert edge.scanned(objective, {"w": torch.tensor([-1.5])}) == pytest.approx(4, rel=1e-3)
    assert edge.scanned(objective, {"w": torch.tensor([-12.0])}) == pytest.approx(0.5, rel=1e-3)
    assert edge.scanned(objective, {"w": torch.tensor([1.0])}) is None


def test_the_stored_summary_of_edges_is_that_of_its_rows():
    stored = json.loads(edge.RESULTS.read_text())
    assert {row["family"] for row in stored["rows"]} <= set(edge.FAMILIES)
    assert stored["summary"] == json.loads(json.dumps(edge.summary(stored["rows"])))
    assert all(row[way]["forwards"] <= 8 for row in stored["rows"] for way in edge.SLOPES)


@pytest.mark.slow
def test_what_is_killed_and_given_again_is_what_is_left_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPSCOPE_CACHE", "")
    words = ["reproduce", "--scale", "smoke", "--only", "C", "--seeds", "1"]
    words += ["--source", f"translation={data_of('translation', tmp_path)}"]
    [row] = kills.trial(["processes"], words, tmp_path, 2, seed=0, spread=0.1)
    assert row["jobs"] == 2
    assert sum(row["kills"].values()) == 2
    assert (row["lost"], row["twice"], row["others"], row["differing"]) == (0, 0, 0, [])


def test_a_record_that_is_lost_or_twice_or_another_is_told():
    wanted = {"run/measurements.jsonl": '{"step": 1}\n{"step": 2}\n'}
    found = {"run/measurements.jsonl": '{"step": 2}\n{"step": 2}\n{"step": 3}\n'}
    told = kills.compared(wanted, found)
    assert told == {"records": 3, "lost": 1, "twice": 1, "others": 1, "differing": ["run/measurements.jsonl"]}
    assert kills.compared(wanted, wanted)["differing"] == []


def rows_of(ratio, loss):
    return [{"loss": loss(n), "norm": 1.0, "lag": 1.0, "ratio": ratio(n), "edge": 1.0} for n in range(spikes.STEPS)]


def test_a_spike_is_foretold_by_what_passes_its_threshold_between_cause_and_spike():
    """The trust ratio falls 40 steps before the loss rises; nothing else moves."""
    runs = {}
    for task in spikes.CHOSEN:
        for kind in spikes.CONTROLS:
            runs[task, kind, 0] = rows_of(lambda n: 0.9, lambda n: 2.0)
        for kind in spikes.CAUSES:
            runs[task, kind, 0] = rows_of(lambda n: 0.1 if n >= 210 else 0.9, lambda n: 9.0 if n >= 250 else 2.0)
    judged = {(line["number"], line["allowed"]): line for line in spikes.judged(runs)}
    foretold = judged["1 − T", spikes.FALSE_ALARMS[0]]["foretold"]
    assert foretold["the rate grows"] == {"spikes": 4, "foretold": 4, "lead": 40}
    assert judged["edge ratio", spikes.FALSE_ALARMS[0]]["foretold"]["the rate grows"]["foretold"] == 0


def test_the_numbers_of_a_step_are_those_of_a_parabola():
    """``T = 1 − ρ/2``, and the weights are where the step left them."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}], lr=0.5, weight_decay=0.0)
    row = spikes.numbers_of_step(model, optimizer, lambda m: 2 * m.weight.square().sum(), 1.0, 0.99, 1)
    assert model.weight.item() == pytest.approx(0.5)
    assert (row["loss"], row["ratio"], row["edge"]) == pytest.approx((2.0, 0.75, 0.5), rel=1e-4)


def test_what_follows_multipliers_is_held_against_the_training_as_it_is():
    """Of three rates the middle one is best; below it every arm ends lower, above it none."""
    change = {"below": -0.2, "best": 0.1, "above": 0.3}
    finals = {}
    for place, rate, loss in (("below", 1.0, 3.0), ("best", 2.0, 1.0), ("above", 3.0, 2.0)):
        finals["bytes", "sgd", rate, 0, "as it is"] = loss
        for arm in multipliers.ARMS[1:]:
            finals["bytes", "sgd", rate, 0, arm] = loss + change[place] - 0.01 * (arm == "often")
    lines = {(line["rate"], line["arm"]): line for line in multipliers.judged(finals)}
    assert lines["below", "once"]["median_change"] == pytest.approx(-0.2)
    assert (lines["below", "once"]["lower"], lines["best", "once"]["lower"], lines["above", "often"]["lower"]) == (
        1,
        0,
        0,
    )
    assert (lines["best", "once"]["lower_than_all_alike"], lines["best", "often"]["lower_than_all_alike"]) == (0, 1)


def test_one_multiplier_for_all_layers_gives_the_update_the_same_length():
    task = multipliers.TASKS["regression"]
    torch.manual_seed(0)
    model = task.make(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task.loss(model, task.batch(False, torch.Generator().manual_seed(0), 8)).backward()
    asked = (model, task, optimizer)
    by_layer, alike = (
        multipliers.multipliers(*asked, torch.Generator().manual_seed(1), alike=a) for a in (False, True)
    )
    grads = {name: p.grad for name, p in model.named_parameters()}
    lengths = [
        sum(float((found[n.rpartition(".")[0]] * g).square().sum()) for n, g in grads.items())
        for found in (by_layer, alike)
    ]
    assert len(set(by_layer.values())) > 1
    assert len(set(alike.values())) == 1
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)


def test_a_page_that_misses_a_limit_is_told_and_the_stored_ones_miss_none():
    rows = json.loads(pages.RESULTS.read_text())["rows"]
    assert [(row["page"], row["width"]) for row in rows] == [(page, w) for page in pages.PAGES for w in pages.WIDTHS]
    assert [line for row in rows for line in pages.missed(row)] == []
    assert pages.missed(rows[0] | {"bytes": 3_000_000}) == ["healthy: bytes 3e+06, at most 2e+06"]
    assert len(pages.missed(rows[0] | {"first_paint": 2.5, "cpu": 2.5})) == 2
    assert pages.missed(rows[-1] | {"bytes": 3_000_000, "cpu": 14.0}) == [], "a reproduction is many runs"
