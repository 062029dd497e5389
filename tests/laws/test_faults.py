"""Replicas fail and come back: no request is lost sight of, and what never fails costs nothing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.autoscalers.queue_length import QueueLength
from mist.errors import InputError
from mist.faults import NO_FAULTS, DrawnFaults, GivenFaults, Outage, missed_outages
from mist.handover import HandoverSpec
from mist.network import LinkSpec
from mist.request import Stage
from mist.roles import FixedRoles, QueueRatio, SwitchRoles
from mist.scaling import Autoscale, Fixed
from mist.simulate import serve
from mist.spans import seconds

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
END = 60.0  # s, long after the last request of every load below


@st.composite
def deployments(draw, make_pool, tiny, linear):
    """Pools, link and hand-over: one pool or two, much memory or little, autoscaled or not."""
    scaling = Autoscale(QueueLength(2.0, 4.0), 0.02, 0.05, 0.2, min_replicas=1, max_replicas=3)
    common = {
        "model": tiny, "scheduler": draw(st.sampled_from(["chunked_prefill", "continuous", "vllm_v1"])),
        "limits": {"token_budget": 64, "max_running": 31}, "perf": linear(STEP, TOKEN, CACHED),
        "kv_blocks": draw(st.sampled_from([40, 5000])), "engine": {"block_tokens": 4}, "router": "least_loaded",
        "autoscaler": draw(st.sampled_from([Fixed(), scaling])),
    }  # fmt: skip
    if draw(st.booleans()):
        return {"llm": make_pool(**common, replicas=draw(st.integers(1, 3)))}, None, HandoverSpec()
    pools = {role: make_pool(**common, role=role, replicas=draw(st.integers(1, 3))) for role in ("prefill", "decode")}
    return pools, LinkSpec("wire", 1e6, 1e-4), HandoverSpec(layerwise=draw(st.booleans()))


@st.composite
def drawn_faults(draw):
    fate = draw(st.sampled_from(["migrate", "restart", "lose"]))
    retries = 0 if fate == "lose" else draw(st.integers(1, 3))
    return DrawnFaults(draw(st.sampled_from([0.05, 0.3, 2.0])), draw(st.sampled_from([0.01, 0.2])), fate, retries)


def scaled(pools):
    return any(isinstance(pool.autoscaler, Autoscale) for pool in pools.values())


@settings(max_examples=80)
@given(data=st.data())
def test_arrived_is_completed_in_flight_refused_and_lost(data, make_pool, drive, poisson, tiny, linear):
    pools, link, handover = data.draw(deployments(make_pool, tiny, linear))
    faults, seed = data.draw(drawn_faults()), data.draw(st.integers(0, 1000))

    def conserved(run):
        here = [r for r in run.requests if r.arrived <= run.kernel.now]
        states = Counter(
            "refused" if r.refused else "lost" if r.lost else "completed" if r.finished >= 0 else "in flight"
            for r in here
        )
        c = run.cluster
        seen = {"completed": c.completed, "in flight": c.in_flight, "refused": c.refused, "lost": c.lost}
        assert Counter(seen) == states
        for client in run.clients:
            assert 0 <= client.kv.used <= client.kv.total

    load = poisson(seed, 40, 300.0, (1, 60), (1, 90))
    options = {"handover": handover, "faults": faults, "seed": seed, "until": END}
    if link is not None and sum(pool.replicas for pool in pools.values()) > 2 and not scaled(pools):
        options["roles"] = data.draw(st.sampled_from([FixedRoles(), SwitchRoles(QueueRatio(2.0, 1.0), 0.05, 0.01)]))
    run = drive(pools, load, link, after_each=conserved, **options)
    assert run.cluster.in_flight == 0
    for pool in run.cluster.pools.values():
        assert not any(pool.outstanding)
        for client in pool.clients:
            assert client.kv.used == client.decodes.count == client.waiting == len(client.running) == 0
    for request in run.requests:
        if request.finished >= 0:
            assert (request.left, request.known) == (0, request.input + request.output)
            assert request.computed == request.known - 1
        assert request.retries <= faults.retries
        assert bool(request.lost) == (request.finished < 0 and not request.refused)


@settings(max_examples=40)
@given(data=st.data())
def test_leaping_equals_stepping_under_faults(data, make_pool, drive, poisson, tiny, linear):
    pools, link, handover = data.draw(deployments(make_pool, tiny, linear))
    seed = data.draw(st.integers(0, 1000))
    load = poisson(seed, 30, data.draw(st.sampled_from([20.0, 300.0])), (1, 60), (1, 90))
    options = {"handover": handover, "faults": data.draw(drawn_faults()), "seed": seed, "until": END}
    fast, slow = drive(pools, load, link, **options), drive(pools, load, link, one_by_one=True, **options)
    for name in ("preemptions", "replica", "refused", "lost", "retries", "computed", "known", "left"):
        assert fast.column(name).tolist() == slow.column(name).tolist(), name
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0, err_msg=name)


def test_a_fault_that_never_happens_leaves_every_bit_as_it_is(make_pool, make_scenario, drawn):
    scenario = make_scenario(make_pool(replicas=2), drawn(n=300))
    faulty = replace(scenario, faults=DrawnFaults(1e15, 1.0, "migrate", 3))
    results = [serve(s, s.workload.traffic(0), 4.0).to_json() for s in (scenario, faulty)]
    assert results[1]["pools"]["llm"].pop("fleet") is not None
    assert results[0]["pools"]["llm"].pop("fleet") is None
    assert results[0] == results[1]


def test_availability_is_mtbf_over_mtbf_plus_mttr(make_pool, drive, tiny, linear):
    pool = make_pool(model=tiny, perf=linear(1e-3), replicas=4)
    run = drive(pool, [(0.0, 5, 5)], faults=DrawnFaults(100.0, 25.0, "migrate", 3), until=1e5)
    spans = run.cluster.pools["llm"].fleet.history()
    up, failed = seconds(spans, "up"), seconds(spans, "failed")
    assert up / (up + failed) == pytest.approx(0.8, abs=0.015)
    assert up + failed == pytest.approx(4e5, rel=1e-3)


@pytest.mark.parametrize(("fate", "known"), [("migrate", 19), ("restart", 10), ("lose", None)])
def test_a_request_goes_on_begins_again_or_is_lost(fate, known, make_pool, drive, tiny, linear):
    """The first token comes with step 1, so that nine more are there when the replica fails in step 11."""
    faults = GivenFaults({"one": Outage(10.5, 100.0)}, fate, 0 if fate == "lose" else 1)
    run = drive(make_pool(model=tiny, perf=linear(1.0), replicas=2), [(0.0, 10, 30)], faults=faults)
    (request,) = run.requests
    if known is None:
        assert request.lost == "llm/0 failed"
        assert (request.first_token, request.finished) == (-1, -1)
        return
    assert (request.replica, request.retries) == (1, 1)
    kept = 10 if fate == "migrate" else 0
    assert request.finished == 10.5 + 30 - kept
    assert request.first_token == (1.0 if kept else 11.5)
    assert [(v.stage, v.place) for v in request.visits][:2] == [(Stage.PREFILL, "llm/0"), (Stage.DECODE, "llm/0")]


def test_a_request_waits_while_nobody_is_up(make_pool, drive, tiny, linear):
    faults = GivenFaults({"one": Outage(1.0, 50.0)}, "migrate", 1)
    run = drive(make_pool(model=tiny, perf=linear(0.1)), [(2.0, 10, 1)], faults=faults)
    assert run.requests[0].finished == pytest.approx(51.1)


def test_the_cache_of_a_failed_decode_replica_is_fetched_again_while_its_source_holds_it(
    make_pool, drive, tiny, linear
):
    pools = {
        role: make_pool(model=tiny, perf=linear(1.0), role=role, replicas=n)
        for role, n in (("prefill", 1), ("decode", 2))
    }
    size = 100 * tiny.kv_bytes_per_token
    faults = GivenFaults({"one": Outage(2.0, 100.0, 0, "decode")}, "lose", 0)
    run = drive(pools, [(0.0, 100, 3)], LinkSpec("wire", size / 4, 0.0), faults=faults)
    (request,) = run.requests  # prefill 1 s, 1 s of a transfer in vain, 4 s of another, two steps
    assert (request.replica, request.retries, request.finished) == (1, 0, 8.0)


@pytest.mark.parametrize(
    ("outage", "field"),
    [
        (Outage(1.0, 1.0, 2), "outage.one.replica"),
        (Outage(1.0, 1.0, 0, "decode"), "outage.one.pool"),
    ],
)
def test_an_outage_of_nobody_is_refused(outage, field, make_pool, make_scenario):
    with pytest.raises(InputError) as caught:
        make_scenario(make_pool(replicas=2), faults=GivenFaults({"one": outage}, "migrate", 1))
    assert caught.value.field == f"faults.{field}"


def test_an_outage_outside_the_window_is_told():
    given = GivenFaults({"early": Outage(1.0, 4.0), "in": Outage(6.0, 9.0), "late": Outage(20.0, 1.0)}, "migrate", 1)
    notes = ["outage early is over before the window begins", "outage late begins after the window"]
    assert missed_outages(given, 5.0, 20.0) == notes
    assert missed_outages(NO_FAULTS, 5.0, 20.0) == []
