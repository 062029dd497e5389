"""Laws of the batching policies that look at lengths and deadlines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.clients.llm import LLMClient
from mist.compose import compose
from mist.request import RequestClass
from mist.schedulers.slo_aware import next_due
from mist.sweep.capacity import capacity

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
KINDS = (RequestClass("interactive", 0, 0.05, 0.004), RequestClass("batch", 1, 1.0, 0.02), RequestClass("offline"))
TWO_CLASS = ["workload=two_class", "slo=two_class", "workload.requests=3000"]


@pytest.fixture
def steps(monkeypatch):
    """Every step that is not decodes alone, as it begins: when, how long, decodes, when the next token was due,
    and the chunks (tokens, cached before, known tokens)."""
    seen = []
    run = LLMClient._run

    def watched(client):
        chunks = [(tokens, r.computed, r.known) for r, tokens in client.granted.values()]
        begun = client.now, client.decodes.count, next_due(client), chunks
        client.watch = lambda _, time: seen.append((begun[0], time, *begun[1:]))
        run(client)
        client.watch = None

    monkeypatch.setattr(LLMClient, "_run", watched)
    return seen


@pytest.fixture
def tiny_pool(make_pool, tiny, linear):
    def pool(scheduler, perf=None, blocks=100_000, **limits):
        perf = perf or linear(STEP, TOKEN, CACHED)
        return make_pool(
            model=tiny, scheduler=scheduler, limits=limits, kv_blocks=blocks, engine={"block_tokens": 4}, perf=perf
        )

    return pool


# mixed


def test_mixed_never_splits_a_prompt_and_never_leaves_out_a_decode(tiny_pool, drive, poisson, steps):
    drive(tiny_pool("mixed", token_budget=128, max_running=31), poisson(1, 200, 300.0, (1, 200), (1, 60)))
    assert any(decodes and chunks for _, _, decodes, _, chunks in steps)
    for _, _, decodes, _, chunks in steps:
        assert all((tokens, past) == (known, 0) for tokens, past, known in chunks)
        assert decodes + sum(tokens for tokens, _, _ in chunks) <= 128 or len(chunks) == 1


def test_mixed_holds_up_decodes_for_a_whole_prompt_where_chunks_would_not(tiny_pool, drive):
    load = [(0.0, 8, 40), (0.01, 4000, 2)]
    whole, cut = (drive(tiny_pool(name, token_budget=64, max_running=8), load) for name in ("mixed", "chunked_prefill"))
    assert whole.requests[1].first_token < cut.requests[1].first_token
    assert whole.requests[0].finished < cut.requests[0].finished + 4000 * TOKEN
    longest = 4000 * TOKEN / 39  # what the one long step adds to the mean
    assert whole.requests[0].tpot > longest


# guaranteed no evict


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_nobody_is_evicted_who_was_admitted_with_room_for_the_answer(seed, tiny_pool, drive, poisson):
    load = poisson(seed, 60, 1e4, (1, 30), (1, 50))
    limits = {"token_budget": 64, "max_running": 31}
    run, mixed = (drive(tiny_pool(name, blocks=40, **limits), load) for name in ("guaranteed_no_evict", "mixed"))
    assert not run.column("preemptions").any()
    assert (run.column("finished") > 0).all()
    assert max(client.kv.peak for client in run.clients) <= 40
    assert mixed.column("finished").max() > 0


def test_the_head_waits_until_all_blocks_of_its_answer_can_be_had(tiny_pool, drive):
    # 19 blocks of 4 tokens beside the null block: the first needs (8 + 33 - 1) / 4 = 10 in the end, the second 11
    load = [(0.0, 8, 33), (1e-4, 8, 34), (2e-4, 2, 3)]
    run = drive(tiny_pool("guaranteed_no_evict", blocks=20, token_budget=64, max_running=8), load)
    first, second, third = run.requests
    assert second.visits[0].started == third.visits[0].started == first.finished  # first come, first served
    assert first.preemptions == second.preemptions == 0
    fits = drive(tiny_pool("guaranteed_no_evict", blocks=22, token_budget=64, max_running=8), load)
    assert fits.requests[1].visits[0].started < fits.requests[0].finished


def test_with_memory_for_all_it_is_mixed_batching(tiny_pool, drive, poisson):
    load, limits = poisson(2, 100, 300.0, (1, 200), (1, 60)), {"token_budget": 256, "max_running": 31}
    one, other = (drive(tiny_pool(name, **limits), load) for name in ("guaranteed_no_evict", "mixed"))
    assert one.column("finished").tolist() == other.column("finished").tolist()


def test_the_lanes_of_a_pipeline_share_what_is_pledged(make_pool, tiny, drive, poisson):
    load = poisson(3, 60, 1e4, (1, 30), (1, 50))
    pool = make_pool(
        model=tiny, scheduler="guaranteed_no_evict", limits={"token_budget": 64, "max_running": 31}, kv_blocks=40,
        engine={"block_tokens": 4}, pp=2,
    )  # fmt: skip
    assert not drive(pool, load).column("preemptions").any()


# shortest first


def test_the_shortest_prompt_of_those_that_wait_goes_first(tiny_pool, drive):
    load = [(0.0, 50, 5), *((1e-4, tokens, 5) for tokens in (300, 20, 100, 7, 44))]
    run = drive(tiny_pool("shortest_first", token_budget=512, max_running=1, aging=0.0), load)
    order = sorted(run.requests[1:], key=lambda r: r.started)
    assert [r.input for r in order] == [7, 20, 44, 100, 300]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), aging=st.sampled_from([10.0, 300.0, 5000.0]))
def test_a_prompt_is_overtaken_only_by_those_that_arrive_before_it_has_aged(seed, aging, tiny_pool, drive, poisson):
    load = poisson(seed, 60, 200.0, (1, 200), (1, 20))
    run = drive(tiny_pool("shortest_first", token_budget=256, max_running=1, aging=aging), load)
    for early in run.requests:
        for late in run.requests[early.id + 1 :]:
            if late.started < early.started:
                assert late.arrived - early.arrived < early.input / aging


def test_shortest_first_lowers_the_mean_time_to_first_token(tiny_pool, drive, poisson):
    load = poisson(3, 300, 250.0, (1, 600), (1, 30))
    means = []
    for name in ("shortest_first", "chunked_prefill"):
        limits = {"aging": 0.0} if name == "shortest_first" else {}
        run = drive(tiny_pool(name, token_budget=256, max_running=16, **limits), load)
        means.append(np.mean([r.ttft for r in run.requests]))
    assert means[0] < 0.8 * means[1]


@pytest.mark.parametrize("name", ["chunked_prefill", "shortest_first", "slo_aware"])
def test_no_chunk_exceeds_the_long_prefill_threshold(name, tiny_pool, drive, poisson, steps):
    pool = tiny_pool(name, token_budget=128, max_running=31, long_prefill_threshold=20)
    drive(pool, poisson(1, 100, 300.0, (1, 200), (1, 60)))
    assert max(tokens for *_, chunks in steps for tokens, _, _ in chunks) == 20
    assert any(len(chunks) > 1 and min(known for _, _, known in chunks) > 20 for *_, chunks in steps)


# SLO-aware


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), rate=st.sampled_from([20.0, 200.0, 1000.0]))
def test_without_limits_slo_aware_is_chunked_prefill(seed, rate, tiny_pool, drive, poisson):
    load = poisson(seed, 80, rate, (1, 200), (1, 60))
    one, other = (
        drive(tiny_pool(name, token_budget=128, max_running=31), load) for name in ("slo_aware", "chunked_prefill")
    )
    for name in ("started", "first_token", "finished"):
        assert one.column(name).tolist() == other.column(name).tolist()


def test_the_prompt_whose_first_token_is_due_first_goes_first(tiny_pool, drive):
    load = [(0.0, 50, 5), *((1e-4 * i, 30, 5) for i in range(1, 7))]
    run = drive(tiny_pool("slo_aware", token_budget=512, max_running=1), load, kinds=KINDS)
    order = [r.id for r in sorted(run.requests[1:], key=lambda r: r.started)]
    assert order == [3, 6, 1, 4, 2, 5]


def test_an_urgent_prompt_overtakes_a_long_one_between_two_chunks(tiny_pool, drive):
    load, kinds = [(0.0, 5000, 5), (0.005, 30, 5)], (KINDS[1], KINDS[0])
    run = drive(tiny_pool("slo_aware", token_budget=256, max_running=8), load, kinds=kinds)
    patient, urgent = run.requests
    assert patient.visits[0].started < urgent.visits[0].started < urgent.first_token < patient.first_token
    assert urgent.ttft < 3 * (STEP + 256 * TOKEN)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), rate=st.sampled_from([20.0, 100.0, 400.0]))
def test_no_chunk_beyond_the_least_makes_a_decode_late(seed, rate, tiny_pool, drive, poisson, steps):
    steps.clear()
    limits = {"token_budget": 1024, "max_running": 31, "least_chunk": 16}
    drive(tiny_pool("slo_aware", **limits), poisson(seed, 120, rate, (1, 600), (1, 60)), kinds=KINDS)
    assert steps
    for now, time, decodes, due, chunks in steps:
        if decodes and now + time > due * (1 + 1e-12):
            assert len(chunks) == 1
            assert chunks[0][0] <= 16


@settings(max_examples=30)
@given(data=st.data(), blocks=st.sampled_from([60, 100_000]))
def test_deadlines_and_slack_are_the_same_one_by_one(data, blocks, tiny_pool, drive, poisson):
    rate = data.draw(st.sampled_from([20.0, 100.0, 1000.0]))
    load = poisson(data.draw(st.integers(0, 2**32)), 60, rate, (1, 100), (1, 100))
    limits = {"token_budget": data.draw(st.integers(32, 300)), "max_running": 31, "least_chunk": 8}
    pool = tiny_pool("slo_aware", blocks=blocks, **limits)
    fast, slow = (drive(pool, load, kinds=KINDS, one_by_one=twin) for twin in (False, True))
    assert fast.column("preemptions").tolist() == slow.column("preemptions").tolist()
    for name in ("started", "first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, err_msg=name)


def test_slo_aware_raises_capacity_under_a_two_class_slo():
    policies = {
        "fcfs": ["scheduler=chunked_prefill"],
        "vllm": ["scheduler=vllm_v1"],
        "priority": ["scheduler=vllm_v1", "scheduler.policy=priority", "scheduler.token_budget=2048"],
        "slo_aware": ["scheduler=slo_aware"],
    }
    found = {name: capacity(compose([*TWO_CLASS, *chosen])).rate for name, chosen in policies.items()}
    assert found["slo_aware"] > 1.4 * found["fcfs"]
    assert found["slo_aware"] > 1.4 * found["vllm"]
    assert found["slo_aware"] > 1.1 * found["priority"] > 1.1 * found["fcfs"]


def test_of_prompts_due_at_one_time_the_long_wait_for_the_short(tiny_pool, drive):
    load = [(0.0, 50, 5), *((1e-4, tokens, 5) for tokens in (300, 20, 100))]
    for patience, order in ((0.0, [300, 20, 100]), (1e-3, [20, 100, 300])):
        pool = tiny_pool("slo_aware", token_budget=512, max_running=1, patience=patience)
        run = drive(pool, load, kinds=KINDS[:1])
        assert [r.input for r in sorted(run.requests[1:], key=lambda r: r.started)] == order
