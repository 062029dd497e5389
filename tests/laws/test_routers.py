"""The exam of every router in conf/: nobody is lost, no dead replica asked, equal load spread, blindness beaten.

Prompts are short (500 tokens) or long (2000 tokens), four to one, so that both kinds bring half of the work.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.errors import InputError
from mist.faults import DrawnFaults
from mist.policy import RouteView
from mist.request import Request
from mist.routers.heavy_light import HeavyLight
from mist.routers.prefix_aware import PrefixAware
from mist.routers.session_sticky import SessionSticky
from mist.routing import backlog, outstanding_tokens
from mist.workload.content import Turn

TOKEN = 1e-3  # s
STEP, CACHED = 1e-3 * 2**0.5, 1e-6 * 5**0.5
BLIND = ("random", "session_sticky")  # a session of its own for every request: as good as a draw


def two_kinds(seed, n, rate, answer=1):
    """Poisson arrivals; a fifth of the prompts is long."""
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rate, n)).tolist()
    return [(time, 2000 if long else 500, answer) for time, long in zip(times, draw.random(n) < 0.2, strict=True)]


@pytest.fixture
def servers(make_pool, tiny, linear):
    """Replicas that serve one prompt at a time, a millisecond per token."""

    def pool(router, replicas, **fields):
        limits = {"token_budget": 10**6, "max_running": 1}
        return make_pool(model=tiny, scheduler="continuous", limits=limits, perf=linear(0.0, TOKEN), kv_blocks=10**9,
                         router=router, replicas=replicas, **fields)  # fmt: skip

    return pool


@pytest.fixture
def engines(make_pool, tiny, linear):
    """Replicas that batch, cache prefixes and preempt."""

    def pool(router, replicas, blocks=700, **fields):
        fields = {"prefix_caching": True, "router": router, "replicas": replicas, "kv_blocks": blocks, **fields}
        limits, perf = {"token_budget": 256, "max_running": 16}, linear(STEP, 1e-5 * 3**0.5, CACHED)
        return make_pool(model=tiny, limits=limits, engine={"block_tokens": 4}, perf=perf, **fields)

    return pool


def turn(number):
    """Every request is a turn of one of seven sessions, behind one of two system prompts."""
    return Turn(number % 2, 40, 0, number % 7)


def waits(run):
    return np.array([request.visits[0].started - request.arrived for request in run.requests])


class View:
    """A RouteView with what a test says."""

    turn, session = 0, ("a",)

    def __init__(self, outstanding, cached=(), tokens=(), ttft=(), known=1000, replicas=None, draws=()):
        self.outstanding, self.request = outstanding, Request(0, 0.0, known, 1)
        self.replicas = range(len(outstanding)) if replicas is None else replicas
        self.cached, self.tokens, self.ttft = (lambda: cached), (lambda: tokens), (lambda: ttft)
        self.chance = iter(draws).__next__


# the exam


def test_nobody_is_lost_whatever_fails_and_no_dead_replica_is_asked(router_name, engines, drive, poisson):
    faults = DrawnFaults(0.4, 0.1, "migrate", 50)

    def alive(run):
        pool = run.cluster.pools["llm"]
        held = Counter(r.replica for r in run.requests if 0 <= r.arrived <= run.kernel.now and r.finished < 0)
        for index in range(len(pool.clients)):
            if pool.fleet.state(index) == "failed":
                assert held[index] == 0 == pool.outstanding[index]
        cluster = run.cluster
        assert cluster.arrived == cluster.completed + cluster.in_flight + cluster.refused + cluster.lost

    load = poisson(3, 200, 100.0, (30, 200), (1, 60))
    run = drive(engines(router_name, 3), load, contents=turn, faults=faults, after_each=alive, until=60.0)
    assert run.cluster.pools["llm"].fleet.failures > 3
    assert (run.cluster.in_flight, run.cluster.lost) == (0, 0)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), pp=st.sampled_from([1, 1, 2]))
def test_the_same_seed_routes_alike_and_leaping_changes_nothing(seed, pp, router_name, engines, drive, poisson):
    load = poisson(seed, 60, 300.0, (30, 200), (1, 60))
    pool = engines(router_name, 3, pp=pp, prefix_caching=pp == 1)
    fast, again, slow = (drive(pool, load, contents=turn, seed=seed, one_by_one=twin) for twin in (False, False, True))
    for name in ("replica", "first_token", "finished"):
        assert fast.column(name).tolist() == again.column(name).tolist()
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, err_msg=name)


def test_half_short_and_half_long_are_spread_evenly(router_name, servers, drive):
    n, replicas = 800, 4
    load = [(0.01 * i, 2000 if i % 2 else 500, 1) for i in range(n)]
    spread = np.bincount(drive(servers(router_name, replicas), load).column("replica"), minlength=replicas)
    chance = (n / replicas * (1 - 1 / replicas)) ** 0.5  # that of a binomial draw
    work = router_name in ("least_tokens", "slo_aware")  # they balance work, not heads
    within = 0.6 * n / replicas if work else (4 if router_name in BLIND else 1) * chance
    assert np.abs(spread - n / replicas).max() <= within


def test_no_router_waits_longer_than_chance_does(router_name, servers, drive):
    load = two_kinds(7, 8000, 0.85 * 4 / 0.8)
    random, own = (waits(drive(servers(name, 4), load)).mean() for name in ("random", router_name))
    assert own <= 1.15 * random if router_name in BLIND else own < 0.9 * random


def test_one_replica_leaves_no_choice(router_name, engines, drive, poisson):
    run = drive(engines(router_name, 1), poisson(1, 30, 100.0, (30, 100), (1, 30)), contents=turn)
    assert set(run.column("replica")) == {0}


# theory


def test_random_splits_into_m_m_1_and_two_choices_do_as_the_supermarket_model_says(servers, drive):
    """Mean time in system at load r: 1 / (1 - r) at random, sum of r^(2^i - 2) over i >= 1 for the better of two

    (Mitzenmacher 2001, corollary 1, queues without number; 32 of them here).
    """
    load, n, replicas = 0.8, 30_000, 32
    draw = np.random.default_rng(5)
    times = np.cumsum(draw.exponential(1 / (load * replicas), n)).tolist()
    prompts = [(time, int(size), 1) for time, size in zip(times, np.ceil(draw.exponential(1000, n)), strict=True)]
    theory = {"random": 1 / (1 - load), "power_of_two": sum(load ** (2.0**i - 2) for i in range(1, 12))}
    for name, expected in theory.items():
        requests = drive(servers(name, replicas), prompts).requests[n // 5 :]
        mean = np.mean([r.finished - r.arrived for r in requests])
        assert mean == pytest.approx(expected, rel=0.12 if name == "random" else 0.05)


# the policies, one by one


def test_sessions_stay_where_they_are_but_those_of_the_replica_that_goes():
    def homes(replicas):
        found = []
        for session in range(2000):
            view = View([0] * len(replicas), replicas=replicas)
            view.session = (0, session)
            found.append(replicas[SessionSticky().choose(view)])
        return np.array(found)

    four, three = homes([0, 1, 2, 3]), homes([0, 1, 3])
    assert np.array_equal(four[four != 2], three[four != 2])
    assert np.abs(np.bincount(four) - 500).max() < 4 * (2000 * 0.25 * 0.75) ** 0.5
    assert np.abs(np.bincount(three[four == 2], minlength=4)[[0, 1, 3]] - (four == 2).sum() / 3).max() < 50


def test_every_turn_of_a_session_is_served_by_one_replica(engines, drive, poisson):
    run = drive(engines("session_sticky", 3), poisson(1, 100, 50.0, (50, 100), (1, 30)), contents=turn)
    homes = {}
    for request in run.requests:
        homes.setdefault(request.id % 7, set()).add(request.replica)
    assert all(len(home) == 1 for home in homes.values())


def test_prefix_aware_goes_where_the_prefix_is_unless_little_is_cached_or_load_is_out_of_balance():
    router = PrefixAware(0.3, 8, 1.5)
    assert router.choose(View([5, 4, 3], cached=[0, 400, 0])) == 1
    assert router.choose(View([5, 4, 3], cached=[400, 400, 0])) == 1
    assert router.choose(View([5, 4, 3], cached=[0, 299, 0])) == 2
    assert router.choose(View([3, 12, 4], cached=[0, 1000, 0])) == 0
    assert router.choose(View([20, 29, 21], cached=[0, 1000, 0])) == 1


def test_long_prompts_have_replicas_of_their_own():
    router = HeavyLight(1000, 0.25)
    assert router.choose(View([9, 0, 0, 0], known=1001)) == 0
    assert router.choose(View([0, 2, 1, 3], known=1000)) == 2


def test_the_cached_prefix_a_router_sees_is_what_the_engine_then_hits(engines, drive, poisson, monkeypatch):
    seen = {}
    choose = PrefixAware.choose

    def watched(self, view: RouteView):
        place = choose(self, view)
        seen[view.request.id] = view.cached()[place]
        return place

    monkeypatch.setattr(PrefixAware, "choose", watched)
    load = [(10.0 * i, 60 + 5 * i, 4) for i in range(40)]
    run = drive(engines("prefix_aware", 3, blocks=5000), load, contents=turn)
    assert sum(client.kv.hit_tokens for client in run.clients) == sum(seen.values()) > 0


def test_outstanding_tokens_are_those_of_the_requests_one_by_one(engines, drive, poisson):
    """Without shared prefixes: to compute is known less computed; blocks in use are the rest, rounded up."""

    def counted(run):
        for client in run.clients:
            here = [r for r in run.requests if r.replica == run.clients.index(client) and r.finished < 0]
            waiting = [r for r in here if r.id not in client._running]
            prefilling = sum(r.known - r.computed for r in client.prefilling)
            assert backlog(client) == sum(r.known for r in waiting) + prefilling
            assert outstanding_tokens(client) == backlog(client) + 4 * client.used_by_now

    load = poisson(5, 80, 400.0, (30, 200), (1, 60))
    drive(engines("least_tokens", 2, blocks=300), load, after_each=counted)


def test_predicted_first_tokens_come_when_predicted_on_idle_replicas(servers, drive):
    """Nothing decodes, so the prediction is exact: whoever is sent elsewhere would have waited longer."""
    load = two_kinds(3, 500, 3.0)
    run = drive(servers("slo_aware", 4), load)
    free = [0.0] * 4
    for request in run.requests:
        soonest = max(min(free), request.arrived) + request.input * TOKEN
        free[request.replica] = max(free[request.replica], request.arrived) + request.input * TOKEN
        assert request.first_token == pytest.approx(free[request.replica])
        assert request.first_token <= soonest + 2000 * TOKEN  # what is in progress counts whole in the prediction


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixAware(1.5, 1, 2.0), "cache_threshold = 1.5"),
        (lambda: PrefixAware(0.5, -1, 2.0), "balance_absolute = -1"),
        (lambda: PrefixAware(0.5, 1, 0.5), "balance_relative = 0.5"),
        (lambda: HeavyLight(0, 0.5), "threshold = 0"),
        (lambda: HeavyLight(9, 1.0), "share = 1.0"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_prefix_aware_without_prefix_caching_is_refused(make_scenario, make_pool):
    with pytest.raises(InputError, match=r"pools\.llm\.router = prefix_aware: has nothing to look at"):
        make_scenario(make_pool(router="prefix_aware"))
