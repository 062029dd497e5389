"""Engines of different models on the same devices: they share time, memory and the bill."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.colocation import Colocation
from mist.errors import InputError
from mist.faults import NO_FAULTS, DrawnFaults, GivenFaults, Outage
from mist.handover import HandoverSpec
from mist.network import LinkSpec
from mist.node import NodeSpec
from mist.plan.routing import ByClass, Way
from mist.plan.stages import Generate, Pipeline
from mist.request import RequestClass
from mist.roles import QueueRatio, SwitchRoles
from mist.speculation import NGram
from mist.topology import Topology
from mist.workload.lengths import Fixed

KINDS = (RequestClass("a"), RequestClass("b"))
EITHER = Pipeline({"k": ByClass({name: Way({"x": Generate(name)}) for name in "ab"})})
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5


@pytest.fixture
def pool(make_pool, tiny, linear):
    def make(perf=None, **fields):
        engine = {"block_tokens": 4, "memory_utilization": 0.4} | fields.pop("engine", {})
        limits = {"token_budget": 64, "max_running": 6}
        perf = perf or linear(STEP, TOKEN, CACHED)
        return make_pool(model=tiny, perf=perf, limits=limits, engine=engine, kv_blocks=60, **fields)

    return make


@pytest.fixture
def serve(drive):
    """Two pools, ``a`` and ``b``, whose requests come in turn, on the same devices."""

    def go(pools, arrivals, shares=None, turns="sharing", **options):
        colocated = {"gpu": Colocation(shares or {"a": 1.0, "b": 1.0}, turns)}
        options = {"pipeline": EITHER, "kinds": KINDS, "cycle": len(arrivals), "colocated": colocated, **options}
        return drive(pools, arrivals, **options)

    return go


def load(n, rate, seed=0):
    draw = np.random.default_rng(seed)
    lengths = zip(draw.integers(1, 60, n).tolist(), draw.integers(1, 40, n).tolist(), strict=True)
    return [(t, *pair) for t, pair in zip(np.cumsum(draw.exponential(1 / rate, n)).tolist(), lengths, strict=True)]


def test_beside_an_idle_peer_an_engine_is_as_if_alone(serve, drive, pool):
    """To the last bit, though it is there."""
    arrivals, pools = load(80, 100.0), {"a": pool(), "b": pool()}
    only = Pipeline({"x": Generate("a")})
    pair = serve(pools, arrivals, pipeline=only, kinds=KINDS[:1])
    alone = drive(pools, arrivals, pipeline=only, cycle=80)
    for name in ("first_token", "finished", "preemptions"):
        assert pair.column(name).tolist() == alone.column(name).tolist()
    one, other = pair.clients[0], alone.clients[0]
    assert (one.steps, one.leaps, one.busy) == (other.steps, other.leaps, other.busy)


@pytest.mark.parametrize(("shares", "half"), [((1.0, 1.0), 0.5), ((3.0, 1.0), 0.75)])
def test_two_that_are_always_busy_get_their_shares(serve, pool, linear, shares, half):
    """Whatever their steps are like: b's are seven times as long."""
    pools = {"a": pool(linear(1e-3)), "b": pool(linear(7e-3))}
    arrivals = [(0.0, 4, 200), (0.0, 4, 200)]
    run = serve(pools, arrivals, dict(zip("ab", shares, strict=True)), until=0.2)
    a, b = run.clients
    assert a.busy == pytest.approx(half * 0.2, abs=0.002)
    assert b.busy == pytest.approx((1 - half) * 0.2, abs=0.007)  # less than a step


def test_a_step_slows_down_when_a_peer_begins_and_hurries_when_it_ends(serve, pool, linear):
    """A step of 3 s from 0 on, one of 1 s from 1 s on: they share from 1 s to 3 s, and the first ends at 4 s."""
    pools = {"a": pool(linear(3.0)), "b": pool(linear(1.0))}
    run = serve(pools, [(0.0, 4, 1), (1.0, 4, 1)])
    assert run.column("finished").tolist() == [4.0, 3.0]


def test_with_priority_the_others_wait_and_then_go_on(serve, pool, linear):
    pools = {"a": pool(linear(3.0)), "b": pool(linear(1.0))}
    run = serve(pools, [(0.0, 4, 1), (1.0, 4, 1)], {"a": 1.0, "b": 2.0}, "priority")
    assert run.column("finished").tolist() == [4.0, 2.0]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    rate=st.sampled_from([20.0, 150.0, 2000.0]),
    turns=st.sampled_from(["sharing", "priority"]),
    caching=st.booleans(),
)
def test_leaping_equals_stepping_and_everybody_ends(seed, rate, turns, caching, serve, pool, linear):
    slower = linear(STEP * 3**0.5, TOKEN * 7**0.5, CACHED)
    pools = {"a": pool(prefix_caching=caching), "b": pool(slower)}
    arrivals, shares = load(24, rate, seed), {"a": 1.0, "b": 1.7}
    fast, slow = (serve(pools, arrivals, shares, turns, one_by_one=one) for one in (False, True))
    for run in (fast, slow):
        assert (run.cluster.completed, run.cluster.in_flight) == (24, 0)
        assert not any(client.kv.used for client in run.clients)
    np.testing.assert_allclose(fast.column("finished"), slow.column("finished"), rtol=1e-9)
    np.testing.assert_allclose(fast.column("first_token"), slow.column("first_token"), rtol=1e-9)
    assert [c.steps for c in fast.clients] == [c.steps for c in slow.clients]
    assert [c.busy for c in fast.clients] == pytest.approx([c.busy for c in slow.clients])
    assert sum(c.leaps for c in fast.clients) <= sum(c.leaps for c in slow.clients)
    assert sum(client.busy for client in fast.clients) <= fast.kernel.now * (1 + 1e-9)


def pair(pool, **decode):
    """A prefill and a decode pool of one model."""
    return {"a": pool(role="prefill"), "b": pool(role="decode", **decode)}


@pytest.fixture
def hand_over(drive):
    """Serve one model by pools ``a`` and ``b``, which share their devices or do not."""

    def go(pools, arrivals, colocated=True, **options):
        shared = {"gpu": Colocation({"a": 1.0, "b": 1.7})} if colocated else None
        return drive(pools, arrivals, LinkSpec("wire", 1e7, 1e-4), colocated=shared, **options)

    return go


def test_prompts_and_answers_on_the_same_devices_one_at_a_time_are_as_if_apart(hand_over, pool):
    arrivals = [(2.0 * n, 30, 20) for n in range(10)]
    together, apart = (hand_over(pair(pool), arrivals, colocated) for colocated in (True, False))
    assert together.column("finished").tolist() == apart.column("finished").tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("faults", [NO_FAULTS, DrawnFaults(0.05, 0.01, "migrate", 1000)])
@pytest.mark.parametrize("drafts", [0, 2])
def test_leaping_equals_stepping_whatever_shares_the_devices(seed, faults, drafts, hand_over, serve, pool):
    """Disaggregated pools, a pool that speculates, devices that fail."""
    speculation = {"speculation": NGram(tokens=drafts, acceptance=0.6)} if drafts else {}
    arrivals, options = load(24, 200.0, seed), {"faults": faults, "seed": seed, "until": 60.0}
    for go, pools in ((hand_over, pair(pool, **speculation)), (serve, {"a": pool(), "b": pool(**speculation)})):
        fast, slow = (go(pools, arrivals, one_by_one=one, **options) for one in (False, True))
        assert (fast.cluster.completed, fast.cluster.in_flight) == (24, 0)
        np.testing.assert_allclose(fast.column("finished"), slow.column("finished"), rtol=1e-9)
        assert [r.retries for r in fast.requests] == [r.retries for r in slow.requests]
        busy = [sum(c.busy_by_now for c in p.everybody) for run in (fast, slow) for p in run.cluster.pools.values()]
        assert busy[:2] == pytest.approx(busy[2:], rel=1e-9)
        assert not any(client.kv.used for client in fast.clients)


def test_devices_fail_with_all_that_is_on_them(serve, pool, linear):
    """A step of 3 s from 0 on, one of 1 s from 1 s on; both break off at 2 s and begin anew at 3 s, side by side."""
    pools = {"a": pool(linear(3.0)), "b": pool(linear(1.0))}
    faults = GivenFaults({"first": Outage(2.0, 1.0, 0, "a")}, "migrate", 3)
    run = serve(pools, [(0.0, 4, 1), (1.0, 4, 1)], faults=faults)
    assert run.column("finished").tolist() == [7.0, 5.0]
    spent = [[client.busy for client in pool.everybody] for pool in run.cluster.pools.values()]
    assert spent == [[3.0, 1.5], [1.0, 0.5]]  # what was had of the device, not the time that went by


def test_drawn_failures_of_shared_devices_are_the_same_for_all_on_them(serve, pool):
    run = serve({"a": pool(), "b": pool()}, load(40, 50.0), faults=DrawnFaults(0.1, 0.02, "migrate", 99), until=5.0)
    a, b = (pool.fleet.history(5.0) for pool in run.cluster.pools.values())
    assert a == b and len(a) > 20


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"faults": GivenFaults({"x": Outage(1.0, 1.0, 0, "b")}, "lose", 0)}, r"outage\.x\.pool = b: .* name that"),
        ({"handover": HandoverSpec(layerwise=True)}, r"handover\.layerwise = true: .* whole caches"),
        ({"network": Topology("flat")}, "network = flat: .* have one place"),
        ({"roles": SwitchRoles(QueueRatio(2.0, 1.0), 1.0, 0.0)}, "keep their places and roles"),
    ],
)
def test_what_does_not_go_with_shared_devices_is_refused_by_name(fields, told, make_scenario, pool):
    pools = {n: replace(p, replicas=2, node=NodeSpec("box", 2, 1e9)) for n, p in pair(pool).items()}
    with pytest.raises(InputError, match=told):
        make_scenario(
            pools, link=LinkSpec("wire", 1e7, 1e-4), colocated={"gpu": Colocation({"a": 1.0, "b": 1.0})}, **fields
        )


def test_the_devices_are_paid_for_once_and_stand_idle_once(make_pool, make_scenario, drawn):
    from mist.simulate import serve

    half = make_pool(engine={"memory_utilization": 0.45})
    fields = {"pipeline": Pipeline({"x": Generate("a", keeps=False), "y": Generate("b", output=Fixed(1))})}
    workload = drawn(n=60)
    apart = make_scenario({"a": half, "b": half}, workload, **fields)
    together = replace(apart, colocated={"gpu": Colocation({"a": 1.0, "b": 1.0})})
    one, two = (serve(s, workload.traffic(0), 0.5) for s in (together, apart))
    assert one.dollars_per_hour == together.dollars_per_hour == two.dollars_per_hour / 2 == 3.6
    assert sum(pool.dollars_per_hour for pool in one.pools.values()) == 3.6
    idle = half.hardware.idle_power
    assert two.watts - one.watts == pytest.approx(idle, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "place", "told"),
    [
        ([{}, {}], {"a": 1.0, "b": 1.0}, r"colocated\.gpu\.shares = a 90%, b 90%: takes more memory"),
        ([{}, {}], {"a": 1.0, "c": 1.0}, r"colocated\.gpu\.shares\.c = 1\.0: no such pool.*a, b"),
        ([{"tp": 2}, {}], {"a": 1.0, "b": 1.0}, "same hardware, devices and replicas"),
        ([{"pp": 2}, {}], {"a": 1.0, "b": 1.0}, r"colocated\.gpu\.shares\.a = pp=2: is not modelled"),
        ([{"kv_blocks": 10_000_000}, {"kv_blocks": 100}], {"a": 1.0, "b": 1.0}, "takes more memory than there is"),
    ],
)
def test_what_cannot_stand_on_the_same_devices_is_refused_by_name(make_pool, make_scenario, fields, place, told):
    pools = dict(zip("ab", (make_pool(**each) for each in fields), strict=True))
    pipeline = Pipeline({"x": Generate("a"), "y": Generate("b")})
    with pytest.raises(InputError, match=told):
        make_scenario(pools, pipeline=pipeline, colocated={"gpu": Colocation(place)})


def test_a_colocation_without_effect_is_refused():
    for shares, turns in (
        ({"a": 1.0}, "sharing"),
        ({"a": 1.0, "b": 0.0}, "sharing"),
        ({"a": 1.0, "b": 1.0}, "priority"),
    ):
        with pytest.raises(InputError):
            Colocation(shares, turns)
