"""Plans through stations are the networks of the textbooks."""

import numpy as np
import pytest

from mist.clients.station import DrawnStation
from mist.plan.branches import Exactly, Fork, Path, Repeat
from mist.plan.stages import Pipeline, Serve
from mist.plan.times import Exponential, Lognormal


def visit(station, mean=1.0):
    return Serve("process", station, time=Exponential(mean))


def responses(drive, stages, arrivals, seed=0, **servers):
    """Seconds of each query from arrival to end, with no engines at all."""
    stations = {name: DrawnStation(count) for name, count in servers.items()}
    options = {"pipeline": Pipeline(stages), "stations": stations, "seed": seed, "cycle": len(arrivals)}
    run = drive({}, [(time, 1, 1) for time in arrivals], **options)
    assert run.cluster.completed == len(arrivals)
    return run.column("finished") - run.column("arrived")


def agrees(means, expected):
    """Whether the mean of independent runs is as expected: within four standard errors, which are below 4 %."""
    error = np.std(means, ddof=1) / len(means) ** 0.5
    assert error < 0.04 * expected
    return abs(np.mean(means) - expected) < 4 * error


def test_two_stages_in_a_row_are_jacksons_network(drive):
    """Of two M/M/1 in tandem the mean response is the sum of what each has alone (Jackson 1957)."""
    rate, means = 0.6, []
    for seed in range(10):
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, 5000)).tolist()
        plan = {"a": visit("one"), "b": visit("two", 0.8)}
        means.append(np.mean(responses(drive, plan, arrivals, seed, one=1, two=1)))
    assert agrees(means, 1 / (1 - rate) + 1 / (1 / 0.8 - rate))


@pytest.mark.parametrize(("branches", "needs"), [(4, None), (4, 1), (5, 3)])
def test_a_fork_lasts_as_long_as_the_last_it_needs(drive, branches, needs):
    """Of n exponential times the k-th smallest has mean 1/n + 1/(n-1) + ... + 1/(n-k+1) (Renyi 1953)."""
    fork = Fork({"p": Path({"x": visit("any")}, branches)}, needs)
    means = [np.mean(responses(drive, {"f": fork}, [0.0] * 800, seed, any=None)) for seed in range(8)]
    assert agrees(means, sum(1 / (branches - done) for done in range(needs or branches)))


def test_rounds_add_up(drive):
    plan = {"r": Repeat({"a": visit("any", 0.5), "b": visit("any", 0.25)}, Exactly(4))}
    means = [np.mean(responses(drive, plan, [0.0] * 800, seed, any=None)) for seed in range(8)]
    assert agrees(means, 3.0)


def test_lognormal_times_have_the_mean_and_the_spread_asked_for():
    drawn = Lognormal(2.0, 0.7).draw(200_000, np.random.default_rng(0))
    assert np.mean(drawn) == pytest.approx(2.0, rel=0.01)
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(0.7, rel=0.02)
