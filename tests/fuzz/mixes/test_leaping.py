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
from mist.memory.staged import StagedPool, TieredPool
from mist.memory.swap import SwapPool
from mist.policy import Scheduler
from mist.request import Request
from mist.spans import seconds
from mist.tiers.stores import StoredSource

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
        if pool.fetches is not None:
            assert_shelved(pool)


def assert_shelved(pool: Any) -> None:
    """Every block written is somewhere or gone, and so is every token fetched."""
    fetches, source, use = pool.fetches, pool.fetches.source, pool.fetches.use()
    assert use.fetched <= use.found <= use.requests
    if not isinstance(source, StoredSource):
        return
    for name in source.spec.tiers:
        shelves = source.every(name)
        for shelf in shelves:
            assert shelf.held + len(shelf._writing) == len(shelf) <= shelf.capacity
            assert shelf.written == shelf.held + shelf.evicted + shelf.expired + shelf.lost
        written = sum(shelf.written + len(shelf._writing) for shelf in shelves)
        assert use.tiers[name].written_bytes == pytest.approx(source.block_bytes * written, rel=1e-12)
    flying = sum(f.found.length * source.block_tokens for f in fetches._flying.values() if f.loading is None)
    waiting = sum(client.kv.waiting_tokens for client in pool.clients)
    used = sum(client.kv.fetched_tokens for client in pool.everybody)
    assert use.fetched_tokens == flying + waiting + used + use.wasted_tokens + use.lost_tokens


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
            own = [visit.stage for visit in request.visits if visit.stage != "fetch_kv"]
            assert own == (plan if request.output > 1 else plan[:1])
    for pool in cluster.pools.values():
        assert not any(pool.outstanding)
        for client in pool.clients:
            assert client.kv.used == client.waiting == 0
            assert not client.running
            assert all(lane.decodes.count == lane.decodes.cached == len(lane.takeover) == 0 for lane in lanes(client))
            if isinstance(client.kv, SwapPool):
                assert client.kv.host_used == 0
            if isinstance(client.kv, StagedPool | TieredPool):
                assert client.kv.held_for_waiting == client.kv.waiting_tokens == 0
                assert not getattr(client, "loading", {})
        assert pool.fetches is None or not pool.fetches.waiting()
    assert_energy(cluster)


def assert_in_order(request: Request) -> None:
    """One visit after the other, without a gap but for the wait for a replica that is up.

    A fetch may go on beside them, layer by layer.
    """
    assert request.visits[0].queued >= request.arrived
    for visit in request.visits:
        assert visit.queued <= visit.started <= visit.finished
    for before, after in pairwise(visit for visit in request.visits if visit.stage != "fetch_kv"):
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
        if pool.fetches is not None:
            one, other = pool.fetches.use(), twins.fetches.use()
            for count in ("requests", "found", "fetched", "fetched_tokens", "wasted_tokens", "lost_tokens"):
                assert getattr(one, count) == getattr(other, count)
        now = fast.cluster.kernel.now
        assert pool.joules(now) == pytest.approx(twins.joules(now), rel=1e-9)


@settings(max_examples=CASES)
@given(data=st.data())
def test_leaping_equals_stepping_and_nothing_is_lost(data: Any, mixes: Any, specs: Any, play: Any) -> None:
    examine(data.draw(mixes), specs, play)


@settings(max_examples=CASES // 4)
@given(data=st.data())
def test_leaping_equals_stepping_and_nothing_is_lost_behind_tiers(
    data: Any, tiered_mixes: Any, specs: Any, play: Any
) -> None:
    examine(data.draw(tiered_mixes), specs, play)


def examine(mix: Any, specs: Any, play: Any) -> None:
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
