"""The regression gate: no prediction gets worse than it is today, on figures that others have measured."""

from pathlib import Path

import pytest
import yaml

from mist.validation.run import validate

FIGURES = yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text())
ROUNDING = 0.0005  # of the recorded errors, shares with three digits


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Mean absolute error by set and metric, and the share of cells that were predicted."""
    folder = tmp_path_factory.mktemp("figures")
    for known in FIGURES.values():
        (folder / known["file"]).write_text(known["rows"])
    whole = [score for score in validate(folder, ["perf=roofline"]).scores if score.part == "all"]
    return {(score.name, score.metric): (score.mape, score.covered / score.cells) for score in whole}


@pytest.mark.parametrize(
    ("name", "metric", "error"),
    [(name, metric, error) for name, known in FIGURES.items() for metric, error in known["error"].items()],
)
def test_no_prediction_is_worse_than_recorded(observed, name, metric, error):
    mape, covered = observed[name, metric]
    assert covered == 1
    assert mape <= error + ROUNDING, f"{name} {metric}: {mape:.4f}, recorded {error}"


def test_every_metric_of_the_figures_is_gated(observed):
    assert set(observed) == {(name, metric) for name, known in FIGURES.items() for metric in known["error"]}
