"""The deployment sets what is measured, never the window: warm-up and patience follow from the run itself."""

from math import ceil, inf

import numpy as np
import pytest

from mist.metrics import Counts
from mist.scenario import Window
from mist.simulate import LONGEST_WARM_UP, serve
from mist.slo import SLO
from mist.steady import steady_notes
from mist.sweep.capacity import search
from mist.workload.traffic import Traffic

SEATS, STEP = 64, 0.01  # a server of so many seats, all of which take a step of so many seconds together


@pytest.fixture(scope="module")
def seats(make_pool, make_scenario, tiny, linear):
    """Answers of exactly their length in steps, whoever sits beside them: known capacity, seats over time."""
    limits = {"token_budget": 100_000, "max_running": SEATS}
    pool = make_pool(model=tiny, scheduler="continuous", limits=limits, perf=linear(STEP))

    def of(answer, window=None, **limit):
        slo = SLO(**(limit or {"ttft_p90": 0.5 * answer * STEP}))
        return make_scenario(pool, slo=slo, window=window or Window())

    return of


def traffic(n, answer, seed=0, spread=0.0):
    draw = np.random.default_rng(seed)
    outputs = np.full(n, answer)
    if spread:
        outputs = np.maximum(draw.lognormal(np.log(answer) - spread**2 / 2, spread, n).astype(np.int64), 2)
    return Traffic(np.sort(draw.uniform(0, n, n)), np.full(n, 10), outputs)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_capacity_does_not_depend_on_the_answers_over_the_window(seats, spread):
    # A window is 0.8 to 13 stays long; the old warm-up of 5 % of it found 0.4 to 0.9.
    shares = {}
    for n in (60, 200, 1000):
        for answer in (100, 1000):
            cycle = traffic(n, answer, spread=spread)
            found = search(seats(answer), {0: cycle}, inf)
            shares[n, answer] = found.rate * cycle.outputs.mean() * STEP / SEATS
    long = [share for (n, _), share in shares.items() if n == 1000]
    assert max(long) < 1.0
    # a window of n passes growth of 2 % and 2 / sqrt(n) as chance, and overload with it
    for (n, _), share in shares.items():
        assert min(long) * 0.92 < share < max(long) / (1 - 0.02 - 2 / n**0.5)


@pytest.mark.parametrize(("n", "answer"), [(100, 1000), (200, 2000), (400, 500)])
def test_what_is_offered_is_what_is_served_however_long_it_takes(seats, n, answer):
    cycle = traffic(n, answer)
    rate = 0.6 * SEATS / (answer * STEP)
    result = serve(seats(answer), cycle, rate)
    inside = abs(result.window.backlog_end - result.window.backlog_start) + 1
    assert result.verdict == "ok"
    assert result.output_tokens_per_second == pytest.approx(rate * answer, rel=inside / n)
    assert result.window.start >= answer * STEP


def test_a_warm_up_that_is_long_enough_is_left_as_it_is(seats):
    cycle = traffic(1000, 100)
    result = serve(seats(100, Window(warmup=0.3)), cycle, 20.0)
    assert result.requests[0].id == -300
    again = serve(seats(100, Window(warmup=0.3, patience=5.0)), cycle, 20.0)
    assert again.to_json() == result.to_json()


def test_a_warm_up_is_doubled_until_the_deployment_is_full(seats):
    result = serve(seats(1000), traffic(200, 1000), 4.0)
    warm = -result.requests[0].id
    assert warm in [10 * 2**k for k in range(1, 8)]
    assert warm / 4.0 >= 1.5 * 1000 * STEP > warm / 4.0 / 4


def test_an_overload_is_not_warmed_up_for_ever(seats):
    for rate in (200.0, 1000.0):
        cycle = traffic(400, 100)
        result = serve(seats(100), cycle, rate)
        assert result.verdict != "ok"
        assert -result.requests[0].id <= 4 * 400
    assert LONGEST_WARM_UP * 400 > 4 * 400


def test_no_warm_up_measures_an_empty_deployment(seats):
    result = serve(seats(1000, Window(warmup=0.0)), traffic(200, 1000), 4.0)
    assert result.requests[0].id == 0 and result.window.backlog_start <= 1


def test_answers_longer_than_the_window_are_waited_for(seats):
    n, answer = 50, 2000
    rate = 10 * n / (answer * STEP)  # a window of a tenth of an answer, and thousands of seats' worth of load
    cycle = traffic(n, answer)
    cluster = seats(answer, e2e_p99=2 * answer * STEP)
    rate = min(rate, 0.5 * SEATS / (answer * STEP))
    result = serve(cluster, cycle, rate)
    assert result.verdict == "ok" and result.window.requests.in_flight == 0
    short = serve(seats(answer, Window(patience=0.0), e2e_p99=2 * answer * STEP), cycle, rate)
    assert short.verdict == "slo_missed" and short.window.requests.in_flight > 0
    assert any("were waited for" in note for note in short.window.notes)


def test_patience_counts_the_longest_stay_where_a_cycle_is_shorter(seats):
    answer, n = 3000, 12
    outputs = np.full(n, 30)
    outputs[-1] = answer  # one long answer at the end of a cycle of a few seconds
    cycle = Traffic(np.arange(n) + 0.5, np.full(n, 10), outputs)
    result = serve(seats(30, ttft_p90=1.0), cycle, 4.0)
    assert result.latency["e2e"].p99 == pytest.approx(answer * STEP, rel=0.1)
    assert result.latency["e2e"].p99 > 2 * n / 4.0


def test_a_window_that_is_no_steady_state_says_so(seats):
    cycle = traffic(150, 1000)
    empty = serve(seats(1000, Window(warmup=0.0)), cycle, 1.5)
    assert any("no steady state" in note for note in empty.window.notes)
    assert not any("no steady state" in note for note in serve(seats(1000), cycle, 2.0).window.notes)
    (note,) = steady_notes(SLO(ttft_p99=60.0), Counts(1000, 1000, 0, 0), 15.0, (10, 40), 5.0)
    assert "shorter than ttft_p99 allows" in note


def test_the_warm_up_is_whole_requests(seats):
    assert -serve(seats(100), traffic(333, 100), 1.0).requests[0].id == ceil(0.05 * 333)
