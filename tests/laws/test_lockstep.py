"""The lockstep decoding set and its leaps equal a twin that updates every request at every step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist import engines
from mist.clients.llm import LLMClient
from mist.clients.takeover import Takeover
from mist.decoding import Decoding
from mist.memory.pool import BlockPool
from mist.network import LinkSpec
from mist.request import Request

TIMES = ("started", "first_token", "finished")
# Seconds with no common measure: where two clients' steps end at one instant but for rounding, either may come first.
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5


@st.composite
def loads(draw, most_tokens):
    """A seed, how many, how fast (from alone to all at once), and lengths within ``most_tokens``."""
    seed, n = draw(st.integers(0, 2**32)), draw(st.integers(1, 40))
    rate = draw(st.sampled_from([1.0, 20.0, 100.0, 500.0, 1e4]))
    longest = draw(st.integers(2, most_tokens // 2))
    return seed, n, rate, (1, longest), (1, draw(st.integers(1, most_tokens - longest)))


def same(fast, slow):
    for name in TIMES:
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0, err_msg=name)
    for name in ("preemptions", "replica", "refused", "computed", "known", "left"):
        assert fast.column(name).tolist() == slow.column(name).tolist(), name
    for left, right in zip(fast.requests, slow.requests, strict=True):
        assert [visit[:2] for visit in left.visits] == [visit[:2] for visit in right.visits]
        np.testing.assert_allclose([v[2:] for v in left.visits], [v[2:] for v in right.visits], rtol=1e-12, atol=0)
    for left, right in zip(fast.clients, slow.clients, strict=True):
        assert (left.steps, left.preemptions, left.kv.used) == (right.steps, right.preemptions, 0)
        assert left.leaps <= right.leaps
        assert left.busy == pytest.approx(right.busy, rel=1e-9)


@pytest.mark.parametrize("blocks", [20, 60, 100_000])
@settings(max_examples=25)
@given(data=st.data())
def test_leaping_in_lockstep_equals_stepping_one_by_one(
    data, scheduler_name, blocks, make_pool, drive, poisson, tiny, linear
):
    load = poisson(*data.draw(loads(min(blocks, 60) * 4 - 4)))
    limits = {"max_running": data.draw(st.sampled_from([1, 4, 31])), "token_budget": data.draw(st.integers(32, 300))}
    replicas = data.draw(st.integers(1, 3))
    perf = data.draw(st.sampled_from([linear(STEP, TOKEN, CACHED), linear(STEP), None]))
    pool = make_pool(
        model=tiny, scheduler=scheduler_name, limits=limits, replicas=replicas, perf=perf, kv_blocks=blocks,
        engine={"block_tokens": 4}, router=data.draw(st.sampled_from(["round_robin", "least_loaded"])),
    )  # fmt: skip
    same(drive(pool, load), drive(pool, load, one_by_one=True))


@settings(max_examples=40)
@given(data=st.data())
def test_leaping_equals_stepping_across_a_hand_over(data, scheduler_name, make_pool, drive, poisson, tiny, linear):
    blocks = {role: data.draw(st.sampled_from([20, 40, 10_000])) for role in ("prefill", "decode")}
    load = poisson(*data.draw(loads(76)))
    limits = {"max_running": data.draw(st.sampled_from([1, 4, 31])), "token_budget": data.draw(st.integers(32, 300))}
    pools = {
        role: make_pool(
            model=tiny, scheduler=scheduler_name, limits=limits, replicas=data.draw(st.integers(1, 3)), role=role,
            perf=linear(STEP, TOKEN, CACHED), kv_blocks=blocks[role], engine={"block_tokens": 4}, router="least_loaded",
        )
        for role in blocks
    }  # fmt: skip
    link = LinkSpec("wire", data.draw(st.sampled_from([1e6, 1e8])), data.draw(st.sampled_from([0.0, 1e-4])))
    same(drive(pools, load, link), drive(pools, load, link, one_by_one=True))


def test_the_twins_are_compared_under_preemption(preempting_name, make_pool, drive, poisson, tiny, linear):
    load = poisson(7, 60, 1e4, (1, 30), (1, 50))
    pool = make_pool(
        model=tiny, scheduler=preempting_name, limits={"token_budget": 64, "max_running": 31}, kv_blocks=40,
        perf=linear(STEP, TOKEN, CACHED), engine={"block_tokens": 4},
    )  # fmt: skip
    fast = drive(pool, load)
    assert sum(fast.column("preemptions")) > 1
    same(fast, drive(pool, load, one_by_one=True))


@pytest.mark.parametrize("blocks", [40, 1000])
def test_the_client_that_leaps_ends_where_the_one_that_steps_does(
    blocks, scheduler_name, make_pool, drive, poisson, tiny, linear, monkeypatch
):
    load = poisson(8, 60, 500.0, (1, 30), (1, 50))
    pool = make_pool(
        model=tiny, scheduler=scheduler_name, limits={"token_budget": 64, "max_running": 31}, kv_blocks=blocks,
        perf=linear(STEP, TOKEN, CACHED), engine={"block_tokens": 4},
    )  # fmt: skip
    leapt = drive(pool, load)
    monkeypatch.setattr(engines, "LeapingClient", LLMClient)
    stepped = drive(pool, load)
    for name in TIMES:
        np.testing.assert_allclose(leapt.column(name), stepped.column(name), rtol=1e-12, atol=0)
    assert leapt.column("preemptions").tolist() == stepped.column("preemptions").tolist()
    assert stepped.kernel.events > leapt.kernel.events


@settings(max_examples=200)
@given(data=st.data(), block_tokens=st.sampled_from([1, 2, 4, 16]))
def test_the_sums_of_the_decoding_set_are_the_members_own(data, block_tokens, one_by_one):
    sets = Decoding(block_tokens), one_by_one(block_tokens)
    members: dict[int, tuple[Request, Request]] = {}
    for serial in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["join", "join", "leave", "advance", "advance"]))
        if action == "join":
            input_, output = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
            twins = tuple(Request(serial, 0.0, input_, output) for _ in sets)
            for chosen, request in zip(sets, twins, strict=True):
                request.computed, request.blocks = input_, -(-input_ // block_tokens)
                request.admitted = serial
                chosen.join(request)
            members[serial] = twins
        elif action == "leave" and members:
            twins = members.pop(data.draw(st.sampled_from(sorted(members))))
            for chosen, request in zip(sets, twins, strict=True):
                chosen.leave(request)
            assert_same_counts(*twins)
        elif action == "advance" and members:
            assert sets[0].steps_to_leaver() == sets[1].steps_to_leaver()
            steps = data.draw(st.integers(1, sets[1].steps_to_leaver()))
            fast, slow = (chosen.advance(steps) for chosen in sets)
            assert [request.id for request in fast] == [request.id for request in slow]
            for request in fast:
                assert_same_counts(*members.pop(request.id))
        assert (sets[0].count, sets[0].cached, sets[0].step) == (sets[1].count, sets[1].cached, sets[1].step)
        ahead = data.draw(st.integers(0, 20))
        assert {r.id for r in sets[0].due(ahead)} == {r.id for r in sets[1].due(ahead)}
        assert sets[0].blocks_due == sets[1].blocks_due
        for fast, slow in members.values():
            assert sets[0].computed(fast) == sets[1].computed(slow)
        if members:
            steps, blocks = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 60))
            assert sets[0].blocks_for(steps) == sets[1].blocks_for(steps)
            assert sets[0].steps_within(blocks, steps) == sets[1].steps_within(blocks, steps)


def assert_same_counts(fast, slow):
    for name in ("computed", "known", "left", "blocks", "joined"):
        assert getattr(fast, name) == getattr(slow, name), name


def test_an_evicted_member_that_rejoins_leaves_once(one_by_one):
    for chosen in (Decoding(4), one_by_one(4)):
        first, second = Request(0, 0.0, 3, 10), Request(1, 0.0, 3, 12)
        for request in (first, second):
            request.computed = 3
            chosen.join(request)
        chosen.advance(2)
        chosen.leave(first)  # 8 left, to sample its last at step 10
        chosen.advance(1)
        first.left, first.computed = 7, 6  # recomputing its prompt sampled one: step 10 again
        chosen.join(first)
        assert chosen.steps_to_leaver() == 7
        assert chosen.advance(7) == [first]
        assert chosen.count == 1
        assert chosen.steps_to_leaver() == 2


def test_a_hand_over_that_is_here_counts_once():
    takeover, kv = Takeover(), BlockPool(10, 4)
    for id_ in range(3):
        takeover.expected.append((Request(id_, 0.0, 4, 4), takeover.landed.append))
    takeover.fetch(kv, seats=2, ahead=0)
    assert (len(takeover), len(takeover.expected), len(takeover.landed)) == (3, 1, 2)
    assert (takeover.begin().id, len(takeover)) == (0, 2)
    takeover.drop(takeover.landed[0], kv)
    assert (len(takeover), len(takeover.landed)) == (1, 0)
