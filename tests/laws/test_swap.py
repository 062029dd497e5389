"""A preempted request that waits in host memory keeps what it computed; moving it costs what its bytes cost."""

from dataclasses import replace
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.errors import InputError
from mist.memory.swap import SwapPool
from mist.request import Request
from mist.simulate import serve

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
BLOCK = 4 * 2 * 2 * 2 * 16 * 2.0  # bytes: 4 tokens, 2 layers, keys and values, 2 heads of 16, 16 bits
ROOM = 1e9  # bytes, more than anybody needs


@pytest.fixture
def swapping(make_pool, tiny, linear):
    """A pool under memory pressure, with a host link of ``bandwidth`` bytes/s."""

    def pool(bandwidth=1e9, **fields):
        fields = {"preemption": "swap", "kv_blocks": 40, "perf": linear(STEP, TOKEN, CACHED), **fields}
        fields = {"swap_space": ROOM if fields["preemption"] == "swap" else None, **fields}
        limits = {"token_budget": 64, "max_running": 31, **fields.pop("limits", {})}
        spec = make_pool(model=tiny, engine={"block_tokens": 4}, limits=limits, **fields)
        return replace(spec, hardware=replace(spec.hardware, host_bandwidth=bandwidth))

    return pool


def crowd(poisson):
    return poisson(7, 60, 1e4, (1, 30), (1, 50))


def test_blocks_are_conserved_on_the_device_and_on_the_host(preempting_name, swapping, drive, poisson):
    seen = []

    def conserved(run):
        (client,) = run.clients
        kv = client.kv
        assert 0 <= kv.used <= kv.total
        assert 0 <= kv.host_used <= kv.host.blocks
        assert kv.blocks_out - kv.blocks_in == kv.host_used
        held = sum(r.blocks for r in client.running if r.joined < 0)
        held += sum(ceil(client.decodes.computed(r) / 4) for r in client.running if r.joined >= 0)
        assert held <= kv.used <= held + client.decodes.count  # the step under way may have taken its blocks
        seen.append(kv.host_used)

    run = drive(swapping(scheduler=preempting_name), crowd(poisson), after_each=conserved)
    (client,) = run.clients
    assert max(seen) > 0
    assert (client.kv.used, client.kv.host_used) == (0, 0)
    assert client.kv.blocks_in == client.kv.blocks_out > 0
    assert all(r.finished > 0 and r.computed == r.known - 1 for r in run.requests)


@pytest.mark.parametrize("bandwidth", [inf, 1e9])
def test_swapping_never_computes_a_token_twice(bandwidth, preempting_name, swapping, drive, poisson, linear):
    """At one second per token and none for anything else, the time spent is the tokens computed, and the copies."""
    spec = swapping(bandwidth, scheduler=preempting_name, perf=linear(token=1.0))
    run = drive(spec, crowd(poisson))
    (client,) = run.clients
    once = sum(r.input + r.output - 1 for r in run.requests)
    copies = (client.kv.blocks_out + client.kv.blocks_in) * BLOCK / bandwidth
    assert client.preemptions > 0
    assert client.busy == pytest.approx(once + copies, rel=1e-12)
    again = drive(swapping(preemption="recompute", scheduler=preempting_name, perf=linear(token=1.0)), crowd(poisson))
    assert again.clients[0].busy > once


@pytest.mark.parametrize("factor", [0.25, 0.99, 1.01, 4.0])
def test_swapping_beats_recomputing_exactly_where_the_copies_take_less_than_the_tokens(factor, swapping, drive, linear):
    """Two requests collide once: computing c tokens anew costs c TOKEN, copying their blocks out and in 2 b S / B."""
    load = [(0.0, 30, 40), (1e-9, 30, 20)]
    fields = {"kv_blocks": 20, "perf": linear(STEP, TOKEN), "scheduler": "vllm_v1"}  # one block is the engine's own
    again = drive(swapping(preemption="recompute", **fields), load)
    assert again.column("preemptions").tolist() == [0, 1]
    probe = drive(swapping(inf, **fields), load)
    blocks = probe.clients[0].kv.blocks_out
    saved = again.clients[0].busy - probe.clients[0].busy
    lost = saved / TOKEN
    assert lost == pytest.approx(round(lost))
    assert ceil(round(lost) / 4) == blocks == probe.clients[0].kv.blocks_in
    even = 2 * blocks * BLOCK / saved  # bytes/s at which both take the same
    run = drive(swapping(even * factor, **fields), load)
    gain = again.clients[0].busy - run.clients[0].busy
    assert gain == pytest.approx(saved * (1 - 1 / factor), rel=1e-9)
    assert (gain > 0) == (factor > 1)


def test_a_full_host_leaves_no_choice_but_to_recompute(preempting_name, swapping, drive, poisson):
    tight = drive(swapping(swap_space=16 * BLOCK, scheduler=preempting_name), crowd(poisson)).clients[0]
    assert 0 < tight.kv.host_peak <= 16
    assert 0 < tight.kv.use().recomputed < tight.preemptions
    none = drive(swapping(swap_space=0.5 * BLOCK, scheduler=preempting_name), crowd(poisson))
    plain = drive(swapping(preemption="recompute", scheduler=preempting_name), crowd(poisson))
    assert none.column("finished").tolist() == plain.column("finished").tolist()
    assert none.clients[0].kv.use().recomputed == none.clients[0].preemptions


@settings(max_examples=20)
@given(data=st.data())
def test_leaping_with_swap_equals_stepping_one_by_one(data, scheduler_name, swapping, drive, poisson):
    seed, rate = data.draw(st.integers(0, 2**32)), data.draw(st.sampled_from([20.0, 500.0, 1e4]))
    load = poisson(seed, data.draw(st.integers(2, 40)), rate, (1, 30), (1, 50))
    spec = swapping(
        data.draw(st.sampled_from([1e6, 1e9, inf])), scheduler=scheduler_name,
        kv_blocks=data.draw(st.sampled_from([22, 40, 1000])), swap_space=data.draw(st.sampled_from([10, 1000])) * BLOCK,
    )  # fmt: skip
    fast, slow = drive(spec, load), drive(spec, load, one_by_one=True)
    for name in ("started", "first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0, err_msg=name)
    assert fast.column("preemptions").tolist() == slow.column("preemptions").tolist()
    assert fast.clients[0].kv.use() == slow.clients[0].kv.use()


def test_every_device_moves_its_own_share_over_its_own_link(make_pool):
    one, two = (make_pool(tp=tp, preemption="swap").host() for tp in (1, 2))
    assert two.block_bytes == one.block_bytes / 2
    assert two.time(100) == one.time(100) / 2
    assert two.blocks == pytest.approx(2 * one.blocks, abs=1)
    assert one.blocks == 4 * 2**30 // (16 * 131072)  # vLLM's 4 GiB of blocks of 16 tokens, 128 KiB a token


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"swap_space": "8 GiB"}, "no effect unless preemption=swap"),
        ({"preemption": "swap", "swap_space": 0}, "must be positive"),
        ({"preemption": "drop"}, "recompute, swap"),
    ],
)
def test_an_option_without_effect_or_sense_is_refused(fields, words, make_pool):
    with pytest.raises(InputError, match=words):
        make_pool(**fields)


def test_a_device_without_a_host_link_cannot_swap(swapping):
    with pytest.raises(InputError, match="no link to a host"):
        swapping(0.0)


def test_swapping_is_in_the_result_and_recomputing_is_not(swapping, make_scenario, drawn):
    workload = drawn(n=200, prompt=20.0, answer=15.0)
    swap, recompute = (
        serve(make_scenario(swapping(preemption=mode), workload), workload.traffic(0), 500.0).pools["llm"].swap
        for mode in ("swap", "recompute")
    )
    assert swap.out_bytes > 0
    assert 0 < swap.host_peak < 1
    assert recompute is None


def test_what_was_swapped_comes_back_as_it_was():
    from mist.memory.swap import HostMemory

    pool = SwapPool(10, 4, HostMemory(10, 1.0, 1, 2.0))
    request = Request(0, 0.0, 20, 5)
    pool.admit(request)
    pool.grow(request, 18)
    request.computed = 18
    pool.evict(request)
    assert (pool.used, pool.host_used, pool.hit(request), request.computed) == (0, 5, 18, 0)
    assert pool.delay() == 2.5
    pool.admit(request)
    assert (pool.used, pool.host_used, request.computed, request.blocks) == (5, 0, 18, 5)
    assert (pool.delay(), pool.delay()) == (2.5, 0.0)
