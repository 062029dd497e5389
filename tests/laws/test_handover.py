"""Prefill and decode in pools of their own: what crosses the link, when, and to whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.errors import InputError
from mist.handover import HandoverSpec
from mist.network import LinkSpec
from mist.request import Stage
from mist.roles import QueueRatio, SwitchRoles
from mist.simulate import serve
from mist.spans import seconds

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
LAYERWISE = HandoverSpec(layerwise=True)


@pytest.fixture
def pools(make_pool, tiny, linear):
    """A prefill and a decode pool of so many replicas; steps of 1 s."""

    def make(prefill=1, decode=1, **fields):
        common = {"model": tiny, "perf": linear(1.0), "engine": {"block_tokens": 4}, **fields}
        return {
            role: make_pool(**common, role=role, replicas=replicas)
            for role, replicas in (("prefill", prefill), ("decode", decode))
        }

    return make


def visit(request, stage):
    return next(v for v in request.visits if v.stage is stage)


def test_a_faster_decode_device_changes_tpot_and_not_prefill(make_pool, drive):
    wire = LinkSpec("wire", 5e10, 1e-6)
    runs = [
        drive(
            {role: make_pool(role=role, hardware=device) for role, device in (("prefill", "a100"), ("decode", decode))},
            [(2.0 * i, 500, 100) for i in range(5)],
            wire,
        )
        for decode in ("a100", "h200")
    ]
    for slow, fast in zip(runs[0].requests, runs[1].requests, strict=True):
        assert fast.tpot < 0.7 * slow.tpot
        assert fast.first_token == slow.first_token
        assert visit(fast, Stage.HANDOVER)[2:] == visit(slow, Stage.HANDOVER)[2:]


@given(input_=st.integers(1, 3000), bandwidth=st.floats(1e3, 1e12), latency=st.floats(0, 1e-2))
def test_halving_the_bandwidth_adds_exactly_the_time_of_the_transfer(input_, bandwidth, latency, pools, drive, tiny):
    load = [(0.0, input_, 3)]
    limits = {"token_budget": 4000, "max_running": 4}
    whole, half = (
        drive(pools(limits=limits), load, LinkSpec("wire", b, latency)).requests[0] for b in (bandwidth, bandwidth / 2)
    )
    transfer = input_ * tiny.kv_bytes_per_token / bandwidth
    assert half.finished - whole.finished == pytest.approx(transfer, rel=1e-6, abs=1e-9)
    assert half.first_token == whole.first_token


@given(input_=st.integers(1, 3000), bandwidth=st.floats(1e3, 1e12), latency=st.floats(0, 1e-2))
def test_layer_by_layer_at_least_one_layer_remains_after_prefill(input_, bandwidth, latency, pools, drive, tiny):
    limits = {"token_budget": 4000, "max_running": 4}
    link = LinkSpec("wire", bandwidth, latency)
    (request,) = drive(pools(limits=limits), [(0.0, input_, 3)], link, handover=LAYERWISE).requests
    whole, compute = input_ * tiny.kv_bytes_per_token / bandwidth, 1.0
    remains = max(whole / tiny.layers, whole - compute * (1 - 1 / tiny.layers))
    moved = visit(request, Stage.HANDOVER)
    assert moved.queued == request.first_token == compute
    assert moved.finished - moved.queued == pytest.approx(remains + latency, rel=1e-9, abs=1e-12)
    (after,) = drive(pools(limits=limits), [(0.0, input_, 3)], link).requests
    assert request.finished <= after.finished


@pytest.mark.parametrize("blocks", [40, 5000])
@settings(max_examples=25)
@given(data=st.data())
def test_layer_by_layer_everybody_is_served_and_leaping_changes_nothing(
    data, blocks, scheduler_name, pools, drive, poisson, linear
):
    load = poisson(data.draw(st.integers(0, 1000)), 40, data.draw(st.sampled_from([30.0, 3000.0])), (1, 80), (1, 70))
    made = pools(
        data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), scheduler=scheduler_name, kv_blocks=blocks,
        limits={"token_budget": 64, "max_running": 31}, perf=linear(STEP, TOKEN, CACHED), router="least_loaded",
    )  # fmt: skip
    link = LinkSpec("wire", data.draw(st.sampled_from([1e5, 1e7])), 1e-4)

    def bounded(run):
        for client in run.clients:
            assert 0 <= client.kv.used <= client.kv.total

    fast = drive(made, load, link, handover=LAYERWISE, after_each=bounded)
    slow = drive(made, load, link, handover=LAYERWISE, one_by_one=True)
    assert fast.cluster.in_flight == 0
    for client in fast.clients:
        assert client.kv.used == client.waiting == client.expected == 0
    assert not any(any(pool.outstanding) for pool in fast.cluster.pools.values())
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0)


def test_decode_memory_that_is_full_slows_prefill_down_and_stops_nothing(pools, drive, poisson, linear):
    load = poisson(5, 150, 3000.0, (20, 60), (20, 90))
    link = LinkSpec("wire", 1e8, 1e-4)
    ends = []
    for blocks in (40, 80, 5000):
        made = pools(perf=linear(STEP, TOKEN, CACHED), limits={"token_budget": 64, "max_running": 31}, kv_blocks=blocks)
        run = drive(made, load, link)
        assert run.cluster.in_flight == 0
        assert all(client.kv.peak <= blocks for client in run.clients)
        ends.append(max(run.column("finished")))
    assert ends[0] > ends[1] > ends[2]


@pytest.mark.parametrize("router", ["round_robin", "least_loaded"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_a_local_hand_over_stays_in_its_group(router, layerwise, pools, drive, poisson, linear):
    made = pools(2, 4, perf=linear(STEP, TOKEN, CACHED), router=router)
    local = HandoverSpec("local", 2, layerwise)
    run = drive(made, poisson(1, 80, 100.0, (5, 50), (5, 50)), LinkSpec("wire", 1e8, 0.0), handover=local)
    used = set()
    for request in run.requests:
        source, sink = (int(visit(request, s).place.partition("/")[2]) for s in (Stage.PREFILL, Stage.DECODE))
        assert source % 2 == sink % 2
        used.add(sink)
    assert used == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("handover", "message"),
    [
        (lambda: HandoverSpec("local", 3), "handover.groups = 3: prefill has 2 replicas"),
        (lambda: HandoverSpec("local"), "groups = 1: local"),
        (lambda: HandoverSpec("global", 2), "groups = 2: has no effect"),
    ],
)
def test_groups_that_mean_nothing_are_refused(handover, message, make_scenario, pools):
    with pytest.raises(InputError, match=message):
        make_scenario(pools(2, 4), link=LinkSpec("wire", 1e8, 0.0), handover=handover())


def test_a_single_pool_hands_nothing_over(make_scenario, make_pool):
    with pytest.raises(InputError, match="no effect"):
        make_scenario(make_pool(), handover=LAYERWISE)
    with pytest.raises(InputError, match="no effect"):
        make_scenario(make_pool(), roles=SwitchRoles(QueueRatio(2.0, 1.0), 1.0, 0.0))


SWITCHING = SwitchRoles(QueueRatio(3.0, 2.0), interval=0.05, delay=0.02)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), layerwise=st.booleans(), prompts=st.booleans())
def test_replicas_change_roles_and_none_is_lost(seed, layerwise, prompts, pools, drive, poisson, linear):
    lengths = ((100, 200), (1, 4)) if prompts else ((1, 10), (60, 120))
    made = pools(
        2, 2, perf=linear(STEP, 10 * TOKEN, CACHED), limits={"token_budget": 64, "max_running": 16},
        router="least_loaded", kv_blocks=100,
    )  # fmt: skip
    load = poisson(seed, 150, 300.0, *lengths)
    spec = HandoverSpec(layerwise=layerwise)
    run = drive(made, load, LinkSpec("wire", 1e8, 0.0), handover=spec, roles=SWITCHING, until=100.0)
    assert run.cluster.in_flight == 0
    fleets = {name: pool.fleet for name, pool in run.cluster.pools.items()}
    paid = sum(seconds(fleet.history()) for fleet in fleets.values())
    assert paid == pytest.approx(4 * run.kernel.now)
    assert all(fleet.count("up", "starting", "draining") >= 1 for fleet in fleets.values())
    if prompts:
        assert fleets["prefill"].joined > 0
    for request in run.requests:
        for v in request.visits:
            name, _, index = v.place.partition("/")
            if name in fleets:
                spans = [s for s in fleets[name].history() if s.replica == int(index) and s.state in ("up", "draining")]
                assert any(s.since <= v.started <= s.until for s in spans)
                assert any(s.since <= v.finished <= s.until for s in spans)


def test_changing_roles_serves_a_load_of_prompts_sooner(pools, drive, poisson, linear):
    made = pools(
        1, 3, perf=linear(STEP, 10 * TOKEN, CACHED), limits={"token_budget": 64, "max_running": 16},
        router="least_loaded",
    )  # fmt: skip
    load, link = poisson(1, 300, 100.0, (100, 200), (1, 4)), LinkSpec("wire", 1e8, 0.0)
    fixed = drive(made, load, link)
    switching = drive(made, load, link, roles=SWITCHING, until=200.0)
    assert switching.column("finished").max() < 0.7 * fixed.column("finished").max()


def test_pools_of_different_devices_keep_their_roles(make_scenario, make_pool):
    pools = {role: make_pool(role=role, hardware=hw) for role, hw in (("prefill", "h100"), ("decode", "a100"))}
    with pytest.raises(InputError, match="same hardware"):
        make_scenario(pools, link=LinkSpec("wire", 1e10, 0.0), roles=SWITCHING)


def test_switching_is_in_the_result(make_scenario, make_pool, drawn):
    pools = {role: make_pool(role=role, replicas=2, hardware="l40s") for role in ("prefill", "decode")}
    roles = SwitchRoles(QueueRatio(2.0, 1.0), 1.0, 0.01)
    scenario = make_scenario(pools, drawn(n=400), link=LinkSpec("wire", 1e10, 0.0), roles=roles)
    result = serve(scenario, scenario.workload.traffic(0), 30.0)
    assert sum(pool.fleet.joined for pool in result.pools.values()) > 0
    assert result.dollars_per_hour == pytest.approx(4 * 3.6)
