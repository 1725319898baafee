"""Charts say what the records say, whatever is missing from them."""

from __future__ import annotations

import json

import pytest

from chart_rows import unfolded
from stepscope.errors import UsageError
from stepscope.report import step_charts
from stepscope.report.axes import magnitude_axis, powers_of_ten
from stepscope.report.escaping import script_json
from stepscope.report.looks import Looks
from stepscope.report.vega import save, vega_lite_version
from stepscope.runs import family
from synthetic_records import DIRECTIONS, record, synthetic_records

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\nb\u2028c", "[red]x", "\ud800"]


@pytest.fixture(scope="module")
def records():
    return synthetic_records()


def layers(chart):
    """Every layer's rows, a row a point, and encoding."""
    spec = chart.to_dict()
    parts = spec.get("layer", [spec])
    return [(rows_of(part, spec["datasets"]), part["encoding"]) for part in parts]


def rows_of(part, datasets):
    rows = datasets[part["data"]["name"]]
    for transform in part.get("transform", []):
        if "part" not in transform.get("flatten", ["part"]):  # not those of the model, which are calculated
            rows = unfolded(rows, transform["flatten"])
    return [*rows]


def view(chart):
    """What is shown at the step that is chosen at first."""
    params = {param["name"]: param.get("value") for param in chart.to_dict()["params"]}
    return params["views"][str(params["step"])]


def test_a_family_shares_its_color_and_nothing_else():
    looks = Looks(list(DIRECTIONS))
    for name, look in looks.items():
        base = looks[family(name)]
        assert look.color == base.color
        assert (look == base) == (name == family(name))
        assert base.dash == (1, 0)
    assert len(set(looks.values())) == len(looks), "no two directions look the same"
    assert len({looks[family(name)].color for name in DIRECTIONS}) == 7


def test_the_optimizers_own_step_has_a_color_of_its_own_whatever_it_is_compared_with():
    own = [Looks([*others, "own AdamW", "own AdamW clip 50%"]) for others in ([], ["mine"], DIRECTIONS)]
    assert len({looks["own AdamW"].color for looks in own}) == 1
    assert all(looks["own AdamW clip 50%"].color == looks["own AdamW"].color for looks in own)
    assert [look.color for look in own[-1].values()].count(own[0]["own AdamW"].color) == 2


def test_unknown_and_many_directions_have_a_look():
    names = [f"mine {index}" for index in range(20)] + [f"adam clip {index}%" for index in range(20)]
    looks = Looks(names)
    assert len({looks[f"mine {index}"].color for index in range(8)}) == 8
    assert all(looks[f"adam clip {index}%"].dash != (1, 0) for index in range(20))


def test_directions_keep_their_look_when_others_are_left_out(records):
    def colors(chart):
        scale = next(e["color"]["scale"] for _, e in layers(chart) if e.get("color", {}).get("scale"))
        return dict(zip(scale["domain"], scale["range"], strict=True))

    whole = colors(step_charts.landscapes(records, "sgd", 60))
    assert whole == colors(step_charts.landscapes(records, "sgd", 60, without=["sgd", "adafactor"]))
    assert whole == colors(step_charts.sharpness_over_steps(records, "adam"))


def test_a_landscape_is_relative_to_its_start_and_marked_at_its_minimum():
    curve = {"steps": [0.0, 0.5, 1.0, 2.0, 4.0], "losses": [3.0, 2.5, 2.0, None, 9.0], "status": "bracketed"}
    records = [
        record("sgd", 1, "a", loss=99.0, landscape=curve, best_step=1.1, best_decrease=1.2),
        record("sgd", 1, "b", loss=3.0, landscape={**curve, "steps": curve["steps"][1:], "losses": [2.5, 4, 5, 6]}),
        record("sgd", 1, "up", landscape={"steps": [0, 1], "losses": [3, 4], "status": "no descent"}, best_step=0.0),
        record("sgd", 1, "none", loss=3.0, landscape=None),
        record("sgd", 2, "other step", loss=3.0, landscape=curve),
        record("adam", 1, "other trajectory", loss=3.0, landscape=curve),
    ]
    start, lines, minima = (rows for rows, _ in layers(step_charts.landscapes(records, "sgd", 1)))
    assert start == [{"change": 0}]
    assert [(row["direction"], row["t"], row["change"]) for row in lines] == [
        *(("a", *point) for point in ((0.5, -0.5), (1.0, -1.0), (4.0, 6.0))),
        *(("b", *point) for point in ((0.5, -0.5), (1.0, 1.0))),  # what follows lies above the axis
        ("up", 1, 1),
    ]
    found = {row["direction"]: (row["best_step"], row["best_decrease"]) for row in minima if row["found"] == 1}
    assert found == {"a": (1.1, 1.2), "b": (0.5, 0.5)}


def test_a_line_that_explodes_goes_a_little_beyond_the_axis():
    """A browser draws each dash of a line, also of the millions that lie outside."""
    losses = [3.0, 2.0, 2.5, 5.0, 9e6, 9e7, 9e8, 2.0, 8.0, 9e9, 9e9]
    curve = {"steps": [*range(len(losses))], "losses": losses, "status": "bracketed"}
    chart = step_charts.landscapes([record("sgd", 1, "a", loss=3.0, landscape=curve, best_decrease=1.0)], "sgd", 1)
    low, high = view(chart)["y"]
    _, (lines, _), *_ = layers(chart)
    assert {row["t"]: row["change"] for row in lines if row["t"] != 6} == {1: -1.0, 2: -0.5, 3: 2.0, 7: -1.0, 8: 5.0}
    (far,) = [row["change"] for row in lines if row["t"] == 6]
    assert high < far < high + 31 * (high - low)


def test_the_second_order_model_leads_to_the_first_measured_step():
    curve = {"steps": [0.0, 1.0, 2.0, 4.0], "losses": [5.0, 4.5, 4.0, 6.0], "status": "bracketed"}
    records = [record("sgd", 1, "a", slope=-1.0, sharpness=1.0, landscape=curve, best_step=2.0, best_decrease=1.0)]
    chart = step_charts.landscapes(records, "sgd", 1)
    _, (lines, _), ((model,), _), _ = layers(chart)
    assert [row["t"] for row in lines] == [1.0, 2.0, 4.0], "what is modelled is not mixed with what was measured"
    assert (model["from"], model["slope"], model["sharpness"]) == (0.08, -1.0, 1.0)
    assert view(chart)["x"] == [0.08, 3.0]


def test_a_slider_chooses_one_of_several_steps():
    """Each has a part of the axes of its own: losses of a training's start and end differ by orders of magnitude."""
    curve = {"steps": [0.0, 1.0, 2.0], "losses": [3.0, 2.0, 4.0], "status": "bracketed"}
    small = {"steps": [0.0, 0.1, 0.2], "losses": [1.0, 0.999, 1.002], "status": "bracketed"}
    records = [
        record("sgd", step, "own sgd", loss=start, landscape=landscape, lr_step=length, lr_loss=loss)
        for step, landscape, start, length, loss in (
            (1, curve, 3, 1.5, 2.5),
            (9, small, 1, 8.0, 7.0),
            (20, None, 1, 1, 1),
        )
    ]
    chart = step_charts.landscapes(records, "sgd", 1, 9, 20)
    *_, (landings, encoding) = layers(chart)
    assert [(row["step"], row["t"], row["change"], row["mark"]) for row in landings] == [
        (1, 1.5, -0.5, "circle"),
        (9, 8.0, 6.0, "triangle-up"),
    ]
    assert encoding["y"]["field"] == "shown"
    assert landings[1]["shown"] < view(chart)["y"][1], "what lies above the axis is drawn at its end"
    assert view(chart)["x"][1] == 16.0, "and never past it"
    assert "step" not in chart.to_dict()["title"]["text"]


def test_marks_that_are_missing_at_one_of_the_steps_are_none_for_a_screen_reader():
    """An empty group of marks has no name, which is an error to what checks a page."""
    curve = {"steps": [0.0, 1.0, 2.0], "losses": [3.0, 2.0, 4.0], "status": "bracketed"}
    full = [record("sgd", step, "own sgd", loss=3, landscape=curve, lr_step=1.5, lr_loss=2.5) for step in (1, 9)]
    bare = record("sgd", 20, "own sgd", loss=3, landscape=curve | {"status": "no descent"})
    for records, told in ((full, True), ([*full, bare], False)):
        steps = [each.step for each in records]
        marks = [layer["mark"] for layer in step_charts.landscapes(records, "sgd", *steps).to_dict()["layer"]]
        assert [mark["aria"] for mark in marks if mark["type"] == "point"] == [told, told]


def test_directions_can_be_left_out_of_a_landscape(records):
    chart = step_charts.landscapes(records, "sgd", 60, without=["adafactor"])
    drawn = {row["direction"] for rows, _ in layers(chart)[1:] for row in rows}
    assert drawn == set(DIRECTIONS) - {"adafactor", "adafactor clip 50% (numerator)"}


def test_a_landscape_can_be_looked_at_around_one_minimum():
    """Linear axes from 0, three times as long as the way to SGD's minimum; the model leads to the first point."""
    near = {"steps": [0.0, 0.5, 1.0, 2.0], "losses": [3.0, 2.8, 2.9, 4.0], "status": "bracketed"}
    far = {"steps": [0.0, 40.0, 80.0], "losses": [3.0, 1.0, 2.0], "status": "bracketed"}
    records = [
        record("sgd", 1, "sgd", landscape=near, best_step=0.5, best_decrease=0.2),
        record("sgd", 1, "adam", landscape=far, best_step=40.0, best_decrease=2.0, slope=-0.1, sharpness=0.0),
    ]
    chart = step_charts.landscapes(records, "sgd", 1, around="sgd")
    _, (lines, encoding), (model, _), _ = layers(chart)
    assert encoding["x"]["scale"]["type"] == "linear"
    assert (view(chart)["x"], view(chart)["y"]) == ([0, 1.5], pytest.approx([-0.32, 0.128]))
    assert [*dict.fromkeys(row["direction"] for row in lines)] == ["sgd", "adam"]
    (adam,) = [row for row in model if row["direction"] == "adam"]
    assert (adam["from"], adam["t"][0]) == (0, 40.0)
    with pytest.raises(UsageError, match="no minimum along 'muon'"):
        step_charts.landscapes(records, "sgd", 1, around="muon")


def test_a_landscape_can_be_of_one_seed():
    records = synthetic_records(seeds=(0, 1))
    drawn = [rows for rows, _ in layers(step_charts.landscapes(records, "sgd", 60, seed=1))[1:]]
    assert {row["seed"] for rows in drawn for row in rows} == {1}
    first = step_charts.landscapes(records, "sgd", 60)
    assert {row["seed"] for rows, _ in layers(first)[1:] for row in rows} == {0}
    assert first.to_dict()["title"]["subtitle"][0].endswith(" Seed 0.")


def test_negative_sharpness_keeps_its_sign_and_is_hollow(records):
    chart = step_charts.sharpness_over_steps(records, "sgd")
    _, _, (points, encoding) = layers(chart)
    assert [row["sharpness"] for row in points if row["direction"] == "sgd"] == [-3.0, 22.0, 33.0]
    assert encoding["y"]["scale"]["type"] == "symlog"
    assert encoding["fillOpacity"]["condition"][0] == {"test": "datum.sharpness < 0", "value": 0}
    _, encoding = layers(step_charts.sharpness_over_steps(records, "adam"))[-1]
    assert encoding["y"]["scale"]["type"] == "log", "nothing negative: an ordinary logarithm"


def test_several_seeds_are_points_around_a_mean():
    records = [record("sgd", 1, "a", seed=seed, sharpness=value) for seed, value in enumerate((1.0, 2.0, 6.0))]
    (line, _), (points, _) = layers(step_charts.sharpness_over_steps(records, "sgd"))
    assert line == [{"direction": "a", "step": 1, "sharpness": 3.0}]
    assert [point["sharpness"] for point in points] == [1.0, 2.0, 6.0]


def test_the_scatter_is_relative_to_sgd_and_to_the_best():
    records = [
        record("sgd", 1, "sgd", sharpness=-2.0, sharpness_robust=8.0, best_decrease=1.0),
        record("sgd", 1, "adam", sharpness=4.0, best_decrease=2.0),
        record("sgd", 1, "lion", sharpness=-4.0, best_decrease=-0.5),
        record("sgd", 1, "muon", sharpness=4.0),
    ]
    ((points, _),) = layers(step_charts.decrease_against_sharpness(records, "sgd"))
    assert {row["direction"]: (row["x"], row["share"]) for row in points} == {
        "sgd": (-0.25, 0.5),
        "adam": (0.5, 1.0),
        "lion": (-0.5, 0.0),
    }
    ((points, _),) = layers(step_charts.decrease_against_sharpness(records[1:], "sgd"))
    assert {row["direction"]: row["x"] for row in points} == {"adam": 4.0, "lion": -4.0}, "no SGD: absolute"


@pytest.mark.parametrize("values", [[0.0], [1.0], [-1.0], [1e-12, 1e12], [-5.0, 0.0, 5.0], [-1e9, -1e-9]])
def test_every_range_of_numbers_has_an_axis(values):
    records = [record("sgd", step, "a", sharpness=value) for step, value in enumerate(values)]
    json.dumps(step_charts.sharpness_over_steps(records, "sgd").to_dict(), allow_nan=False)
    import altair

    axis = magnitude_axis(altair.Y, "sharpness", values, "x").to_dict()
    low, high = axis.get("scale", {}).get("domain", [-1, 1])
    assert low <= min(values)
    assert max(values) <= high


def test_ticks_on_both_sides_of_zero_are_whole_numbers():
    """Vega's own format for a symmetric scale would write 1000 as 1e+3."""
    import altair

    axis = magnitude_axis(altair.Y, "sharpness", [-2.0, 5000.0], "x").to_dict()["axis"]
    assert 1000.0 in axis["values"]
    assert "format" not in axis
    assert axis["labelExpr"] == "format(datum.value, '~g')"


def test_powers_of_ten_stay_few():
    assert powers_of_ten(0.5, 20) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    assert powers_of_ten(0.5, 200) == [1.0, 10.0, 100.0]
    assert powers_of_ten(3, 4) == []
    assert len(powers_of_ten(1e-30, 1e30)) <= 7


@pytest.mark.parametrize(("suffix", "start"), [(".pdf", b"%PDF-"), (".svg", b"<svg"), (".png", b"\x89PNG")])
def test_a_chart_can_be_printed(records, tmp_path, suffix, start):
    path = save(step_charts.sharpness_over_steps(records, "sgd"), tmp_path / f"figure{suffix}")
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_a_name_that_xml_cannot_hold_can_be_printed(tmp_path, suffix):
    """The converter would end the process."""
    records = [record("sgd", 1, name, sharpness=1.0) for name in ("a\x1bb", "a\x00", "\ud800", "\ufffe", "a\nb\tc")]
    assert save(step_charts.sharpness_over_steps(records, "sgd"), tmp_path / f"f{suffix}").exists()


def test_a_vector_figure_has_every_direction(records, tmp_path):
    svg = save(step_charts.landscapes(records, "sgd", 60), tmp_path / "f.svg").read_text()
    assert all(f">{name}</text>" in svg for name in DIRECTIONS)


@pytest.mark.parametrize("name", ["figure", "figure.jpeg", "figure.pdf.gz"])
def test_an_unknown_suffix_is_refused(records, tmp_path, name):
    with pytest.raises(UsageError, match=r"end the name in \.pdf, \.svg, \.png or \.html"):
        save(step_charts.sharpness_over_steps(records, "sgd"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_script_json_reads_back_and_ends_no_script():
    text = script_json({name: name for name in HOSTILE})
    assert json.loads(text) == {name: name for name in HOSTILE}
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()


def test_vega_lite_is_the_one_that_altair_writes_for():
    import altair

    assert vega_lite_version() is not None
    assert altair.SCHEMA_VERSION.startswith(f"v{vega_lite_version()}.")


def test_print_shows_all_that_the_chart_shows(records, tmp_path):
    """Tooltips and what screen readers read are left out of what is printed: to the pixel nothing else is."""
    few = [record for record in records if record.direction in ("sgd", "adam", "lion")]  # each line takes long to draw
    chart = step_charts.landscapes(few, "sgd", 60)
    whole = pytest.importorskip("vl_convert").vegalite_to_png(chart.to_dict(), vl_version=vega_lite_version(), scale=2)
    assert save(chart, tmp_path / "figure.png").read_bytes() == whole
