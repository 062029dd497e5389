"""What is kept and moved of hybrid models: a prefix is found only where a state of linear attention was kept."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.clients.hybrid import aligned_block, state_blocks
from mist.errors import InputError
from mist.fetching.always import Always
from mist.memory import choice
from mist.memory.states import StatePool
from mist.memory.swap import HostMemory, SwapPool
from mist.model import ModelSpec
from mist.network import LinkSpec
from mist.request import Request
from mist.tiers.spec import DrawnTier, DrawnTiers, StoredTier, StoredTiers
from mist.workload.lengths import Fixed

BLOCK = 8
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
LINEAR = {"linear_key_heads": 2, "linear_value_heads": 2, "linear_key_dim": 8, "linear_value_dim": 12}


@pytest.fixture(scope="module")
def hybrid(tiny):
    """A layer with a cache and three with a state of 768 bytes, as large as the cache of 6 tokens."""
    return replace(tiny, layers=4, linear_layers=3, linear_convolution=1, **LINEAR)


@pytest.fixture(scope="module")
def pool(make_pool, hybrid, linear):
    def make(**fields):
        limits = {"token_budget": 64, "max_running": 15, **fields.pop("limits", {})}
        engine = {"block_tokens": 4, "reserved_blocks": 0, **fields.pop("engine", {})}
        fields = {"model": hybrid, "kv_blocks": 4000, "prefix_caching": True, **fields}
        return make_pool(limits=limits, engine=engine, perf=linear(STEP, TOKEN, CACHED), **fields)

    return make


class Talk:
    """Tokens named by a list of (name, tokens): equal to another's as far as the lists are."""

    def __init__(self, *parts):
        self.parts = parts

    def key(self, block, block_tokens):
        end, said = (block + 1) * block_tokens, []
        for name, tokens in self.parts:
            said.append((name, min(end, tokens)))
            end -= min(end, tokens)
            if not end:
                return tuple(said)
        return (*said, ("own", id(self), end))


def found(drive, pool, *talks, output=1):
    """Tokens that were found of these prompts, served one after another."""
    arrivals = [(10.0 * i, sum(tokens for _, tokens in talk), output) for i, talk in enumerate(talks)]
    (pool,) = drive(pool, arrivals, contents=lambda i: Talk(*talks[i])).cluster.pools.values()
    return pool.clients[0].kv.hit_tokens


# how large blocks and states are


def test_a_block_holds_the_state_of_a_layer_as_vllm_prints_it(make_pool, sheet):
    """Qwen3.5-4B, 32 value heads of 128 x 128 in float32 and 4 KV heads of 256: "Setting attention block size to 528
    tokens", "Padding mamba page size by 0.76%" (vllm-project/vllm issue 40696, pull 37467)."""
    model = build(ModelSpec, sheet("model", "qwen3.6-35b-a3b") | {"linear_value_heads": 32, "kv_heads": 4})
    replica = make_pool(model=model).replica
    assert aligned_block(replica) == 528
    assert 528 * model.kv_bytes_per_token_per_layer / model.state_bytes_per_layer == pytest.approx(1.0076, abs=1e-4)
    assert state_blocks(replica) == 3  # groups of as many layers: three of linear attention beside one of attention


def test_devices_that_share_heads_share_both_until_kv_heads_run_out(make_pool):
    """Qwen3-Next has 2 KV heads, which more devices copy, and states that all of them cut."""
    blocks = [aligned_block(make_pool(model="qwen3-next-80b-a3b", hardware="h200", tp=tp).replica) for tp in (2, 4, 8)]
    assert blocks == [1056, 528, 272]


def test_only_a_pool_that_caches_prefixes_of_a_hybrid_has_larger_blocks(pool, hybrid):
    assert pool().block_tokens == BLOCK
    assert pool(prefix_caching=False).block_tokens == 4
    assert pool(model=replace(hybrid, linear_layers=0)).block_tokens == 4
    assert pool(engine={"block_tokens": 16}).block_tokens == 16
    assert (pool().state_blocks, pool(prefix_caching=False).state_blocks) == (3, 0)


# where prompts are cut


@pytest.mark.parametrize(
    ("known", "past", "tokens", "taken"),
    [
        (100, 0, 64, 64),  # ends with a block
        (100, 0, 70, 64),
        (100, 0, 100, 96),  # where the last whole block ends
        (100, 96, 4, 4),  # and the rest
        (96, 0, 96, 96),  # the prompt ends with a block
        (100, 0, 7, 0),  # no whole block
        (100, 64, 7, 0),
        (7, 0, 7, 7),  # a prompt without a whole block
        (7, 0, 3, 3),
        (97, 96, 1, 1),
    ],
)
def test_chunks_end_with_blocks_worked_by_hand(known, past, tokens, taken):
    request = Request(0, 0.0, known, 1)
    request.computed, request.table = past, [*range(past // BLOCK)]
    assert StatePool(100, BLOCK, 3).chunk(request, tokens) == taken


@pytest.mark.parametrize("scheduler", ["chunked_prefill", "shortest_first", "slo_aware", "vllm_v1"])
def test_every_prompt_is_cut_where_a_state_is_kept(scheduler, pool, drive, poisson):
    cuts = []

    def look(run):
        client = run.clients[0]
        for request, tokens in client.granted.values():
            if request.joined < 0:
                cuts.append((request.computed, tokens, request.known))

    run = drive(pool(scheduler=scheduler), poisson(3, 80, 100.0, (1, 300), (1, 40)), after_each=look)
    assert all(request.finished > 0 for request in run.requests)
    assert len(cuts) > 80
    for past, tokens, known in cuts:
        end = past + tokens
        assert end % BLOCK == 0 or past >= known // BLOCK * BLOCK


# what is found


@pytest.mark.parametrize(("budget", "early"), [(64, 0), (16, 32)])
def test_a_hit_ends_where_a_chunk_did(budget, early, pool, drive):
    """45 tokens leave a state after 40, or after 16, 32 and 40: who shares 35 of them finds 32 only with the latter."""
    spec, first = pool(limits={"token_budget": budget}), [("a", 45)]
    assert found(drive, spec, first, [("a", 43), ("b", 20)]) == 40
    assert found(drive, spec, first, [("a", 35), ("b", 20)]) == early
    assert found(drive, spec, first, [("a", 15), ("b", 20)]) == 0


def test_what_was_decoded_is_found_where_a_block_was_filled(pool, drive):
    """30 tokens and an answer of 21: states after 24 tokens, and after 32, 40 and 48 as they are decoded."""
    talk = Talk(("a", 30), ("answer", 21), ("b", 9))
    arrivals = [(0.0, 30, 21), (10.0, 60, 1)]
    run = drive(pool(), arrivals, contents=lambda _: talk)
    assert run.clients[0].kv.hit_tokens == 48


def test_a_state_that_was_evicted_takes_the_hit_with_it(pool, drive):
    """The prompt between, of 200 tokens, takes 25 blocks of 200 or of 32."""
    hits = [found(drive, pool(kv_blocks=blocks), [("a", 45)], [("b", 200)], [("a", 45)]) for blocks in (200, 32)]
    assert hits == [40, 0]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([60, 150, 4000]), budget=st.sampled_from([16, 40, 200]))
def test_states_are_conserved_and_every_hit_ends_with_one(seed, blocks, budget, pool, drive):
    """At every instant."""
    draw = np.random.default_rng(seed)
    own = draw.integers(1, 60, 40).tolist()
    talks = [[(f"system {draw.integers(3)}", 40), (f"user {draw.integers(6)}", tokens)] for tokens in own]
    times, outputs = np.cumsum(draw.exponential(0.02, 40)).tolist(), draw.integers(1, 30, 40).tolist()
    arrivals = [(time, 40 + tokens, output) for time, tokens, output in zip(times, own, outputs, strict=True)]

    def look(run):
        kv = run.clients[0].kv
        held = {block for request in run.clients[0].running for block in request.table}
        assert kv.used == len(held)
        states = [block for content, block in kv._cached.items() if content[0] == "state"]
        assert len(states) == len({*states})
        assert not held & {*states}
        assert all(block in kv._free and kv._content[block][0] == "state" for block in states)
        for request in run.requests:
            hit = kv.hit(request) if request in run.clients[0].line else 0
            assert hit == 0 or kv._has_state(kv.key(request, hit // BLOCK - 1))

    spec = pool(kv_blocks=blocks, limits={"token_budget": budget, "max_running": 8})
    run = drive(spec, arrivals, contents=lambda i: Talk(*talks[i]), after_each=look)
    assert all(request.finished > 0 for request in run.requests)
    assert run.clients[0].kv.used == 0


@pytest.mark.parametrize("scheduler", ["chunked_prefill", "slo_aware", "vllm_v1"])
@pytest.mark.parametrize("blocks", [70, 4000])
def test_leaping_equals_stepping(scheduler, blocks, pool, drive):
    draw = np.random.default_rng(5)
    talks = [[(f"s{draw.integers(3)}", 50), (f"u{draw.integers(9)}", int(draw.integers(1, 60)))] for _ in range(120)]
    gaps, outputs = np.cumsum(draw.exponential(0.03, 120)), draw.integers(1, 90, 120)
    arrivals = [(float(t), 50 + talks[i][1][1], int(o)) for i, (t, o) in enumerate(zip(gaps, outputs, strict=True))]
    spec = pool(scheduler=scheduler, kv_blocks=blocks, limits={"max_running": 8})
    contents = [Talk(*talk) for talk in talks]
    fast, slow = (drive(spec, arrivals, contents=contents.__getitem__, one_by_one=twin) for twin in (False, True))
    assert fast.clients[0].kv.hit_tokens == slow.clients[0].kv.hit_tokens > 0
    assert fast.clients[0].preemptions == slow.clients[0].preemptions
    assert (fast.clients[0].preemptions > 0) == (blocks == 70)
    assert fast.clients[0].leaps < slow.clients[0].leaps
    for name in ("started", "first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, err_msg=name)


def slow_twin(plain_prefix_pool):
    """A StatePool with one free list that searches every block."""

    class Plain(plain_prefix_pool):
        def __init__(self, total, block_tokens, state_blocks):
            super().__init__(total, block_tokens)
            self.pieces = range(state_blocks)

        chunk = StatePool.chunk

        def chain(self, request):
            blocks = super().chain(request)
            while blocks and not self.known(self.key(request, len(blocks) - 1)):
                blocks.pop()
            return blocks

        def known(self, key):
            return all(("state", piece, key) in self.contents for piece in self.pieces)

        def use_state(self, key):
            for piece in self.pieces:
                block = self.contents.index(("state", piece, key))
                self.queue.remove(block)
                self.queue.append(block)

        def keep(self, key):
            if self.known(key):
                self.use_state(key)
            elif self.free >= len(self.pieces):
                for piece in self.pieces:
                    name = ("state", piece, key)
                    block = self.queue.pop(self.queue.index(self.contents.index(name)) if name in self.contents else 0)
                    if block in self.registered:
                        self.registered.remove(block)
                    self.contents[block] = name
                    self.queue.append(block)

        def admit(self, request):
            super().admit(request)
            if request.blocks:
                self.use_state(self.key(request, request.blocks - 1))

        def grow(self, request, tokens):
            super().grow(request, tokens)
            end = request.computed + tokens
            if end % self.block_tokens == 0 and end <= request.known:
                self.keep(self.key(request, end // self.block_tokens - 1))

        def grow_member(self, request, computed):
            super().grow_member(request, computed)
            if (computed + 1) % self.block_tokens == 0:
                self.keep(self.key(request, computed // self.block_tokens))

        def extend(self, decodes, ahead, steps):
            """As vLLM: every member's block is taken before any of their contents is known."""
            assert steps == 1
            members = sorted(decodes.members, key=lambda member: member.admitted)
            for member in members:
                if member.computed % self.block_tokens == 0:
                    self.take(member)
            for member in members:
                self.grow_member(member, member.computed)

        def detach(self, request):
            known = [self.contents[block] for block in request.table]
            kept = [key for key in known if key is not None and self.known(key)]
            if kept:
                self.use_state(kept[-1])
            return super().detach(request)

    return Plain


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([30, 50, 90]), budget=st.sampled_from([16, 40, 200]))
def test_the_pool_equals_its_slow_twin(seed, blocks, budget, pool, drive, plain_prefix_pool):
    draw = np.random.default_rng(seed)
    own = draw.integers(1, 90, 50).tolist()
    talks = [Talk((f"s{draw.integers(3)}", 40), (f"u{draw.integers(5)}", tokens)) for tokens in own]
    times, outputs = np.cumsum(draw.exponential(0.03, 50)).tolist(), draw.integers(1, 60, 50).tolist()
    arrivals = [(time, 40 + tokens, output) for time, tokens, output in zip(times, own, outputs, strict=True)]
    spec = pool(kv_blocks=blocks, limits={"token_budget": budget, "max_running": 8})
    fast = drive(spec, arrivals, contents=talks.__getitem__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "StatePool", slow_twin(plain_prefix_pool))
        slow = drive(spec, arrivals, contents=talks.__getitem__, one_by_one=True)
    assert fast.clients[0].kv.use() == slow.clients[0].kv.use()
    assert fast.column("preemptions").tolist() == slow.column("preemptions").tolist()
    np.testing.assert_allclose(fast.column("finished"), slow.column("finished"), rtol=1e-12)


def test_without_states_to_keep_it_is_a_prefix_cache_to_the_last_bit(pool, hybrid, drive):
    """A model with as many layers, all with a cache, is served by the same code as before."""
    plain = pool(model=replace(hybrid, linear_layers=0))
    talks = [[("s", 40), (f"u{i % 3}", 10 + i)] for i in range(20)]
    run = drive(plain, [(0.1 * i, 50 + i, 5) for i in range(20)], contents=lambda i: Talk(*talks[i]))
    assert not isinstance(run.clients[0].kv, StatePool)


def test_a_pipeline_keeps_states_too(pool, drive):
    assert found(drive, pool(pp=2), [("a", 45)], [("a", 43), ("b", 20)]) == 40


def test_a_decode_pool_takes_over_from_larger_blocks(pool, drive):
    """Which are the prefill pool's alone."""
    pools = {"prefill": pool(role="prefill"), "decode": pool(role="decode", prefix_caching=False)}
    talks = [[("a", 45)], [("a", 43), ("b", 20)]]
    run = drive(pools, [(0.0, 45, 30), (10.0, 63, 30)], LinkSpec("wire", 1e9, 0.0), contents=lambda i: Talk(*talks[i]))
    assert [client.kv.block_tokens for client in run.clients] == [BLOCK, 4]
    assert run.clients[0].kv.hit_tokens == 40
    assert all(request.finished > 0 for request in run.requests)


# swap


def test_a_state_is_copied_with_the_blocks_of_a_sequence():
    """10 tokens in blocks of 4, of 2 bytes, with a state of 3 bytes, over 1 byte/s: 9 s either way."""
    pool, request = SwapPool(10, 4, HostMemory(6, 2.0, 1, 1.0, 3.0)), Request(0, 0.0, 10, 5)
    for expected in (9.0, 9.0):
        pool.grow(request, 10)
        request.computed = 10
        pool.evict(request)
        assert pool.delay() == expected
        pool.admit(request)
        assert pool.delay() == expected
        pool.release(request)
        request.computed = request.blocks = 0
    assert pool.use().out_bytes == pool.use().in_bytes == 18.0
    assert pool.use().host_peak == pytest.approx((3 + 1.5) / 6)


def test_a_host_without_room_for_the_state_takes_nothing():
    for blocks, recomputed in ((4, 1), (5, 0)):  # 3 blocks and a state of 1.5
        pool, request = SwapPool(10, 4, HostMemory(blocks, 2.0, 1, 1.0, 3.0)), Request(0, 0.0, 10, 5)
        pool.grow(request, 10)
        request.computed = 10
        pool.evict(request)
        assert pool.recomputed == recomputed


def test_swapping_a_hybrid_takes_longer_by_its_states(pool, hybrid, drive, poisson):
    load = poisson(2, 40, 200.0, (20, 60), (20, 60))
    heavier = []
    for dtype in ("fp32", "bf16"):
        spec = pool(model=replace(hybrid, state_dtype=dtype), prefix_caching=False, preemption="swap", kv_blocks=80)
        run = drive(spec, load)
        kv = run.clients[0].kv
        assert kv.states_out == kv.states_in > 0
        assert kv.host.state_bytes == spec.model.state_bytes
        heavier.append(run.column("finished").max())
    assert heavier[0] > heavier[1]


# tiers


def drawn(layerwise=False):
    """One tier of 1 MB/s in which every prompt begins with 40 tokens."""
    tier = DrawnTier(hit=1.0, read_bandwidth=1e6, latency=0.0)
    return DrawnTiers({"store": tier}, Fixed(40), Always(), layerwise)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_drawn_hit_brings_the_state_at_its_end(layerwise, pool, hybrid, drive):
    spec = pool(prefix_caching=False, tiers=drawn(layerwise))
    run = drive(spec, [(0.0, 100, 3)])
    (fetched,) = (visit for visit in run.requests[0].visits if visit.stage == "fetch_kv")
    size = 40 * hybrid.kv_bytes_per_token + hybrid.state_bytes
    assert fetched.finished - fetched.started == pytest.approx(size / 1e6)
    assert run.cluster.pools["llm"].fetches.use().tiers["store"].read_bytes == size


# refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheduler": "continuous"}, r"prefix_caching = true: .*Continuous cuts none"),
        ({"scheduler": "vllm_v1", "limits": {"chunked": False}}, r"prefix_caching = true: .*VllmV1 cuts none"),
        ({"engine": {"kernels": "sglang"}}, r"prefix_caching = true: .*not modelled"),
        ({"speculation": {"_target_": "mist.speculation.NGram", "tokens": 2, "acceptance": 0.5}}, r"rejected drafts"),
        ({"limits": {"long_prefill_threshold": 7}}, r"scheduler.long_prefill_threshold = 7: .*a block of 8 tokens"),
        ({"limits": {"token_budget": 6, "max_running": 2}}, r"scheduler.token_budget = 6: .*a block of 8 tokens"),
    ],
)
def test_what_cannot_keep_states_is_refused(fields, message, pool):
    with pytest.raises(InputError, match=message):
        pool(**fields)


def test_tiers_that_know_blocks_by_content_are_refused(pool):
    tier = StoredTier(read_bandwidth=1e6, write_bandwidth=1e6, latency=0.0, write="through", capacity=None)
    with pytest.raises(
        InputError, match=r"tiers = StoredTiers: blocks are stored by content, .* \(valid: none, drawn\)"
    ):
        pool(tiers=StoredTiers({"store": tier}, Always()))
