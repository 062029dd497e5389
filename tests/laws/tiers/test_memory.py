"""KV that has landed and waits is in the device's memory, like any other."""

from dataclasses import replace

import pytest

from mist.memory.staged import StagedPool, TieredPool
from mist.request import Request

BLOCK = 4


@pytest.mark.parametrize("layerwise", [False, True])
def test_what_has_landed_and_waits_takes_blocks(layerwise, tiered, drive, drawn_hits, linear):
    """One seat: the second request's 80 tokens lie in the device's memory until the first is done."""
    spec = tiered(
        drawn_hits(layerwise=layerwise), perf=linear(1.0), kv_blocks=400, limits={"max_running": 1, "token_budget": 500}
    )  # fmt: skip
    seen = []

    def look(run):
        (client,) = run.clients
        first, second = run.requests
        if second.visits and second.started < 0 and first.finished < 0:
            own = -(-(100 + int(run.kernel.now - first.first_token)) // BLOCK)
            seen.append(client.used_by_now - own)
            assert client.kv.held_for_waiting == 80 // BLOCK

    drive(spec, [(0.0, 100, 100), (5.0, 100, 100)], after_each=look)
    assert seen
    assert set(seen) <= {80 // BLOCK, 80 // BLOCK + 1}


def test_a_stored_cache_that_waits_is_held_and_not_evicted(tiered, drive, stored, linear, same, visit):
    """It was evicted from the device, is fetched again while another request runs, and survives what that one takes."""
    spec = tiered(
        stored(), perf=linear(1.0), kv_blocks=60, limits={"max_running": 1, "token_budget": 500}
    )  # fmt: skip
    contents = same(80)
    # the second shares nothing with the first and takes its memory; the fourth waits behind the third
    load = [(0.0, 100, 1), (10.0, 200, 20), (40.0, 100, 30), (45.0, 100, 1)]
    groups = [0, 1, 2, 0]
    run = drive(spec, load, contents=lambda i: replace(contents(i), group=groups[i]))
    last = run.requests[3]
    assert visit(last, "fetch_kv") is not None
    kv = run.clients[0].kv
    assert kv.wasted_tokens == 0
    assert kv.fetched_tokens + kv.use().hit_tokens == 80
    assert kv.fetched_tokens > 60


def waiting(kv, number, blocks):
    """A request of so many whole blocks and one token."""
    return Request(number, 0.0, blocks * kv.block_tokens + 1, 1)


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_where_there_is_no_room_it_waits_in_host_buffers(kind):
    kv = kind(10, BLOCK)
    first, second = waiting(kv, 1, 6), waiting(kv, 2, 6)
    kv.land(first, (0, 6))
    kv.land(second, (0, 6))
    assert (kv.used, kv.free, kv.held_for_waiting) == (6, 4, 6)
    assert kv.need(first, 25) == 1
    assert kv.need(second, 25) == 7
    kv.admit(first)
    assert (kv.used, kv.held_for_waiting, first.computed) == (6, 0, 24)
    kv.release(first)
    assert kv.hit(second) == 24
    kv.admit(second)
    assert (kv.used, second.computed, kv.waiting_tokens) == (6, 24, 0)


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_if_all_memory_is_held_for_those_who_wait_the_last_gives_way(kind):
    kv = kind(10, BLOCK)
    kv.land(waiting(kv, 1, 5), (0, 5))
    kv.land(waiting(kv, 2, 5), (0, 5))
    assert kv.free == 0
    assert kv.reclaim()
    assert (kv.free, kv.waiting_tokens) == (5, 40)  # still fetched: the copy is in host memory
    assert kv.reclaim()
    assert kv.free == 10
    assert not kv.reclaim()


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_nobody_gives_way_while_somebody_runs(kind):
    kv = kind(10, BLOCK)
    running = waiting(kv, 1, 2)
    kv.admit(running)
    kv.grow(running, 9)
    kv.land(waiting(kv, 2, 5), (0, 5))
    assert not kv.reclaim()


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_who_leaves_the_line_leaves_nothing_behind(kind):
    kv = kind(10, BLOCK)
    first, second = waiting(kv, 1, 6), waiting(kv, 2, 6)
    kv.land(first, (0, 6))
    kv.land(second, (0, 6))
    kv.drop(second)
    kv.drop(first)
    assert (kv.used, kv.waiting_tokens, kv.dropped_tokens) == (0, 0, 48)


def test_an_engine_whose_memory_waits_for_memory_goes_on(tiered, drive, drawn_hits, linear):
    """Three prompts of which two fill the device with what they have fetched; all are served."""
    spec = tiered(
        drawn_hits(reusable=160), perf=linear(1.0), kv_blocks=101, limits={"max_running": 4, "token_budget": 500}
    )  # fmt: skip
    run = drive(spec, [(0.0, 161, 60), (0.5, 161, 60), (0.5, 161, 200), (0.5, 161, 150)])
    assert all(r.finished > 0 for r in run.requests)
    assert all(c.kv.used == 0 and c.kv.waiting_tokens == 0 for c in run.clients)
