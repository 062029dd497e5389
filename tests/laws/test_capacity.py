"""Capacity is the largest rate that holds, to 2 %, and nothing where none does."""

from math import inf

import numpy as np
import pytest

from mist.errors import DeadlineExceeded, UnmeetableSLO
from mist.simulate import serve
from mist.slo import SLO
from mist.sweep.capacity import COARSE, LEAST, PRECISION, search
from mist.workload.traffic import Traffic


@pytest.fixture(scope="module")
def case(make_pool, make_scenario, drawn):
    """A scenario by name, and traffic for it."""
    pools = {
        "chunked": make_pool(),
        "prefill first, little memory": make_pool(scheduler="continuous", kv_blocks=2000),
        # of an engine slow enough that batches begin at about the same rates again and again
        "static": make_pool(scheduler="static", engine={"step_overhead": "4 ms", "mixed_overhead": "2 ms"}),
        "two replicas": make_pool(hardware="l40s", replicas=2, router="least_loaded"),
    }
    limits = {
        "chunked": SLO(ttft_p99=0.45, tpot_p99=0.04),
        "prefill first, little memory": SLO(ttft_p99=2.0, e2e_p90=10.0),
        "static": SLO(ttft_p90=4.0),
        "two replicas": SLO(ttft_p95=1.0, tpot_p50=0.06),
    }

    def of(name):
        return make_scenario(pools[name], slo=limits[name]), drawn(n=300).traffic(11)

    return of


CASES = ["chunked", "prefill first, little memory", "static", "two replicas"]


@pytest.mark.parametrize("name", CASES)
def test_the_capacity_holds_and_two_percent_more_does_not(name, case):
    scenario, traffic = case(name)
    found = search(scenario, {0: traffic}, inf)
    assert found.rate > 0
    best = found.results[0]
    assert serve(scenario, traffic, found.rate).to_json() == best.to_json()  # a full run, not one cut short
    assert best.verdict == "ok"
    assert serve(scenario, traffic, found.rate * PRECISION).verdict != "ok"
    assert found.probes < 25


@pytest.mark.parametrize("name", CASES)
def test_the_capacity_is_that_of_a_fine_scan(name, case):
    scenario, traffic = case(name)
    found = search(scenario, {0: traffic}, inf).rate
    grid = 1.005
    rates = found * grid ** np.arange(-30.5, 31)
    holds = [serve(scenario, traffic, rate).verdict == "ok" for rate in rates]
    first_failure = rates[holds.index(False)]
    last_success = rates[len(holds) - 1 - holds[::-1].index(True)]
    # Batches form anew at every rate, so verdicts may alternate near the edge; the answer lies within it.
    assert first_failure / (PRECISION * grid) <= found <= last_success * grid
    assert last_success / first_failure < 1.05


def test_a_first_search_on_fewer_requests_does_not_change_the_question(make_pool, make_scenario, drawn):
    traffic = drawn(n=COARSE * LEAST, answer=30.0).traffic(5)
    scenario = make_scenario(make_pool(), slo=SLO(ttft_p99=0.6))
    best = search(scenario, {0: traffic}, inf).results[0]
    assert best.window.requests.arrived == COARSE * LEAST
    assert serve(scenario, traffic, best.rate).verdict == "ok"
    assert serve(scenario, traffic, best.rate * PRECISION).verdict != "ok"


def test_a_design_that_fits_nowhere_is_an_answer(make_pool, make_scenario, drawn):
    scenario = make_scenario(make_pool(model="llama-3.1-70b", hardware="l40s", tp=2))
    found = search(scenario, {seed: drawn(n=50).traffic(seed) for seed in (0, 1)}, inf)
    assert (found.rate, found.tokens_per_dollar, found.probes) == (0.0, 0.0, 1)
    assert found.worst.verdict == "infeasible"
    assert found.worst.reason.startswith("llama-3.1-70b needs 141 GB of weights, 2 x l40s hold 96 GB")
    assert found.to_json()["reason"] == found.worst.reason


def test_a_limit_nobody_can_meet_is_refused_by_name(make_pool, make_scenario, drawn):
    scenario = make_scenario(make_pool(), slo=SLO(ttft_p99=1.0, tpot_p99=1e-4))
    with pytest.raises(UnmeetableSLO, match=r"slo\.tpot_p99 = 0\.0001 s: no request can meet it"):
        search(scenario, {0: drawn(n=200).traffic(0)}, inf)


def test_a_limit_that_some_requests_meet_alone_is_no_capacity_and_no_error(make_pool, make_scenario, drawn):
    traffic = drawn(n=200).traffic(0)
    long_first = Traffic(traffic.times, np.where(np.arange(200) < 60, 9000, 50), traffic.outputs)
    scenario = make_scenario(make_pool(), slo=SLO(ttft_p99=0.1))
    found = search(scenario, {0: long_first}, inf)
    assert found.rate == 0.0
    assert found.worst.reason.startswith("even when idle, ttft_p99")


def test_each_seed_has_its_own_capacity_and_the_spread_is_shown(make_pool, make_scenario, drawn):
    found = search(make_scenario(make_pool()), {seed: drawn(n=200).traffic(seed) for seed in (0, 1, 2)}, inf)
    assert len(found.by_seed) == 3
    assert found.rate == pytest.approx(np.mean(list(found.by_seed.values())))
    data = found.to_json()
    assert data["spread"]["capacity"] == [min(found.by_seed.values()), max(found.by_seed.values())]
    assert data["spread"]["capacity"][0] < data["spread"]["capacity"][1]
    assert found.worst.rate == data["spread"]["capacity"][0]


@pytest.mark.parametrize("requests", [1, 3, 10])
def test_the_search_ends_however_little_there_is_to_measure(requests, make_pool, make_scenario):
    traffic = Traffic(np.arange(requests, dtype=float), np.full(requests, 100), np.full(requests, 10))
    for slo in (SLO(), SLO(ttft_p99=1.0)):
        assert search(make_scenario(make_pool(), slo=slo), {0: traffic}, 20.0).rate > 0


def test_a_search_past_its_deadline_is_broken_off(make_pool, make_scenario, drawn):
    with pytest.raises(DeadlineExceeded, match=r"no verdict after 1e-09 s"):
        search(make_scenario(make_pool()), {0: drawn(n=200).traffic(0)}, 1e-9)
