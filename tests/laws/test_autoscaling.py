"""Replicas come and go: only those that are up serve, and all that were ordered are paid for."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.errors import InputError
from mist.pool import PoolSpec
from mist.scaling import Autoscale
from mist.simulate import serve
from mist.slo import SLO
from mist.spans import Span, mean_replicas, seconds
from mist.workload.traffic import Traffic

SERVING = ("up", "draining")


@pytest.fixture(scope="session", params=["target_utilization", "queue_length", "slo_attainment"])
def policy(request, sheet):
    """An autoscaler of conf/, with other bounds and delays."""

    def build_(**fields):
        return build(Autoscale, sheet("autoscaler", request.param) | fields)

    return build_


@pytest.mark.parametrize("n", [1, 3])
def test_without_leeway_it_is_the_fixed_pool_bit_for_bit(n, policy, make_pool, make_scenario, drawn):
    scenario = make_scenario(make_pool(replicas=n), drawn(n=300))
    scaled = replace(scenario.pools["llm"], autoscaler=policy(min_replicas=n, max_replicas=n))
    results = [serve(s, s.workload.traffic(0), 4.0) for s in (scenario, replace(scenario, pools={"llm": scaled}))]
    fixed, elastic = (result.to_json() for result in results)
    assert elastic["pools"]["llm"].pop("fleet")["mean_replicas"] == n
    assert fixed["pools"]["llm"].pop("fleet") is None
    assert fixed == elastic
    assert results[0].requests_frame().equals(results[1].requests_frame())


@settings(max_examples=30)
@given(data=st.data())
def test_only_replicas_that_are_up_serve_and_nobody_is_forgotten(data, policy, make_pool, drive, poisson, tiny, linear):
    low, seed = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1000))
    scaling = policy(
        min_replicas=low, max_replicas=4, startup=data.draw(st.sampled_from([0.0, 0.3, 2.0])),
        interval=data.draw(st.sampled_from([0.05, 0.5])), stabilization=data.draw(st.sampled_from([0.0, 1.0])),
    )  # fmt: skip
    pool = make_pool(
        model=tiny, perf=linear(1e-2), kv_blocks=60, limits={"token_budget": 64, "max_running": 8},
        engine={"block_tokens": 4}, replicas=max(low, 1), autoscaler=scaling,
    )  # fmt: skip
    run = drive(pool, poisson(seed, 60, 20.0, (1, 60), (1, 60)), until=200.0, good=lambda r: r.ttft < 0.05)
    fleet = run.cluster.pools["llm"].fleet
    spans = fleet.history()
    assert run.cluster.in_flight == 0
    for request in run.requests:
        for visit in request.visits:
            index = int(visit.place.removeprefix("llm/"))
            serving = [s for s in spans if s.replica == index and s.state in SERVING]
            first = max((s for s in serving if s.since <= visit.started), key=lambda s: s.since)
            lives = [s for s in serving if s.since <= visit.finished and s.until >= visit.started]
            assert first.until >= visit.started
            assert max(s.until for s in lives) >= visit.finished
    for one in spans:
        for other in spans:
            if one is not other and one.replica == other.replica:
                assert one.until <= other.since or other.until <= one.since
    ordered = [s for s in spans if s.state == "starting" and s.until < run.kernel.now]
    assert all(s.until - s.since == pytest.approx(scaling.startup) or s.until < s.since + scaling.startup
               for s in ordered)  # fmt: skip
    length = run.kernel.now
    assert mean_replicas(spans, 0.0, length) * length == pytest.approx(seconds(spans))
    assert seconds(spans) == pytest.approx(sum(s.until - s.since for s in spans))


@dataclass(frozen=True)
class Doubling:
    """Prompts at one rate, and at twice that rate from mid-cycle on."""

    rate: float | None = None
    n: int = 3000

    def own_rate(self) -> float:
        return 6.0

    def content(self) -> str:
        return ""

    def traffic(self, seed: int) -> Traffic:
        gaps = np.where(np.arange(self.n) < self.n // 3, 2.0, 1.0)
        starts = np.concatenate(([0.0], np.cumsum(gaps)[:-1])) * (self.n / gaps.sum())
        return Traffic(np.minimum(starts, np.nextafter(self.n, 0)), np.full(self.n, 300), np.full(self.n, 150))


def test_a_load_that_doubles_costs_less_than_its_peak(make_pool, make_scenario, sheet):
    scaling = build(
        Autoscale,
        sheet("autoscaler", "queue_length")
        | {"startup": 5.0, "interval": 2.0, "stabilization": 20.0, "max_replicas": 4}
        | {"policy": sheet("autoscaler", "queue_length")["policy"] | {"concurrency": 6.0}},
    )
    slo = SLO(ttft_p99=2.0)
    fixed = make_scenario(make_pool(replicas=4), Doubling(), slo=slo)
    elastic = replace(fixed, pools={"llm": make_pool(replicas=1, autoscaler=scaling)})
    peak, scaled = (serve(s, s.workload.traffic(0), 6.0) for s in (fixed, elastic))
    fleet = scaled.pools["llm"].fleet
    assert fleet.most > fleet.fewest
    assert scaled.verdict == peak.verdict == "ok"
    assert scaled.dollars_per_hour < peak.dollars_per_hour
    assert scaled.dollars_per_hour == pytest.approx(3.6 * fleet.mean_replicas)
    assert scaled.tokens_per_dollar > peak.tokens_per_dollar


def test_the_mean_is_over_time():
    spans = [Span(0, "up", 0.0, 10.0), Span(1, "starting", 4.0, 6.0), Span(1, "up", 6.0, 8.0)]
    assert mean_replicas(spans, 0.0, 10.0) == pytest.approx(1.4)
    assert mean_replicas(spans, 4.0, 8.0) == 2
    assert seconds(spans) == 14
    assert seconds(spans, "starting") == 2


def test_a_pool_begins_within_its_bounds(policy, make_pool):
    with pytest.raises(InputError, match="replicas = 9"):
        make_pool(replicas=9, autoscaler=policy())
    assert isinstance(make_pool(replicas=8, autoscaler=policy()), PoolSpec)
