"""Random mixes of everything a cluster can be: leaping equals stepping, and nothing is lost or made up.

``make fuzz`` runs many more cases, from a new seed every time. A mix that the checks of a Scenario refuse must be
refused by an InputError; it is not served.
"""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.clients.llm import LLMClient
from mist.clients.pipeline import PipelineClient
from mist.cluster import Cluster
from mist.errors import InputError
from mist.faults import NO_FAULTS
from mist.memory.prefix import PrefixPool
from mist.memory.swap import SwapPool
from mist.policy import Scheduler
from mist.request import Request
from mist.spans import seconds

CASES = max(2000, settings().max_examples)


def lanes(client: Any) -> list[LLMClient]:
    return client.lanes if isinstance(client, PipelineClient) else [client]


def conserved(served: Any) -> None:
    cluster, now = served.cluster, served.cluster.kernel.now
    here = [r for r in served.requests if r.arrived <= now]
    states = Counter(
        "refused" if r.refused else "lost" if r.lost else "completed" if r.finished >= 0 else "in_flight" for r in here
    )
    counted = {name: getattr(cluster, name) for name in ("completed", "in_flight", "refused", "lost")}
    assert Counter(counted) == states
    assert cluster.arrived == len(here)
    for pool in cluster.pools.values():
        assert all(count >= 0 for count in pool.outstanding)
        for client in pool.clients:
            assert 0 <= client.kv.used <= client.kv.peak <= client.kv.total
            assert 0 <= client.busy_by_now <= now * (1 + 1e-9)
            for lane in lanes(client):
                assert len(lane.running) <= lane.scheduler.max_running
                assert lane.decodes.count <= len(lane.running)
            if isinstance(client.kv, SwapPool):
                assert 0 <= client.kv.host_used <= client.kv.host.blocks
                assert client.kv.blocks_out - client.kv.blocks_in == client.kv.host_used or pool.fleet is not None


def settled(served: Any, mix: Any) -> None:
    cluster = served.cluster
    assert (cluster.arrived, cluster.in_flight) == (len(mix.load), 0)
    for request in served.requests:
        assert request.retries <= mix.faults.retries
        if request.refused:
            assert request.visits == []
            continue
        assert_in_order(request)
        if request.lost:
            assert request.finished < 0
            continue
        assert (request.left, request.known) == (0, request.input + request.output)
        assert (request.computed, request.blocks, request.table) == (request.known - 1, 0, [])
        assert request.arrived < request.first_token <= request.finished
        if mix.faults is NO_FAULTS:
            plan = ["prefill", *(["handover"] if mix.link else []), "decode"]
            assert [visit.stage for visit in request.visits] == (plan if request.output > 1 else plan[:1])
    for pool in cluster.pools.values():
        assert not any(pool.outstanding)
        for client in pool.clients:
            assert client.kv.used == client.waiting == 0
            assert not client.running
            assert all(lane.decodes.count == lane.decodes.cached == len(lane.takeover) == 0 for lane in lanes(client))
            if isinstance(client.kv, SwapPool):
                assert client.kv.host_used == 0
    assert_energy(cluster)


def assert_in_order(request: Request) -> None:
    """One visit after the other, without a gap but for the wait for a replica that is up."""
    assert request.visits[0].queued >= request.arrived
    for visit in request.visits:
        assert visit.queued <= visit.started <= visit.finished
    for before, after in pairwise(request.visits):
        assert before.finished <= after.queued


def assert_energy(cluster: Cluster) -> None:
    """Nobody steps who is not paid for, and a device draws between idle and full power."""
    now = cluster.kernel.now
    for pool in cluster.pools.values():
        rented = now * len(pool.clients) if pool.fleet is None else seconds(pool.fleet.history(now))
        assert sum(client.busy for client in pool.everybody) <= rented * (1 + 1e-9)
        devices, hardware = pool.spec.replica.devices, pool.spec.hardware
        idle, full = (watts * devices * rented for watts in (hardware.idle_power, hardware.power))
        assert idle * (1 - 1e-9) <= pool.joules(now) <= full * (1 + 1e-9)


def equal(fast: Any, slow: Any) -> None:
    """Same decisions, and the same times but for rounding."""
    for mine, theirs in zip(fast.requests, slow.requests, strict=True):
        times = [(r.first_token, r.finished, *(t for v in r.visits for t in v[2:])) for r in (mine, theirs)]
        assert times[0] == pytest.approx(times[1], rel=1e-9, abs=0)
        assert [v[:2] for v in mine.visits] == [v[:2] for v in theirs.visits]
        for name in ("preemptions", "replica", "refused", "lost", "retries"):
            assert getattr(mine, name) == getattr(theirs, name)
    assert fast.drawn == pytest.approx(slow.drawn, rel=1e-9)
    for name, pool in fast.cluster.pools.items():
        twins = slow.cluster.pools[name]
        for client, twin in zip(pool.everybody, twins.everybody, strict=True):
            assert (client.steps, client.preemptions) == (twin.steps, twin.preemptions)
            assert client.busy == pytest.approx(twin.busy, rel=1e-9)
            if isinstance(client.kv, PrefixPool):
                assert client.kv.use() == twin.kv.use()
        now = fast.cluster.kernel.now
        assert pool.joules(now) == pytest.approx(twins.joules(now), rel=1e-9)


@settings(max_examples=CASES)
@given(data=st.data())
def test_leaping_equals_stepping_and_nothing_is_lost(data: Any, mixes: Any, specs: Any, play: Any) -> None:
    mix = data.draw(mixes)
    try:
        pools = specs(mix)
    except InputError:
        return
    fast = play(mix, pools, each=conserved)
    settled(fast, mix)
    slow = play(mix, pools, slow=True)
    settled(slow, mix)
    equal(fast, slow)


def test_the_mixes_are_of_every_scheduler(sheet: Any, scheduler_name: str) -> None:
    scheduler = build(Scheduler, sheet("scheduler", scheduler_name) | {"max_running": 3, "token_budget": 40})
    assert (scheduler.max_running, scheduler.token_budget) == (3, 40)
