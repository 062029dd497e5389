"""Tiers behind replicas that hand over, fail, come and go, draft, or stand in line behind one another."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.autoscalers.queue_length import QueueLength
from mist.errors import InputError
from mist.faults import DrawnFaults, GivenFaults, Outage
from mist.network import LinkSpec
from mist.plan.branches import Fork, Path
from mist.plan.stages import Generate, Pipeline
from mist.scaling import Autoscale
from mist.spans import Span
from mist.speculation import DraftModel, NGram
from mist.tiers.prices import mean_tier_dollars, tier_dollars
from mist.topology import ONE_LINK
from mist.workload.lengths import Uniform

BLOCK = 4
LINK = LinkSpec("wire", 1e8, 1e-4)
STEPS = (1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5)


def outage(at, lasting, replica=0, pool="llm", requests="migrate"):
    return GivenFaults({"one": Outage(at, lasting, replica, pool)}, requests, 1 if requests != "lose" else 0)


# prefill and decode


@pytest.mark.parametrize("decoded", [False, True])
def test_the_next_turn_finds_what_was_decoded_where_that_is_written(decoded, tiered, drive, stored, same, visit):
    """A turn of 40 tokens and an answer of 41, all of it in the prompt of the next one."""
    tiers = stored(shared_by=None, decoded=decoded)
    pools = {"prefill": tiered(tiers, role="prefill", kv_blocks=30), "decode": tiered(role="decode")}
    other = [(10.0, 100, 2)]  # takes the prefill device's memory meanwhile
    groups = [0, 1, 0]
    run = drive(
        pools, [(0.0, 40, 41), *other, (20.0, 101, 2)], LINK, contents=lambda i: replace(same(200)(i), group=groups[i])
    )  # fmt: skip
    use = run.cluster.pools["prefill"].fetches.use()
    on_device = run.cluster.pools["prefill"].clients[0].kv.use().hit_tokens
    assert use.fetched_tokens + on_device == (80 if decoded else 40)
    assert use.fetched_tokens > on_device
    assert visit(run.requests[2], "fetch_kv") is not None
    written = 40 + 100 + 100 + (40 if decoded else 0)  # the last turn's blocks are 25, of which some are there
    assert use.tiers["store"].written_bytes <= written * run.cluster.pools["prefill"].fetches.layout.bytes_per_token


def test_a_decode_pool_writes_each_block_once(tiered, replay, chat, stored, fetches):
    """Whoever computes it: nothing is sent that the store has or that is on its way."""
    pools = {
        "prefill": tiered(stored(shared_by=None, decoded=True, write_bandwidth=1e8), role="prefill"),
        "decode": tiered(role="decode", kv_blocks=1000),
    }
    run = replay(pools, chat().traffic(1), 0.05, LINK)
    source = fetches(run).source
    (shelf,) = source.shelves.values()
    assert shelf.written == shelf.held > 0
    assert fetches(run).use().tiers["store"].written_bytes == shelf.written * source.block_bytes


# failures


@pytest.mark.parametrize(("shared_by", "found"), [(1, 0), (None, 80)])
def test_a_store_of_one_replica_goes_with_it_and_a_shared_one_stays(shared_by, found, tiered, drive, stored, same):
    spec = tiered(stored(shared_by=shared_by))
    run = drive(spec, [(0.0, 100, 1), (10.0, 100, 1)], contents=same(80), faults=outage(5.0, 1.0))
    use = run.cluster.pools["llm"].fetches.use()
    assert use.fetched_tokens == found
    assert use.tiers["store"].lost == (0 if found else 25)


def test_who_was_fetching_is_sent_again_and_fetches_again(tiered, drive, drawn_hits, linear, visit):
    """The replica fails half-way through a fetch of 2 s; it is up after 3 s more."""
    spec = tiered(drawn_hits(read_bandwidth=80 * 256 / 2.0), perf=linear(1.0), limits={"token_budget": 500})
    assert spec.model.kv_bytes_per_token == 256
    run = drive(spec, [(0.0, 100, 1)], faults=outage(1.0, 3.0))
    (request,) = run.requests
    fetched = [v for v in request.visits if v.stage == "fetch_kv"]
    assert [(v.started, v.finished) for v in fetched] == [(0.0, 1.0), (4.0, pytest.approx(6.0))]
    assert request.finished == pytest.approx(7.0)
    assert request.retries == 1
    use = run.cluster.pools["llm"].fetches.use()
    assert (use.fetched, use.fetched_tokens, use.lost_tokens) == (2, 160, 80)


def test_a_cancelled_fetch_leaves_the_store_to_the_others(tiered, drive, drawn_hits, linear, visit):
    """Two replicas read from one store, 4 s each; one fails after 2 s, and the other has 3 of 4 s left to go alone."""
    spec = tiered(
        drawn_hits(read_bandwidth=80 * 256 / 2.0, shared_by=None), perf=linear(1.0), replicas=2,
        limits={"token_budget": 500},
    )  # fmt: skip
    run = drive(spec, [(0.0, 100, 1)] * 2, faults=outage(2.0, 100.0, requests="lose"))
    lost = [r for r in run.requests if r.lost]
    (served,) = (r for r in run.requests if not r.lost)
    assert len(lost) == 1
    assert visit(served, "fetch_kv").finished == pytest.approx(3.0)  # a quarter, a quarter, and half of it alone


@settings(max_examples=20)
@given(data=st.data())
def test_blocks_and_tokens_add_up_at_every_instant_of_a_life_with_failures(data, tiered, replay, chat, stored, linear):
    write, layerwise = data.draw(st.sampled_from(["through", "evicted"])), data.draw(st.booleans())
    tiers = stored(
        write=write, layerwise=layerwise, shared_by=data.draw(st.sampled_from([1, 2, None])), read_bandwidth=10**6.3,
        write_bandwidth=10**6.1, capacity=data.draw(st.sampled_from([None, 200 * 1024])),
    )  # fmt: skip
    spec = tiered(tiers, replicas=3, perf=linear(*STEPS), kv_blocks=data.draw(st.sampled_from([150, 400])))
    faults = DrawnFaults(0.3, 0.05, data.draw(st.sampled_from(["migrate", "restart"])), 100)

    def conserved(run):
        (pool,) = run.cluster.pools.values()
        use, source = pool.fetches.use(), pool.fetches.source
        for shelf in source.every("store"):
            assert shelf.written == shelf.held + shelf.evicted + shelf.expired + shelf.lost
        flying = sum(f.found.length * BLOCK for f in pool.fetches._flying.values() if f.loading is None)
        waiting = sum(client.kv.waiting_tokens for client in pool.clients)
        used = sum(client.kv.fetched_tokens for client in pool.everybody)
        assert use.fetched_tokens == flying + waiting + used + use.wasted_tokens + use.lost_tokens

    traffic = chat(requests=40).traffic(data.draw(st.integers(0, 99)))
    options = {"after_each": conserved, "faults": faults, "until": 20.0}
    run = replay(spec, traffic, 0.01, **options)
    assert all(r.finished >= 0 for r in run.requests)


# who comes and goes


def test_who_comes_back_begins_with_an_empty_store(tiered, drive, chat, stored, linear):
    scaling = Autoscale(QueueLength(1.0, 2.0), 0.05, 0.05, 0.0, 1, 4)
    spec = tiered(stored(), perf=linear(*STEPS), autoscaler=scaling, limits={"max_running": 4})
    traffic = chat(requests=120).traffic(3)
    times = 0.004 * traffic.times + 3.0 * (np.arange(len(traffic)) // 40)  # three bursts
    load = zip(times, traffic.inputs.tolist(), traffic.outputs.tolist(), strict=True)
    run = drive(spec, load, contents=partial(traffic.contents.of, 0), until=60.0)
    (pool,) = run.cluster.pools.values()
    assert all(r.finished >= 0 for r in run.requests)
    assert len(pool.clients) > 1
    use, source = pool.fetches.use(), pool.fetches.source
    assert use.fetched > 0
    assert pool.fetches.waiting() == 0
    assert use.tiers["store"].lost == sum(shelf.lost for _, shelf in source.gone) > 0
    assert not any(len(shelf) for _, shelf in source.gone)


def test_a_store_is_paid_for_while_a_replica_that_uses_it_is(stored):
    """Two replicas, of which the second is there for half the time."""
    spans = [Span(0, "up", 0.0, 10.0), Span(1, "up", 5.0, 10.0)]
    nodes = dict.fromkeys(range(2), 0)
    for shared_by, mean in ((1, 1.5), (2, 1.0), (None, 1.0)):
        tiers = stored(shared_by=shared_by, price=4.0)
        assert mean_tier_dollars(tiers, ONE_LINK, lambda _span: 0, spans, 0.0, 10.0) == pytest.approx(4.0 * mean)
        assert tier_dollars(tiers, ONE_LINK, nodes) == 4.0 * (2 if shared_by == 1 else 1)


def test_an_autoscaler_sees_those_who_wait_for_their_caches(tiered, drive, drawn_hits, linear):
    """Eight prompts whose caches take 10 s each: the queue is long, though no line is."""
    scaling = Autoscale(QueueLength(1.0, 2.0), 0.5, 0.5, 0.0, 1, 4)
    spec = tiered(drawn_hits(latency=10.0), perf=linear(0.1), autoscaler=scaling)
    run = drive(spec, [(0.01 * i, 100, 1) for i in range(8)], until=9.0)
    assert len(run.cluster.pools["llm"].clients) > 1


# nobody waits for it any more


@pytest.mark.parametrize("layerwise", [False, True])
def test_an_aborted_request_stops_fetching(layerwise, tiered, drive, drawn_hits, linear):
    spec = tiered(drawn_hits(latency=50.0, layerwise=layerwise, hit=0.5), perf=linear(0.1), replicas=4)
    race = Pipeline({"tries": Fork({"p": Path({"think": Generate(output=Uniform(1, 40))}, 4)}, 1), "end": Generate()})
    run = drive(spec, [(i * 1000.0, 100, 3) for i in range(20)], pipeline=race)
    assert run.cluster.completed == 20
    for client in run.clients:
        assert (client.kv.used, client.kv.waiting_tokens, client.loading) == (0, 0, {})
    (pool,) = run.cluster.pools.values()
    assert not any(pool.outstanding)
    assert pool.fetches.waiting() == 0


# drafting, and pipelines


def test_a_drafter_s_cache_is_fetched_beside_the_model_s(tiered, drive, stored, drawn_hits, tiny, visit):
    drafter = replace(tiny, name="drafter", layers=1)
    tier = {"read_bandwidth": 256 * 80}
    times = []
    for speculation in (NGram(tokens=2, acceptance=0.5), DraftModel(tokens=2, acceptance=0.5, model=drafter)):
        run = drive(tiered(drawn_hits(**tier), speculation=speculation), [(0.0, 100, 10)])
        seen = visit(run.requests[0], "fetch_kv")
        times.append(seen.finished - seen.started)
    assert times == pytest.approx([1.0, 1.5])  # two layers, and three


@pytest.mark.parametrize("layout", [{"pp": 2}, {"speculation": NGram(tokens=2, acceptance=0.5)}])
def test_alone_a_fetch_takes_what_it_takes_on_one_plain_stage(layout, tiered, drive, drawn_hits, visit):
    run = drive(tiered(drawn_hits(read_bandwidth=256 * 80 / 3.0, latency=0.5), **layout), [(0.0, 100, 10)])
    seen = visit(run.requests[0], "fetch_kv")
    assert seen.finished - seen.started == pytest.approx(3.5)


# what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preemption": "swap"}, "swap space is host memory of its own"),
        ({"pp": 2}, "layer-wise fetch into a pipeline"),
    ],
)
def test_what_tiers_do_not_go_with_is_refused_by_name(fields, words, tiered, drawn_hits):
    with pytest.raises(InputError, match=words):
        tiered(drawn_hits(layerwise=True), **fields)


def test_a_pool_that_decodes_itself_has_nothing_to_tell_of_what_is_decoded(tiered, stored):
    with pytest.raises(InputError, match="stores all it computes"):
        tiered(stored(decoded=True))


@pytest.mark.parametrize(
    ("tiers", "decode", "words"),
    [
        ({"decoded": True, "shared_by": 1}, {}, "no store is reached by decode replicas"),
        ({"decoded": True, "shared_by": None}, {"engine": {"block_tokens": 8}}, "blocks of 8 tokens"),
    ],
)
def test_a_decode_pool_that_could_not_write_is_refused(tiers, decode, words, tiered, stored, make_scenario):
    pools = {"prefill": tiered(stored(**tiers), role="prefill"), "decode": tiered(role="decode", **decode)}
    with pytest.raises(InputError, match=words):
        make_scenario(pools, link=LINK)
