"""KV tiers behind the device: what is found there, what it takes to fetch it, and what becomes of the blocks."""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.errors import InputError
from mist.fetching.always import Always
from mist.fetching.faster import Faster
from mist.fetching.never import Never
from mist.memory.shelf import Shelf
from mist.network import LinkSpec
from mist.request import Stage
from mist.simulate import serve
from mist.tiers.spec import NO_TIERS, DrawnTier, DrawnTiers, StoredTier, StoredTiers
from mist.workload.lengths import Fixed, Uniform
from mist.workload.sessions import ChatSessions
from mist.workload.trace import Trace

PATIENT = 1e6  # seconds between requests: each is alone
BLOCK = 4  # tokens


def chat(**changes):
    fields = {"turns": Uniform(1, 6), "messages": Uniform(1, 30), "answers": Uniform(1, 40), "system": 50}
    return ChatSessions(**{"requests": 150, "groups": 3, "apart": 20.0, **fields, **changes})


def stored(capacity=None, *, fetch=None, layerwise=False, **fields):
    """One tier, of ``capacity`` bytes."""
    fields = {"read_bandwidth": 1e12, "write_bandwidth": 1e12, "latency": 0.0, "write": "through", **fields}
    return StoredTiers({"dram": StoredTier(capacity=capacity, **fields)}, fetch or Always(), layerwise)


def two(first, second, **fields):
    """A tier of ``first`` bytes and behind it one of ``second``, which take what leaves the level above."""
    fields = {"read_bandwidth": 1e11, "write_bandwidth": 1e11, "latency": 1e-4, **fields}
    tiers = {name: StoredTier(capacity=size, **fields) for name, size in (("dram", first), ("nvme", second))}
    return StoredTiers(tiers, Always())


@pytest.fixture
def tiered(make_pool, tiny, linear):
    """A pool with these tiers, of as few KV blocks as its longest request needs."""

    def make(tiers, **fields):
        fields = {"perf": linear(1e-6), "kv_blocks": 200, "prefix_caching": not isinstance(tiers, DrawnTiers), **fields}
        engine = {"block_tokens": BLOCK, **fields.pop("engine", {})}
        return make_pool(model=tiny, engine=engine, tiers=tiers, **fields)

    return make


@pytest.fixture
def replay(drive):
    def run(pool, traffic, gap=PATIENT, **options):
        columns = (traffic.times * gap, traffic.inputs.tolist(), traffic.outputs.tolist())
        contents = partial(traffic.contents.of, 0)
        return drive(pool, zip(*columns, strict=True), contents=contents, **options)

    return run


def fetches(run):
    return next(iter(run.cluster.pools.values())).fetches


def visit(request, stage):
    return next((v for v in request.visits if v.stage is stage), None)


def found(run):
    """Tokens that were not computed: from the device, and from tiers."""
    return sum(c.kv.use().hit_tokens for c in run.clients), sum(c.kv.fetched_tokens for c in run.clients)


# drawn hits


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), hits=st.tuples(*[st.floats(0.1, 0.9)] * 3), layers=st.booleans())
def test_alone_the_mean_fetch_is_the_equation_of_the_paper(seed, hits, layers, tiered, drive, tiny):
    """T = sum_i [prod_{j<i} (1 - h_j)] h_i (L_i + S / B_i), and what no tier has is computed again (MIST,
    arXiv:2504.09775): exactly with the shares of the hits drawn, and with their probabilities but for chance."""
    latencies, bandwidths, n, prompt, reused = (0.01, 0.5, 3.0), (5e8, 2e6, 1e6), 1500, 101, 80
    tiers = {
        str(i): DrawnTier(hit=hit, read_bandwidth=bandwidth, latency=latency)
        for i, (hit, bandwidth, latency) in enumerate(zip(hits, bandwidths, latencies, strict=True))
    }
    spec = tiered(DrawnTiers(tiers, Fixed(reused), Always()), limits={"token_budget": 1000})
    run = drive(spec, [(i * PATIENT, prompt, 1) for i in range(n)])
    size = reused * tiny.kv_bytes_per_token
    each = [latency + size / bandwidth for latency, bandwidth in zip(latencies, bandwidths, strict=True)]
    times = [v.finished - v.queued if (v := visit(r, Stage.FETCH_KV)) else 0.0 for r in run.requests]
    places = Counter(v.place if (v := visit(r, Stage.FETCH_KV)) else "miss" for r in run.requests)
    # a clock of 1e9 s tells seconds to 1e-7
    assert np.mean(times) == pytest.approx(sum(places[str(i)] / n * each[i] for i in range(3)), abs=1e-6)
    reach = np.cumprod([1.0, *(1 - hit for hit in hits)])
    shares = [*(reach[i] * hits[i] for i in range(3)), reach[3]]
    for name, share in zip(("0", "1", "2", "miss"), shares, strict=True):
        assert places[name] / n == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n) + 1e-9)
    expected = sum(share * time for share, time in zip(shares, each, strict=False))
    spread = np.std(times) / np.sqrt(n)
    assert np.mean(times) == pytest.approx(expected, abs=5 * spread)


def test_a_drawn_hit_is_not_computed_and_a_miss_is(tiered, drive, linear):
    tiers = {"store": DrawnTier(hit=0.5, read_bandwidth=1e12, latency=1.0)}
    spec = tiered(
        DrawnTiers(tiers, Fixed(80), Always()), perf=linear(0.0, token=1.0), limits={"token_budget": 1000}
    )  # fmt: skip
    run = drive(spec, [(i * PATIENT, 100, 1) for i in range(100)])
    took = {round(r.ttft - (1.0 if visit(r, Stage.FETCH_KV) else 0.0), 3) for r in run.requests}
    assert took == {20.0, 100.0}


# stored blocks


@pytest.mark.parametrize("write", ["through", "evicted"])
def test_endless_stores_behind_a_small_device_reach_the_ideal_hit_rate(write, tiered, replay):
    traffic = chat().traffic(5)
    ideal = found(replay(tiered(stored(), kv_blocks=2**30), traffic))
    run = replay(tiered(stored(write=write)), traffic)
    device, tier = found(run)
    assert ideal[1] == 0 < tier
    assert device + tier == ideal[0]
    assert fetches(run).use().wasted_tokens == 0


def test_a_bounded_store_finds_less_the_smaller_it_is(tiered, replay, tiny):
    traffic, block = chat().traffic(5), BLOCK * tiny.kv_bytes_per_token
    sizes = [0, 100, 400, 1600, None]
    hits = [sum(found(replay(tiered(stored(size and size * block)), traffic))) for size in sizes]
    assert hits == sorted(hits)
    assert hits[0] < hits[2] < hits[-1]


def test_nothing_is_computed_twice_that_was_fetched(tiered, replay, linear):
    """Steps cost a second a token: engines work exactly on what was neither on the device nor fetched."""
    traffic = chat().traffic(3)
    run = replay(tiered(stored(), perf=linear(0.0, token=1.0)), traffic, gap=3000.0)
    computed = int((traffic.inputs + traffic.outputs - 1).sum()) - sum(found(run))
    assert sum(client.busy for client in run.clients) == pytest.approx(computed, rel=1e-9)
    assert not run.column("preemptions").any()
    assert sum(found(run)) > 0


@settings(max_examples=15)
@given(data=st.data())
def test_every_block_written_is_held_evicted_or_expired(data, tiered, replay, tiny):
    block = BLOCK * tiny.kv_bytes_per_token
    eviction = data.draw(st.sampled_from(["lru", "lfu", "ttl"]))
    fields = {"eviction": eviction, "ttl": 0.05 if eviction == "ttl" else None}
    fields["write"] = data.draw(st.sampled_from(["through", "evicted"]))
    sizes = [data.draw(st.sampled_from([0, 30, 300, 3000])) * block for _ in range(2)]
    spec = tiered(two(*sizes, **fields, shared_by=data.draw(st.sampled_from([1, 2, None]))), replicas=3)

    def conserved(run):
        source = fetches(run).source
        for (name, _), shelf in source.shelves.items():
            assert shelf.held + len(shelf._writing) == len(shelf) <= shelf.capacity
            assert shelf.written == shelf.held + shelf.evicted + shelf.expired
            assert shelf.capacity * block <= source.spec.tiers[name].capacity

    run = replay(spec, chat(requests=60).traffic(data.draw(st.integers(0, 99))), gap=1e-3, after_each=conserved)
    use, source = fetches(run).use(), fetches(run).source
    assert all(r.finished >= 0 for r in run.requests)
    assert all(client.kv.used == 0 and not client.kv.staged for client in run.clients)
    for name, tier in use.tiers.items():
        assert tier.written_bytes == block * sum(s.written for (n, _), s in source.shelves.items() if n == name)
    assert sum(tier.hit_tokens for tier in use.tiers.values()) == use.fetched_tokens
    assert use.fetched_tokens == sum(c.kv.fetched_tokens for c in run.clients) + use.wasted_tokens


@settings(max_examples=15)
@given(data=st.data())
def test_leaping_with_tiers_equals_stepping_one_by_one(data, tiered, replay, linear, tiny):
    size = data.draw(st.sampled_from([30, 300, 3000])) * BLOCK * tiny.kv_bytes_per_token
    fields = {"write": data.draw(st.sampled_from(["through", "evicted"])), "read_bandwidth": 10**8.5}
    spec = tiered(
        StoredTiers({"dram": StoredTier(capacity=size, write_bandwidth=10**8.3, latency=1e-4 * 2**0.5, **fields)},
                    data.draw(st.sampled_from([Always(), Faster()])), data.draw(st.booleans())),
        perf=linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5), kv_blocks=data.draw(st.sampled_from([120, 300])),
    )  # fmt: skip
    traffic = chat(requests=40).traffic(data.draw(st.integers(0, 99)))
    gap = data.draw(st.sampled_from([1e-3, 0.02, 0.3]))
    fast, slow = replay(spec, traffic, gap), replay(spec, traffic, gap, one_by_one=True)
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-9, atol=0, err_msg=name)
    one, other = fetches(fast).use(), fetches(slow).use()
    assert (one.found, one.fetched, one.fetched_tokens) == (other.found, other.fetched, other.fetched_tokens)


def test_a_store_that_nobody_reads_changes_no_time(tiered, replay):
    traffic = chat().traffic(2)
    plain = replay(tiered(stored(fetch=Never())), traffic, gap=1e-3)
    off = replay(replace(tiered(stored()), tiers=NO_TIERS), traffic, gap=1e-3)
    for name in ("started", "first_token", "finished"):
        assert plain.column(name).tolist() == off.column(name).tolist()
    assert fetches(off) is None
    assert fetches(plain).use().recomputed_tokens > 0


def test_replicas_find_what_others_wrote_where_they_share_a_store(tiered, replay):
    traffic = chat(turns=Fixed(1), system=80, groups=1).traffic(0)
    apart, shared = (found(replay(tiered(stored(shared_by=n), replicas=4), traffic)) for n in (1, None))
    assert shared[1] > apart[1] == 0  # the device of each keeps its own
    assert sum(shared) == 80 * (len(traffic) - 1)


@pytest.mark.skipif(not os.environ.get("MIST_DATA"), reason="MIST_DATA names no folder of traces")
def test_a_mooncake_replay_behind_a_small_device_reaches_the_trace_s_ideal_hit_rate(replay, tiered):
    """36.6 % of the trace's hash ids were seen before, as published; the longest prompt needs 250 blocks of 512."""
    trace = Path(os.environ["MIST_DATA"]) / "traces" / "mooncake" / "conversation_trace.jsonl"
    traffic = Trace(str(trace)).traffic(0)
    traffic = replace(
        traffic, times=np.arange(len(traffic), dtype=float)
    )  # recorded times coincide, and who meets others
    fields = {"engine": {"block_tokens": 512}, "limits": {"token_budget": 200_000}}  # may be preempted and find its own
    run = replay(tiered(stored(), kv_blocks=300, **fields), traffic)
    device, tier = found(run)
    ideal, _ = found(replay(tiered(stored(fetch=Never()), kv_blocks=2**30, **fields), traffic))
    assert device < tier  # it is the tier that finds most
    assert device + tier == ideal
    assert ideal / 512 / int(np.sum(-(-traffic.inputs // 512))) == pytest.approx(0.366, abs=0.0005)


# contention and overlap


def test_two_fetches_share_a_store_and_two_stores_are_not_shared(tiered, drive, tiny):
    size = 80 * tiny.kv_bytes_per_token
    for shared_by, factor in ((1, 1), (2, 2)):
        tier = DrawnTier(hit=1.0, read_bandwidth=size / 2.0, latency=0.5, shared_by=shared_by)
        spec = tiered(DrawnTiers({"store": tier}, Fixed(80), Always()), replicas=2)
        run = drive(spec, [(0.0, 100, 1)] * 2)
        for request in run.requests:
            seen = visit(request, Stage.FETCH_KV)
            assert seen.finished - seen.queued == pytest.approx(0.5 + 2.0 * factor)
        assert fetches(run).use().tiers["store"].wait == pytest.approx(2.0 * (factor - 1), abs=1e-9)


def test_the_narrowest_of_store_link_and_host_link_decides(tiered, drive, tiny):
    size = 80 * tiny.kv_bytes_per_token
    for narrow in ("store", "link", "host"):
        wide = {name: size / (3.0 if name == narrow else 1.0) for name in ("store", "link", "host")}
        link = LinkSpec("wire", wide["link"], 0.25)
        tier = DrawnTier(hit=1.0, read_bandwidth=wide["store"], latency=0.5, link=link)
        spec = tiered(DrawnTiers({"store": tier}, Fixed(80), Always()))
        spec = replace(spec, hardware=replace(spec.hardware, host_bandwidth=wide["host"]))
        (request,) = drive(spec, [(0.0, 100, 1)]).requests
        seen = visit(request, Stage.FETCH_KV)
        assert seen.finished - seen.queued == pytest.approx(0.75 + 3.0)


@given(fetch=st.floats(0.01, 10), step=st.floats(0.01, 10))
def test_layer_by_layer_the_longer_of_fetch_and_prefill_hides_the_other_but_for_a_layer(
    fetch, step, tiered, drive, linear, tiny
):
    size, layers = 80 * tiny.kv_bytes_per_token, tiny.layers
    tier = DrawnTier(hit=1.0, read_bandwidth=size / fetch, latency=0.0)
    first_tokens = []
    for layerwise in (False, True):
        spec = tiered(DrawnTiers({"store": tier}, Fixed(80), Always(), layerwise), perf=linear(step))
        first_tokens.append(drive(spec, [(0.0, 100, 1)]).requests[0].ttft)
    assert first_tokens[0] == pytest.approx(fetch + step)
    assert first_tokens[1] == pytest.approx(max(fetch + step / layers, step + fetch / layers))


def test_who_has_fetched_takes_the_place_of_one_who_came_when_it_did(tiered, drive, linear):
    tier = DrawnTier(hit=0.5, read_bandwidth=1e12, latency=2.5)
    spec = tiered(DrawnTiers({"store": tier}, Fixed(80), Always()), perf=linear(1.0), limits={"max_running": 1})
    run = drive(spec, [(0.01 * i, 100, 1) for i in range(12)])
    began = {r.id: visit(r, Stage.PREFILL).started for r in run.requests}
    later = [id_ for id_ in began if began[id_] > 2.61]  # when all have landed
    assert sorted(later, key=began.__getitem__) == sorted(later)
    assert any(visit(run.requests[id_], Stage.FETCH_KV) for id_ in later)


@pytest.mark.parametrize("bandwidth", [1.0, 1e3, 1e6, 1e12])
def test_faster_is_never_slower_than_the_better_of_always_and_never_for_one_request(
    bandwidth, tiered, drive, linear, tiny
):
    tier = DrawnTier(hit=1.0, read_bandwidth=bandwidth * tiny.kv_bytes_per_token, latency=0.1)
    times = []
    for policy in (Always(), Never(), Faster()):
        spec = tiered(DrawnTiers({"store": tier}, Fixed(80), policy), perf=linear(0.01, token=0.01))
        times.append(drive(spec, [(0.0, 100, 1)]).requests[0].ttft)
    assert times[2] == min(times)


def test_faster_computes_again_when_the_store_is_busy(tiered, drive, linear, tiny):
    tier = DrawnTier(hit=1.0, read_bandwidth=80 * tiny.kv_bytes_per_token / 0.3, latency=0.0, shared_by=None)
    spec = tiered(DrawnTiers({"store": tier}, Fixed(80), Faster()), perf=linear(0.01, token=0.01), replicas=8)
    use = fetches(drive(spec, [(0.0, 100, 1)] * 8)).use()
    assert 0 < use.fetched < use.found == 8


# which block goes


def test_a_full_store_drops_what_its_policy_says():
    for eviction, gone in (("lru", "b"), ("lfu", "c")):
        shelf = Shelf(3, eviction)
        for time, key in enumerate("abc"):
            assert shelf.reserve(key, time) == (True, None)
            shelf.arrive([key], time)
        for time, key in enumerate("bbaac", 3):
            shelf.use([key], time)
        if eviction == "lru":
            shelf.use("ac", 9)
        assert shelf.reserve("d", 10) == (True, gone)
        assert not shelf.holds(gone, 10)


def test_what_was_not_used_for_its_time_is_gone():
    shelf = Shelf(10, "ttl", 5.0)
    for time, key in enumerate("ab"):
        shelf.reserve(key, time)
        shelf.arrive([key], time)
    shelf.use("a", 4.0)
    assert shelf.holds("a", 8.9)
    assert not shelf.holds("b", 6.0)
    shelf.expire(9.0)
    assert (shelf.held, shelf.expired) == (0, 2)


# what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tiers": stored(), "prefix_caching": False}, "prefix_caching=true"),
        ({"tiers": stored(layerwise=True), "prefix_caching": True, "pp": 2}, "layer-wise fetch into a pipeline"),
        ({"tiers": stored(), "prefix_caching": True, "role": "decode"}, "decode pool"),
    ],
)
def test_tiers_that_could_do_nothing_are_refused(fields, words, make_pool):
    with pytest.raises(InputError, match=words):
        make_pool(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eviction": "ttl"}, "positive time"),
        ({"ttl": 3.0}, "no effect with eviction=lru"),
        ({"read_bandwidth": 0.0}, "must be positive"),
        ({"shared_by": 0}, "at least 1"),
    ],
)
def test_a_tier_checks_itself(fields, words):
    with pytest.raises(InputError, match=words):
        stored(**fields)


def test_a_result_tells_what_tiers_did(tiered, make_scenario):
    workload = chat()
    result = serve(make_scenario(tiered(stored()), workload), workload.traffic(0), 500.0)
    use = result.pools["llm"].tiers
    assert use.fetched > 0
    assert use.tiers["dram"].read_bytes > 0
    assert use.tiers["dram"].written_bytes > 0
    assert "fetch_kv_finished" in result.requests_frame()
    assert result.to_json()["pools"]["llm"]["tiers"]["tiers"]["dram"]["reads"] == use.tiers["dram"].reads
