"""The regression gate: no prediction gets worse than it is today, on figures that others have measured."""

from pathlib import Path

import pytest
import yaml

from mist.validation.run import validate

FIGURES = yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text())
MODELS = ("measured", "roofline")
ROUNDING = 0.0005  # of the recorded errors, shares with three digits


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Mean absolute error by performance model, set and metric, and the share of cells that were predicted."""
    folder = tmp_path_factory.mktemp("figures")
    for known in FIGURES.values():
        (folder / known["file"]).write_text(known["rows"])
    whole = [score for score in validate(folder, [f"perf={perf}" for perf in MODELS]).scores if score.part == "all"]
    return {(s.variant.removeprefix("perf="), s.name, s.metric): (s.mape, s.covered / s.cells) for s in whole}


RECORDED = {
    (perf, name, metric): error
    for name, known in FIGURES.items()
    for perf, errors in known["error"].items()
    for metric, error in errors.items()
}


@pytest.mark.parametrize(("perf", "name", "metric"), RECORDED)
def test_no_prediction_is_worse_than_recorded(observed, perf, name, metric):
    (mape, covered), error = observed[perf, name, metric], RECORDED[perf, name, metric]
    assert covered == 1
    assert mape <= error + ROUNDING, f"{perf} {name} {metric}: {mape:.4f}, recorded {error}"


def test_every_metric_of_the_figures_is_gated(observed):
    assert set(observed) == set(RECORDED)
