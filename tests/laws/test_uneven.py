"""Batches of uneven contexts: a kernel that waits for its longest sequence, and what the engine pads."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build
from mist.decoding import Decoding
from mist.errors import InputError
from mist.perf.base import StepShape
from mist.perf.engine import EngineProfile
from mist.perf.measured import Measured
from mist.perf.tables.grid import Grid
from mist.request import Request

TABLES = pytest.mark.skipif(sys.platform == "win32", reason="the operator tables are not published for Windows")


@pytest.fixture(scope="module")
def steps(sheet, make_pool):
    """Step times of a pool of measured operators."""
    perf = build(Measured, sheet("perf", "measured"))

    def of(model, hardware, engine=None, **fields):
        return perf.of(make_pool(model=model, hardware=hardware, engine=engine, **fields).replica)

    return of


@settings(max_examples=50)
@given(data=st.data())
def test_the_longest_context_is_that_of_the_member_with_most_tokens(data):
    decodes, members = Decoding(4), []
    for number in range(data.draw(st.integers(1, 60))):
        request = Request(number, 0.0, data.draw(st.integers(1, 50)), 100)
        request.computed, request.left = request.input, data.draw(st.integers(1, 30))
        decodes.join(request)
        members.append(request)
        for gone in decodes.advance(data.draw(st.integers(0, min(decodes.steps_to_leaver(), 9)))):
            members.remove(gone)
        if data.draw(st.booleans()):
            assert decodes.longest == max((decodes.computed(member) for member in members), default=0)


@TABLES
def test_leaping_equals_stepping_where_a_kernel_waits_for_its_longest_sequence(make_pool, drive, poisson, sheet):
    perf = build(Measured, sheet("perf", "measured"))
    limits = {"max_running": 31, "token_budget": 2048}
    pool = make_pool(hardware="b300", perf=perf, limits=limits, kv_blocks=2000)
    assert pool.perf.of(pool.replica).uneven
    load = poisson(3, 120, 200.0, (1, 3000), (1, 400))
    fast, slow = drive(pool, load), drive(pool, load, one_by_one=True)
    assert sum(client.preemptions for client in fast.clients) > 0
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0)


@TABLES
def test_a_batch_with_one_long_sequence_takes_longer_only_where_the_kernel_waits_for_it(steps):
    even, uneven = StepShape(32, 32 * 4000, longest=4000), StepShape(32, 32 * 4000, longest=16000)
    unknown = even._replace(longest=0)
    for hardware, waits in (("b200", True), ("b300", True), ("h100", False), ("rtx-pro-6000", False)):
        model = steps("llama-3.1-8b", hardware)
        assert model.uneven == waits
        assert model.step_time(even) == model.step_time(unknown)
        assert (model.step_time(uneven) > 1.1 * model.step_time(even)) == waits
        assert model.step_time(uneven) == pytest.approx(sum(part.seconds for part in model.explain(uneven)))


@TABLES
def test_a_stretch_of_uneven_sequences_is_the_steps_it_stands_for(steps):
    model = steps("llama-3.1-8b", "b300")
    for longest in (700, 5000, 40_000):
        stretch = model.decode_stretch(16, 16 * 600, longest)
        for step in {0, 1, int(min(stretch.steps, 5000)) - 1}:
            time = model.step_time(StepShape(16, 16 * (600 + step), longest=longest + step))
            assert stretch.first + step * stretch.slope == pytest.approx(time, rel=1e-12)


@pytest.mark.parametrize(
    ("slots", "batch", "launched", "sequences"),
    [
        (18.5, 1, 1, 1 / 18),  # 8 KV heads on 148 multiprocessors: a sequence in 18 parts, 144 of them busy
        (18.5, 5, 8, 1 / 2),  # a graph of 8 was captured: two parts each, though 5 would have had three
        (18.5, 9, 16, 1),
        (18.5, 18, 24, 1),  # absent ones cost nothing
        (18.5, 19, 24, 2),
        (18.5, 37, 40, 2),
        (18.5, 38, 40, 3),
        (74.0, 20, 24, 1 / 3),  # 2 KV heads, of TP 4
    ],
)
def test_sequences_are_cut_for_the_captured_batch_and_taken_in_turn_beyond_the_multiprocessors(
    slots, batch, launched, sequences
):
    rows = ((1e-5, 1e-4), (2e-5, 2e-4))
    assert Grid((1.0, 64.0), (1.0, 8192.0), rows, (8192.0, 8192.0), slots=slots).turn(batch, launched) == sequences


def attention(model, batch, mean, longest):
    """Seconds of decode attention in a step of ``batch`` sequences."""
    parts = model.explain(StepShape(batch, batch * mean, longest=longest))
    return next(part.seconds for part in parts if part.operator == "decode attention")


@TABLES
def test_decode_attention_rises_where_a_multiprocessor_gets_another_sequence_and_nowhere_between(steps):
    model = steps("qwen3-32b", "b300")
    times = {batch: attention(model, batch, 4000, 4000) for batch in (8, 9, 16, 18, 19, 32)}
    assert times[8] < times[9] == times[16] == times[18] < times[19] == times[32]


@TABLES
def test_one_long_sequence_weighs_less_the_more_are_read_in_turn(steps):
    model = steps("qwen3-32b", "b300")
    slower = [attention(model, batch, 1000, 8000) / attention(model, batch, 1000, 1000) for batch in (16, 64, 512)]
    assert slower == sorted(slower, reverse=True)
    assert slower[-1] > 1


def test_a_step_is_padded_to_the_next_captured_size(sheet):
    engine = build(EngineProfile, sheet("engine", "vllm"))
    sizes = {1: 1, 2: 2, 3: 4, 5: 8, 9: 16, 17: 24, 250: 256, 256: 256, 257: 272, 511: 512, 512: 512, 513: 513}
    assert {tokens: engine.computed(tokens) for tokens in sizes} == sizes
    free = replace(engine, captured_tokens=0)
    assert all(free.computed(tokens) == tokens for tokens in sizes)
    with pytest.raises(InputError, match="captured_tokens"):
        replace(engine, captured_tokens=-1)


@TABLES
def test_padded_rows_are_computed(steps):
    padded, free = (steps("qwen3-30b-a3b", "h200", {"captured_tokens": most}) for most in (512, 0))
    assert padded.step_time(StepShape(17, 17 * 500)) > free.step_time(StepShape(17, 17 * 500))
    assert padded.step_time(StepShape(24, 24 * 500)) == free.step_time(StepShape(24, 24 * 500))
    chunk = StepShape(0, 0, ((2048, 0),))
    assert padded.step_time(chunk) == free.step_time(chunk)


@TABLES
def test_an_engine_that_replays_no_graph_pads_nothing(steps):
    launch = {"launch_time": 1e-9}
    padded, free = (steps("llama-3.1-8b", "h200", {"captured_tokens": most, **launch}) for most in (512, 0))
    for tokens in (3, 17, 300):
        shape = StepShape(tokens, tokens * 500)
        assert padded.step_time(shape) == free.step_time(shape)


@TABLES
def test_an_all_reduce_takes_its_norm_along_where_the_engine_fuses_them(steps):
    for hardware, fused in (("b300", True), ("h100", True), ("a100", False), ("l40s", False)):
        together, apart = (steps("llama-3.1-70b", hardware, {"allreduce": how}, tp=4) for how in ("fused", "apart"))
        for tokens in (1, 32):
            shape = StepShape(tokens, tokens * 500)
            names = {part.operator for part in together.explain(shape)}
            assert ("all-reduce with norm" in names) == fused
            assert ("norms" in names and "all-reduce" in names) or fused
            assert (together.step_time(shape) < apart.step_time(shape)) == fused
        long = StepShape(0, 0, ((16_384, 0),))
        assert together.step_time(long) == pytest.approx(apart.step_time(long), rel=0.02)


@TABLES
def test_a_token_after_a_long_past_waits_for_one_tile_to_pass_over_it_where_the_kernel_does_not_split_it(steps):
    """Of a lone prompt the last tile of queries passes over all keys while the others run beside it."""
    for hardware, kernels, waits in (("b300", "vllm", True), ("b300", "trtllm", True), ("h100", "vllm", False)):
        model = steps("llama-3.1-8b", hardware, {"kernels": kernels})

        def attention(chunk, past, model=model):
            parts = {part.operator: part.seconds for part in model.explain(StepShape(0, 0, ((chunk, past),)))}
            return parts["prompt attention"]

        each = (attention(512, 0) - attention(128, 0)) / 384
        waiting = [attention(1, past) - attention(1, 0) >= 0.9 * each * past for past in (4_000, 16_000, 64_000)]
        assert all(waiting) if waits else not any(waiting)
        assert attention(8192, 8192) == pytest.approx(attention(16384, 0) * 3 / 4, rel=0.01)  # its share of the pairs
