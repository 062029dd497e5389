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


def land(kv, request, blocks):
    kv.staged[request.id] = 0, blocks
    kv.hold(request)


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_where_there_is_no_room_it_waits_in_host_buffers(kind):
    kv = kind(10, BLOCK)
    first, second = waiting(kv, 1, 6), waiting(kv, 2, 6)
    land(kv, first, 6)
    land(kv, second, 6)
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
    kv = kind(12, BLOCK)
    land(kv, waiting(kv, 1, 5), 5)
    land(kv, waiting(kv, 2, 5), 5)
    assert (kv.free, kv.holders) == (2, 2)
    assert kv.reclaim()
    assert (kv.free, kv.waiting_tokens) == (7, 40)  # still fetched: the copy is in host memory
    assert kv.reclaim()
    assert kv.free == 12
    assert not kv.reclaim()


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_nobody_gives_way_while_somebody_runs(kind):
    kv = kind(10, BLOCK)
    running = waiting(kv, 1, 2)
    kv.admit(running)
    kv.grow(running, 9)
    land(kv, waiting(kv, 2, 5), 5)
    assert kv.holders == 1
    assert not kv.reclaim()


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_who_leaves_the_line_leaves_nothing_behind(kind):
    kv = kind(10, BLOCK)
    first, second = waiting(kv, 1, 6), waiting(kv, 2, 6)
    land(kv, first, 6)
    land(kv, second, 6)
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


@pytest.mark.parametrize("kind", [StagedPool, TieredPool])
def test_who_lands_later_leaves_those_before_it_the_rest_of_their_prompts(kind):
    kv = kind(12, BLOCK)
    first, second = Request(1, 0.0, 31, 1), waiting(kv, 2, 4)
    land(kv, first, 5)
    land(kv, second, 4)  # 4 held and 1 to come would leave 2 of the 3 that the first still needs
    assert (kv.used, kv.holders) == (5, 1)


def test_nobody_takes_memory_before_one_who_waits_without(tiered, drive, drawn_hits, linear):
    """One seat; the second finds nothing and waits; the third has landed behind it, in host buffers."""
    spec = tiered(
        drawn_hits(hit=0.5), perf=linear(1.0), kv_blocks=400, limits={"max_running": 1, "token_budget": 500}
    )  # fmt: skip

    seen = []

    def look(run):
        (client,) = run.clients
        held = client.kv._landed
        line = [request for request in run.requests if request in client.line and request.id not in held]
        assert not any(request.id < holder for request in line for holder in held)
        seen.append((len(held), len(line)))

    drive(spec, [(0.5 * i, 100, 10) for i in range(12)], after_each=look)
    assert max(held for held, _ in seen) > 0
    assert max(line for _, line in seen) > 1
