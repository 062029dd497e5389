"""A prefix cache finds what has been computed before: all of it if it never forgets, less the smaller it is."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.errors import InputError, TraceError
from mist.network import LinkSpec
from mist.simulate import serve
from mist.workload.content import HashedBlocks, HashedPrefix, Turn
from mist.workload.lengths import Fixed, Uniform
from mist.workload.sessions import ChatSessions
from mist.workload.trace import Trace
from mist.workload.traffic import Traffic, Workload

CONF = Path(__file__).parents[2] / "conf" / "workload"
MOONCAKE = Path(os.environ.get("MIST_DATA", "")) / "traces" / "mooncake" / "conversation_trace.jsonl"
needs_traces = pytest.mark.skipif(not os.environ.get("MIST_DATA"), reason="MIST_DATA names no folder of traces")
PLENTY = 2**40  # blocks, but for the model's context an unlimited cache
PATIENT = 1e6  # seconds between requests: each is alone


def chat(**changes):
    fields = {"turns": Uniform(1, 6), "messages": Uniform(1, 90), "answers": Uniform(1, 120), "system": 200}
    return ChatSessions(**{"requests": 400, "groups": 3, "apart": 20.0, **fields, **changes})


@pytest.fixture
def replay(make_pool, drive, tiny, linear):
    """One cycle of traffic through one replica, each request alone unless ``gap`` says otherwise."""

    def run(traffic, gap=PATIENT, limits=None, block_tokens=16, **fields):
        limits = {"token_budget": 200_000} if limits is None else limits
        fields = {"perf": linear(1e-6), "kv_blocks": PLENTY, "prefix_caching": True, **fields}
        pool = make_pool(model=tiny, engine={"block_tokens": block_tokens}, limits=limits, **fields)
        columns = (traffic.times * gap, traffic.inputs.tolist(), traffic.outputs.tolist())
        return drive(pool, zip(*columns, strict=True), contents=partial(traffic.contents.of, 0))

    return run


def use(run):
    return run.clients[0].kv.use()


def session_ideal(traffic, block_tokens):
    """Tokens that an endless cache hits, from lengths alone: all that its session or its group has in whole blocks."""
    hit, before, groups = 0, {}, {}
    for i in range(len(traffic)):
        turn, tokens = traffic.contents.of(0, i), int(traffic.inputs[i])
        most = (tokens - 1) // block_tokens  # the last token is always computed
        session, group = (turn.cycle, turn.session), turn.group
        computed = max(before.get(session, 0) // block_tokens, groups.get(group, 0))
        hit += min(computed, most) * block_tokens
        before[session] = tokens + int(traffic.outputs[i]) - 1  # the last one sampled is not
        shared = min(turn.system, before[session]) // block_tokens
        groups[group] = max(groups.get(group, 0), shared)
    return hit


@pytest.mark.parametrize("block_tokens", [1, 16, 64])
def test_an_endless_cache_hits_all_that_a_session_said_before(block_tokens, replay):
    traffic = chat().traffic(5)
    found = use(replay(traffic, block_tokens=block_tokens))
    assert found.looked_up_tokens == traffic.inputs.sum()
    assert found.hit_tokens == session_ideal(traffic, block_tokens)
    assert 0.5 < found.hit_rate < 1


def test_sessions_of_equal_turns_hit_as_the_formula_says(replay):
    """S system, T turns of m + a tokens, one-token blocks: turn k > 1 finds S + (k - 1)(m + a) - 1 of its tokens."""
    system, turns, message, answer = 300, 4, 30, 50
    workload = chat(requests=400, turns=Fixed(turns), messages=Fixed(message), answers=Fixed(answer), system=system,
                    groups=1, apart=1.0)  # fmt: skip
    traffic = workload.traffic(1)
    found = use(replay(traffic, block_tokens=1))
    later = [system + k * (message + answer) - 1 for k in range(1, turns)]
    asked = [system + k * (message + answer) + message for k in range(turns)]
    ideal = (system + sum(later)) / sum(asked)
    assert found.hit_rate == pytest.approx(ideal, abs=0.01)  # the first session of all, and those cut at the ends
    assert found.hit_tokens == session_ideal(traffic, 1)


def test_a_bounded_cache_hits_less_the_smaller_it_is(replay):
    traffic = chat().traffic(5)
    ideal = session_ideal(traffic, 16)
    hits = [use(replay(traffic, kv_blocks=blocks)).hit_tokens for blocks in (100, 200, 400, 800, 1600, 10**6)]
    assert hits == sorted(hits)
    assert hits[0] < hits[1] < hits[2] < ideal
    assert hits[-1] == ideal


def test_what_is_hit_is_not_computed(replay, linear):
    """With a step of one second per token, the time spent is the tokens computed."""
    traffic = chat().traffic(5)
    run = replay(traffic, perf=linear(token=1.0))
    computed = traffic.inputs.sum() + (traffic.outputs - 1).sum() - use(run).hit_tokens
    assert run.clients[0].busy == pytest.approx(computed)


def test_nothing_shared_is_nothing_hit(make_pool, drive, tiny, poisson):
    run = drive(make_pool(model=tiny, prefix_caching=True), poisson(3, 100, 5.0, (1, 400), (1, 60)))
    assert use(run).hit_tokens == 0


def test_cycles_hit_system_prompts_of_each_other_and_nothing_else():
    hashed = HashedBlocks(np.array([7, 8]), np.array([2]), np.array([1024]))
    keys = [{hashed.of(cycle, 0).key(block, 512) for block in range(2)} for cycle in (0, 1)]
    assert not keys[0] & keys[1]
    traffic = chat().traffic(0)
    mine, later = (traffic.contents.of(cycle, 0) for cycle in (0, 1))
    assert mine.key(0, 16) == later.key(0, 16)
    assert mine.key(100, 16) != later.key(100, 16)


def test_sessions_go_on_across_the_end_of_a_cycle():
    """Traffic is stationary: every session has all of its turns, if not in the cycle it began in."""
    traffic = chat(turns=Fixed(4), requests=400).traffic(2)
    assert traffic.contents.rounds.max() == 1
    instances = {}
    for cycle in range(3):
        for i in range(len(traffic)):
            turn = traffic.contents.of(cycle, i)
            instances.setdefault((turn.cycle, turn.session), []).append(int(traffic.inputs[i]))
    whole = [prompts for (cycle, _), prompts in instances.items() if cycle in {0, 1}]
    assert len(whole) == 200
    assert all(len(prompts) == 4 and prompts == sorted(prompts) for prompts in whole)


@given(
    ids=st.lists(st.integers(0, 3), min_size=2, max_size=4),
    tokens=st.integers(1, 64),
    block_tokens=st.sampled_from([1, 3, 4, 16, 32, 40]),
)
def test_hashed_blocks_are_shared_if_and_only_if_their_hash_is_known_and_equal(ids, tokens, block_tokens):
    chained = tuple(hash(tuple(ids[: i + 1])) % 10**9 for i in range(len(ids)))
    one, other = (HashedPrefix(0, i, tokens, 16, chained[: -(-tokens // 16)]) for i in (1, 2))
    for block in range(70 // block_tokens):
        end = (block + 1) * block_tokens
        known = end <= min(tokens, 16 * len(one.ids))
        assert (one.key(block, block_tokens) == other.key(block, block_tokens)) == known
        assert one.key(block, block_tokens) == one.key(block, block_tokens)


def test_a_turn_shares_its_system_prompt_with_its_group_and_the_rest_with_its_session():
    turn = Turn(group=1, system=40, cycle=0, session=5)
    assert turn.key(1, 16) == turn._replace(session=9).key(1, 16) != turn._replace(group=2).key(1, 16)
    assert turn.key(2, 16) != turn._replace(session=9).key(2, 16)


def test_thinned_traffic_keeps_the_content_of_those_it_keeps():
    rows = [(0, [1, 2]), (1, [1]), (2, [1, 2, 3]), (3, []), (4, [9])]
    ids, ends = np.array([i for _, row in rows for i in row]), np.cumsum([len(row) for _, row in rows])
    ones = np.ones(5, dtype=np.int64)
    traffic = Traffic(np.arange(5.0), ones, ones, contents=HashedBlocks(ids, ends, ones * 512)).thinned(2)
    assert [traffic.contents.of(0, i).ids for i in range(2)] == [(1, 2), (1, 2, 3)]
    chats = chat().traffic(3)
    assert chats.thinned(8).contents.of(0, 3) == chats.contents.of(0, 24)


# the twin


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_leaping_with_a_prefix_cache_equals_stepping_one_by_one(
    seed, data, scheduler_name, make_pool, drive, tiny, linear
):
    workload = chat(
        requests=30, apart=3.0, system=10, messages=Uniform(1, 8), answers=Uniform(1, 12), turns=Uniform(1, 3)
    )
    traffic = workload.traffic(seed)
    load = list(zip(traffic.times / data.draw(st.sampled_from([10.0, 1000.0])), traffic.inputs.tolist(),
                    traffic.outputs.tolist(), strict=True))  # fmt: skip
    pool = make_pool(
        model=tiny, scheduler=scheduler_name, perf=linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5),
        limits={"max_running": data.draw(st.sampled_from([2, 31])), "token_budget": data.draw(st.integers(32, 200))},
        kv_blocks=data.draw(st.sampled_from([25, 60, 10**6])), engine={"block_tokens": 4}, prefix_caching=True,
    )  # fmt: skip
    contents = partial(traffic.contents.of, 0)
    fast, slow = (drive(pool, load, contents=contents, one_by_one=one_by_one) for one_by_one in (False, True))
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0, err_msg=name)
    assert fast.column("preemptions").tolist() == slow.column("preemptions").tolist()
    assert use(fast) == use(slow)
    assert fast.clients[0].kv.used == slow.clients[0].kv.used == 0


def test_blocks_are_conserved_with_a_prefix_cache_on_both_sides_of_a_hand_over(make_pool, drive, tiny, linear):
    traffic = chat(requests=60, system=10, messages=Uniform(1, 8), answers=Uniform(1, 12)).traffic(0)
    shared = {"model": tiny, "perf": linear(1e-3, 1e-5), "engine": {"block_tokens": 4}, "kv_blocks": 60}
    pools = {
        "prefill": make_pool(role="prefill", prefix_caching=True, **shared),
        "decode": make_pool(role="decode", **shared),
    }

    def conserved(run):
        for client in run.clients:
            assert 0 <= client.kv.used <= client.kv.total
            assert client.kv.free == client.kv.total - client.kv.used

    load = zip(traffic.times / 100, traffic.inputs.tolist(), traffic.outputs.tolist(), strict=True)
    contents = partial(traffic.contents.of, 0)
    run = drive(pools, load, LinkSpec("wire", 1e7, 1e-4), contents=contents, after_each=conserved)
    served = [r for r in run.requests if not r.refused]
    assert all(r.finished > 0 for r in served)
    assert [client.kv.used for client in run.clients] == [0, 0]
    assert use(run).hit_tokens > 0


# the recorded trace


def hash_ideal(rows):
    """(tokens an endless cache hits in whole 512-token blocks, all tokens, hash ids seen before, all hash ids)."""
    seen, hit, tokens, known, blocks = set(), 0, 0, 0, 0
    for row in rows:
        ids, most = row["hash_ids"], (row["input_length"] - 1) // 512
        chain = next((k for k, i in enumerate(ids[:most]) if i not in seen), min(most, len(ids)))
        hit, tokens = hit + 512 * chain, tokens + row["input_length"]
        known, blocks = known + sum(i in seen for i in ids), blocks + len(ids)
        seen.update(ids)
    return hit, tokens, known, blocks


@needs_traces
def test_a_mooncake_replay_reaches_the_trace_s_ideal_hit_rate_and_a_bounded_one_falls_below_it(replay):
    rows = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    hit, tokens, known, blocks = hash_ideal(rows)
    assert known / blocks == pytest.approx(0.366, abs=0.0005)  # as published: of hash ids
    traffic = Trace(str(MOONCAKE)).traffic(0)
    endless = use(replay(traffic, block_tokens=512))
    assert (endless.hit_tokens, endless.looked_up_tokens) == (hit, tokens)
    assert endless.hit_tokens / 512 / blocks == pytest.approx(known / blocks, abs=0.001)
    sizes = (1000, 4000, 16_000, 64_000)
    bounded = [use(replay(traffic, block_tokens=512, kv_blocks=size)).hit_tokens for size in sizes]
    assert bounded == sorted(bounded)
    assert bounded[0] < 0.5 * hit
    assert bounded[-1] < hit


@needs_traces
def test_smaller_blocks_find_no_less_of_a_recorded_trace(replay, tmp_path):
    path = tmp_path / "head.jsonl"
    lines = MOONCAKE.read_text().splitlines()[:600]
    path.write_text("\n".join(lines))
    hit, *_ = hash_ideal(map(json.loads, lines))
    fine = use(replay(Trace(str(path)).traffic(0), block_tokens=16)).hit_tokens
    assert hit <= fine < 1.05 * hit  # prompts that end within a hash block share it, too


# what is refused


def trace(tmp_path, *rows):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"timestamp": 0, "output_length": 1, **row}) + "\n" for row in rows))
    return Trace(str(path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"input_length": 600, "hash_ids": [1, "x"]}], ["trace.jsonl:1", "whole numbers"]),
        ([{"input_length": 600, "hash_ids": 3}], ["trace.jsonl:1", "whole numbers"]),
        ([{"input_length": 600, "hash_ids": [1, 2]}, {"input_length": 600}], ["1 of 2 rows", "every row"]),
        ([{"input_length": 600, "hash_ids": [1, 2, 3]}], ["request 1", "3 hash_ids for 600 tokens", "hash_tokens"]),
    ],
)
def test_hash_ids_that_cannot_be_are_refused_by_name(tmp_path, rows, words):
    with pytest.raises(TraceError) as refused:
        trace(tmp_path, *rows).traffic(0)
    for word in words:
        assert word in str(refused.value)


def test_a_cache_without_effect_is_refused(make_pool):
    with pytest.raises(InputError, match="whole caches"):
        make_pool(prefix_caching=True, role="decode")
    with pytest.raises(InputError, match="prefix caching"):
        make_pool(prefix_caching=True, preemption="swap")


@pytest.mark.parametrize("field", ["requests", "groups", "system", "apart"])
def test_sessions_that_cannot_be_are_refused_by_name(field):
    config = yaml.safe_load((CONF / "chat_sessions.yaml").read_text())
    with pytest.raises(InputError, match=field):
        build(Workload, config | {field: -1})


def test_the_hit_rate_is_in_the_result_of_each_pool_that_caches(make_pool, make_scenario, tiny, linear):
    workload = chat(requests=200, rate=5.0)
    on, off = (
        serve(make_scenario(make_pool(model=tiny, perf=linear(1e-3), prefix_caching=cached), workload),
              workload.traffic(0), 5.0).pools["llm"]
        for cached in (True, False)
    )  # fmt: skip
    assert 0.5 < on.prefix.hit_rate < 1
    assert off.prefix is None
