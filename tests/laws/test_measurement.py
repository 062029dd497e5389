"""What is measured is what happened: nobody dropped, overload called by its name, dollars that add up."""

from dataclasses import replace
from fractions import Fraction
from math import ceil, inf

import numpy as np
import pytest

from mist.metrics import METRICS, percentile, unstable
from mist.price import PriceList
from mist.request import Request
from mist.scenario import Scenario, Window
from mist.simulate import serve
from mist.slo import SLO
from mist.window import Doomed
from mist.workload.traffic import Traffic

SERVICE = 1.0  # s
TOKENS = 100


@pytest.fixture(scope="module")
def one_server(make_pool, make_scenario, tiny, linear) -> Scenario:
    """Prompts of exactly a second, one at a time: M/D/1."""
    pool = make_pool(
        model=tiny, scheduler="continuous", limits={"token_budget": TOKENS, "max_running": 1},
        perf=linear(0.0, SERVICE / TOKENS),
    )  # fmt: skip
    return make_scenario(pool, slo=SLO(ttft_p99=1e6))


def constant(seed, n, output=1):
    times = np.sort(np.random.default_rng(seed).uniform(0, n, n))
    return Traffic(times, np.full(n, TOKENS), np.full(n, output))


# percentiles


def naive(values, q):
    """The smallest value that at least q % of the values do not exceed."""
    need = Fraction(str(q)) * len(values) / 100
    return min(v for v in values if sum(other <= v for other in values) >= need)


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    draw = np.random.default_rng(0)
    for n in [1, 2, 3, 9, 10, 11, 19, 20, 99, 100, 101, 200]:
        values = draw.integers(0, 50, n).astype(float).tolist()
        values[: n // 10] = [inf] * (n // 10)
        for q in (50, 90, 95, 99):
            assert percentile(values, q) == naive(values, q)


def test_a_percentile_is_exact_for_every_number_of_requests():
    for q in (50, 90, 95, 99):
        for n in [*range(1, 400), 1000, 2000, 4000, 10_000]:
            assert percentile(range(1, n + 1), q) == ceil(Fraction(q * n, 100))


def test_nobody_is_dropped_from_a_percentile(one_server):
    traffic = constant(1, 400)
    traffic.inputs[::20] = 10**10  # more than the model's context: refused
    traffic.outputs[:] = 2  # so that each has a TPOT
    for rate in (0.5, 1.2, 3.0):
        result = serve(one_server, traffic, rate)
        cohort = [r for r in result.requests if 0 <= r.id < 400]
        assert len(cohort) == 400 == result.window.requests.arrived
        assert result.window.requests.refused == 20
        for name in METRICS:
            unfinished = {"ttft": "first_token"}.get(name, "finished")
            values = [getattr(r, name) if getattr(r, unfinished) >= 0 else inf for r in cohort]
            assert values.count(inf) >= 20
            figures = result.latency[name]
            assert (figures.p50, figures.p90, figures.p95, figures.p99) == tuple(
                naive(values, q) for q in (50, 90, 95, 99)
            )
            assert figures.p99 == figures.mean == inf


def test_counts_add_up_in_every_result(one_server):
    for rate in (0.5, 0.95, 1.5, 5.0):
        result = serve(one_server, constant(2, 300), rate)
        for counts in (result.counts, result.window.requests):
            assert counts.arrived == counts.completed + counts.in_flight + counts.refused
        assert result.counts.arrived == len(result.requests)
        frame = result.requests_frame()
        assert frame["state"].value_counts().get("completed", 0) == result.counts.completed


def test_one_token_answers_have_no_tpot_and_a_limit_on_it_holds(one_server):
    assert percentile([], 99) == 0.0
    result = serve(replace(one_server, slo=SLO(tpot_p99=1e-9)), constant(5, 400), 0.1)
    assert result.latency["tpot"].p99 == 0.0
    assert result.verdict == "ok"


# stability


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.95])
def test_a_stable_load_is_not_called_unstable(rho, one_server):
    alarms = sum(serve(one_server, constant(seed, 1500), rho / SERVICE).verdict == "unstable" for seed in range(25))
    assert alarms == 0


@pytest.mark.parametrize("rho", [1.1, 1.3, 3.0])
def test_an_overload_is_called_unstable(rho, one_server):
    # Over n arrivals the backlog grows by (1 - 1 / rho) n; 2 % and two standard deviations of n pass as chance.
    n = 4000
    assert (1 - 1 / rho) * n > 0.02 * n + 2 * n**0.5 + 2 * n**0.5
    results = [serve(one_server, constant(seed, n), rho / SERVICE) for seed in range(6)]
    assert {result.verdict for result in results} == {"unstable"}
    assert all(result.tokens_per_dollar == 0 for result in results)
    assert all("the backlog grew" in result.reason for result in results)


def test_an_overloaded_engine_is_called_unstable_and_an_idle_one_is_not(
    scheduler_name, make_pool, make_scenario, drawn
):
    limits = {"token_budget": 1024, "max_running": 64}
    scenario = make_scenario(make_pool(hardware="l40s", scheduler=scheduler_name, limits=limits), slo=SLO())
    traffic = drawn(n=1000).traffic(3)
    saturated = serve(scenario, traffic, 100.0).requests_per_second
    assert serve(scenario, traffic, 3 * saturated).verdict == "unstable"
    assert serve(scenario, traffic, 0.5 * saturated).verdict == "ok"


def test_growth_within_chance_is_no_instability():
    assert not unstable(1000, 10, 10 + 20 + 63)
    assert unstable(1000, 10, 10 + 20 + 64)
    assert not unstable(1000, 500, 10)


# the window


def test_the_window_is_one_cycle_after_the_warm_up(one_server):
    traffic, rate = constant(5, 400), 0.5
    result = serve(one_server, traffic, rate)
    window = result.window
    assert window.end - window.start == pytest.approx(400 / rate)
    warm = [r for r in result.requests if r.id < 0]
    assert len(warm) == one_server.window.warmup * 400
    assert result.requests[0].arrived == 0.0
    assert all(r.arrived <= window.start for r in warm)
    cohort = [r for r in result.requests if 0 <= r.id < 400]
    assert all(window.start <= r.arrived <= window.end for r in cohort)
    np.testing.assert_allclose([r.arrived - window.start for r in cohort], traffic.times / rate, atol=1e-6)
    done = [r for r in result.requests if window.start < r.finished <= window.end]
    assert result.requests_per_second == pytest.approx(len(done) / (window.end - window.start))
    p99 = percentile([r.ttft for r in cohort], 99)
    assert result.latency["ttft"].p99 == p99 == result.slo["ttft_p99"].observed


def test_arrivals_go_on_until_the_last_of_the_window_has_ended(one_server):
    result = serve(one_server, constant(6, 400), 0.9)
    cohort = [r for r in result.requests if 0 <= r.id < 400]
    last = max(r.finished for r in cohort)
    assert last > 0
    assert all(r.finished >= 0 for r in cohort)
    assert result.requests[-1].id >= 400
    assert result.requests[-1].arrived >= last - 10 / 0.9


def test_a_window_without_warm_up_or_patience_is_measured_all_the_same(one_server, make_scenario):
    scenario = make_scenario(one_server.pools, slo=one_server.slo, window=Window(warmup=0.0, patience=0.0))
    result = serve(scenario, constant(7, 300), 0.7)
    assert result.window.requests.arrived == 300
    assert result.requests[0].id == 0
    assert any("warm-up of 0 s" in note for note in result.window.notes)


def test_throughput_of_a_stable_window_is_the_offered_load(scheduler_name, make_pool, make_scenario, drawn):
    limits = {"token_budget": 2048, "max_running": 128}
    traffic, rate = drawn(n=1500).traffic(4), 1.0
    result = serve(make_scenario(make_pool(scheduler=scheduler_name, limits=limits)), traffic, rate)
    assert result.window.requests.completed == 1500
    # A request or two in the system at one end and not at the other is all the difference there can be.
    backlog = max(result.window.backlog_start, result.window.backlog_end) + 1
    assert result.requests_per_second == pytest.approx(rate, rel=backlog / 1500)
    offered = rate * traffic.outputs.mean()
    assert result.output_tokens_per_second == pytest.approx(
        offered, rel=backlog * traffic.outputs.max() / traffic.outputs.sum()
    )


def test_short_windows_are_called_short(one_server):
    assert serve(one_server, constant(8, 1000), 0.5).window.long_enough
    short = serve(one_server, constant(8, 900), 0.5)
    assert not short.window.long_enough
    assert "it takes 1000 to tell, the window has 900" in short.window.notes[0]
    slow_answers = serve(one_server, constant(8, 1000, output=2), 50.0)
    assert not slow_answers.window.long_enough


# dollars


def test_tokens_per_dollar_is_tokens_within_slo_over_dollars(make_pool, make_scenario, tiny, linear):
    # Every second a prompt of 100 tokens at 5 ms each and 10 answers at 5 ms more: TTFT 0.5 s, half of them late.
    pool = make_pool(model=tiny, scheduler="continuous", perf=linear(0.0, 0.005), hardware="h100", tp=2, replicas=3)
    n = 2000
    lengths = np.where(np.arange(n) % 100 == 99, 150, 100)  # one in a hundred has a TTFT of 0.75 s
    traffic = Traffic(np.arange(n, dtype=float), lengths, np.full(n, 11))
    price = PriceList("list", "us", "here", "none", "2025-01-01", {"h100": 2.5})
    scenario = make_scenario(pool, slo=SLO(ttft_p99=0.6), price=price)
    result = serve(scenario, traffic, 1.0)
    assert result.verdict == "ok"
    assert result.attainment == 0.99
    assert result.dollars_per_hour == 6 * 2.5
    assert result.goodput_tokens_per_second == pytest.approx(0.99 * 11, rel=1e-3)
    assert result.output_tokens_per_second == pytest.approx(11, rel=1e-3)
    assert result.tokens_per_dollar == pytest.approx(0.99 * 11 * 3600 / 15, rel=1e-3)
    missed = serve(make_scenario(pool, slo=SLO(ttft_p99=0.4), price=price), traffic, 1.0)
    assert (missed.verdict, missed.tokens_per_dollar, missed.attainment) == ("slo_missed", 0.0, 0.0)
    assert missed.reason == "ttft_p99 0.5 s > 0.4 s"


# early verdicts


def test_a_percentile_is_doomed_exactly_when_it_will_be_missed():
    for q in (50, 90, 95, 99):
        slo = SLO(**{f"ttft_p{q}": 1.0})
        for n in [*range(1, 130), 200, 300, 1000]:
            allowed = n - ceil(Fraction(q * n, 100))
            for late in {0, max(allowed - 1, 0), allowed, allowed + 1} & set(range(n + 1)):
                requests = [Request(i, 0.0, 1, 1) for i in range(n)]
                for i, request in enumerate(requests):
                    request.first_token = request.finished = 2.0 if i < late else 0.5
                missed = percentile([r.ttft for r in requests], q) > 1.0
                assert Doomed(slo, n)(requests, 3.0) == missed, (q, n, late)


def test_an_early_stop_never_changes_a_verdict(make_pool, make_scenario, drawn):
    draw = np.random.default_rng(0)
    pools = [make_pool(), make_pool(scheduler="static"), make_pool(hardware="l40s", kv_blocks=400)]
    stopped = 0
    for case in range(60):
        metrics = {
            f"{metric}_p{draw.choice([50, 90, 95, 99])}": scale * draw.lognormal(0, 1)
            for metric, scale in (("ttft", 0.5), ("tpot", 0.03), ("e2e", 5.0))
            if draw.random() < 0.6
        }
        slo, n = SLO(**metrics), int(draw.choice([50, 100, 230]))
        scenario = make_scenario(pools[case % 3], slo=slo)
        traffic, rate = drawn(n=n).traffic(case), float(draw.choice([1.0, 4.0, 8.0, 16.0, 40.0]))
        whole = serve(scenario, traffic, rate)
        cut = serve(scenario, traffic, rate, Doomed(slo, n))
        assert (cut.verdict == "ok") == (whole.verdict == "ok")
        if whole.verdict == "ok":
            assert cut.to_json() == whole.to_json()
        stopped += cut.counts.arrived < whole.counts.arrived
    assert stopped > 10


def test_a_result_says_where_devices_without_links_were_taken_to_reach_each_other(make_pool, make_scenario, sheet):
    for hardware, tp, node, told in (
        ("l40s", 2, "isolated", True),
        ("l40s", 2, "pcie-box", False),
        ("l40s", 1, "isolated", False),
        ("h100", 2, "isolated", False),
        ("gh200", 2, "isolated", False),
    ):
        pool = make_pool(hardware=hardware, tp=tp, node=sheet("node", node))
        result = serve(make_scenario(pool), constant(7, 50), 0.7)
        assert any("has no links of its own" in note for note in result.window.notes) == told
