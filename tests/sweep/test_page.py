"""A study as a page: what is in it, what is kept, and that its plots are whole."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from mist.cli import main
from mist.report.page import MARK, spoken
from mist.report.plot import Bar, Point, bars, points, ticks
from mist.sweep import question
from mist.sweep.runs import publish

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


@pytest.fixture
def runs(ask):
    """A finished run, and one that it can be compared with."""
    _, study = ask("budget.designs=10", "search.sampler=random")
    _, other = ask("budget.designs=1", "hardware=h100", "tp=1", "scheduler=static")
    return study, other


def test_a_page_has_the_command_the_leaders_and_the_ratio_to_what_stands_beside(runs, tmp_path):
    study, other = runs
    file = tmp_path / "README.md"
    assert publish(file, study, [other]) == 0
    text = file.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "    mist sweep " in text and "10 designs judged" in text
    assert (
        len(rows) == 1 + 2 + 1 and rows[1].startswith("| 1 |") and "| beside |" in rows[-1] and "| 1.00 |" in rows[-1]
    )
    best = yaml.safe_load((study / "best.yaml").read_text())["tokens_per_dollar"]
    beside = yaml.safe_load((other / "best.yaml").read_text())["tokens_per_dollar"]
    assert f"| {best / beside:.2f} |" in rows[1]
    for name in ("leaders.svg",):
        assert name in text and ET.fromstring((tmp_path / name).read_text()).tag.endswith("svg")


def test_what_a_person_wrote_below_the_mark_is_kept(runs, tmp_path):
    study, other = runs
    file = tmp_path / "README.md"
    publish(file, study, [])
    file.write_text(file.read_text() + "\n## Why\n\nBecause.\n")
    before = file.read_text()
    publish(file, study, [])
    assert file.read_text() == before and before.count(MARK) == 1
    publish(file, other, [])
    assert file.read_text() != before and file.read_text().endswith("\n## Why\n\nBecause.\n")


def test_an_unfinished_run_is_no_page(runs, tmp_path, capsys):
    study, _ = runs
    (study / "trials.parquet").unlink()
    assert main(["show", str(study), "--write", str(tmp_path / "README.md")]) == 2
    assert "mist resume" in capsys.readouterr().err and not (tmp_path / "README.md").exists()


def test_every_run_named_beside_stands_on_the_page_however_it_is_named(runs, tmp_path):
    study, other = map(str, runs)
    pages = []
    for named in (["--beside", other, study], ["--beside", other, "--beside", study]):
        file = tmp_path / f"{len(named)}.md"
        assert main(["show", study, "--write", str(file), *named]) == 0
        pages.append(file.read_text())
    assert pages[0] == pages[1] and pages[0].count("| beside |") == 2


def test_beside_without_a_page_is_refused(runs, capsys):
    study, other = runs
    assert main(["show", str(study), "--beside", str(other)]) == 2
    assert "--beside" in capsys.readouterr().err


def test_a_design_is_spoken_pool_by_pool():
    design = {"cluster": "disaggregated", "prefill.tp": 1, "prefill.hardware": "a100", "decode.tp": 2}
    assert spoken(design) == "disaggregated; prefill: tp 1, a100; decode: tp 2"


@pytest.mark.parametrize("limit", [1e-7, 0.3, 1.0, 7.99, 8.0, 12.5, 99.9, 100.0, 2.83e6])
def test_axes_have_a_few_round_steps_that_do_not_go_beyond_the_data(limit):
    steps = ticks(limit)
    assert 4 <= len(steps) <= 9 and steps[0] == 0 and steps[-1] <= limit * (1 + 1e-6)


def test_bars_are_as_long_as_their_values_and_stay_in_the_picture():
    svg = ET.fromstring(bars("t", "a", [Bar("x", 10, 1), Bar("y <&>", 5, None, "beside")]))
    wide = [float(r.get("width")) for r in svg.iter("{http://www.w3.org/2000/svg}rect") if r.get("x")]
    assert wide[0] == pytest.approx(2 * wide[1], abs=0.2) and wide[0] < float(svg.get("width"))


def test_points_lie_within_the_axes():
    svg = ET.fromstring(points("t", "x", "y", [Point(0, 0, "a"), Point(3, 7, "b", True), Point(1, 2, "a")]))
    for circle in svg.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.get("cx")) <= 860 and 0 <= float(circle.get("cy")) <= 480


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_packaged_sweep_is_a_question_with_designs(file):
    name, data = question.read(str(file))
    sweep = question.sweep(data)
    assert name == file.stem and sweep.question.endswith("?")
    assert sweep.designs.size is None or sweep.designs.size > 1
    assert all(low and high for _, (low, high) in sweep.designs.probes())


@pytest.mark.parametrize("file", [f for f in SWEEPS if "multi" in f.stem or "dollar" in f.stem], ids=lambda f: f.stem)
def test_every_design_of_a_study_of_eight_devices_has_eight(file):
    _, data = question.read(str(file))
    for design in question.sweep(data).designs.designs():
        pools = ("prefill.", "decode.") if design["cluster"] == "disaggregated" else ("",)
        assert sum(design[f"{pool}tp"] * design[f"{pool}replicas"] for pool in pools) == 8
