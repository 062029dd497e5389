"""The regression gate: no prediction gets worse than it is today, on figures that others have measured."""

from pathlib import Path

import pytest
import yaml

from mist.validation.run import validate

FILES = {name: yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text()) for name in ("figures", "unseen")}
MODELS = ("measured", "roofline")
ROUNDING = 0.0005  # of the recorded errors, shares with three digits


@pytest.fixture(scope="module", params=FILES)
def figures(request):
    return request.param


@pytest.fixture(scope="module")
def observed(figures, tmp_path_factory):
    """Mean absolute error by performance model, set and metric, and the share of cells that were predicted."""
    folder = tmp_path_factory.mktemp(figures)
    for known in FILES[figures].values():
        (folder / known["file"]).write_text(known["rows"])
    whole = [score for score in validate(folder, [f"perf={perf}" for perf in MODELS]).scores if score.part == "all"]
    return {(s.variant.removeprefix("perf="), s.name, s.metric): (s.mape, s.covered / s.cells) for s in whole}


@pytest.fixture(scope="module")
def recorded(figures):
    return {
        (perf, name, metric): error
        for name, known in FILES[figures].items()
        for perf, errors in known["error"].items()
        for metric, error in errors.items()
    }


def test_no_prediction_is_worse_than_recorded(observed, recorded):
    assert all(covered == 1 for _, covered in observed.values())
    worse = {cell: (mape, recorded[cell]) for cell, (mape, _) in observed.items() if mape > recorded[cell] + ROUNDING}
    assert not worse, "predicted and recorded errors"


def test_every_metric_of_the_figures_is_gated(observed, recorded):
    assert set(observed) == set(recorded)


def test_nothing_was_fitted_on_the_unseen_figures(tmp_path):
    for known in FILES["unseen"].values():
        (tmp_path / known["file"]).write_text(known["rows"])
    assert not any(line.fitted for line in validate(tmp_path, ["perf=roofline"]).compared)
