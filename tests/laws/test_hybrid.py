"""Hybrid models: layers of linear attention keep a state of constant size, the others a cache that grows."""

import sys
from dataclasses import replace

import pytest

from mist.build import build
from mist.errors import InputError
from mist.model import ModelSpec
from mist.network import LinkSpec
from mist.perf.base import StepShape
from mist.perf.footprint import kv_blocks
from mist.perf.measured import Measured
from mist.perf.roofline import Roofline
from mist.perf.stages import stages

HYBRIDS = ("qwen3-next-80b-a3b", "qwen3.5-27b", "qwen3.5-397b-a17b", "qwen3.6-35b-a3b")
TABLES = pytest.mark.skipif(sys.platform == "win32", reason="the operator tables are not published for Windows")


@pytest.fixture(scope="module", params=["roofline", pytest.param("measured", marks=TABLES)])
def perf(request, sheet):
    return build({"roofline": Roofline, "measured": Measured}[request.param], sheet("perf", request.param))


@pytest.fixture(scope="module")
def hybrid(sheet):
    return build(ModelSpec, sheet("model", "qwen3.6-35b-a3b"))


@pytest.mark.parametrize("name", HYBRIDS)
def test_only_attention_layers_cache_tokens(name, sheet):
    model = build(ModelSpec, sheet("model", name))
    assert model.attention_layers * 4 == model.layers
    assert model.kv_bytes_per_token == model.layers / 4 * 2 * model.kv_heads * 256 * 2


def test_the_state_follows_from_first_principles(hybrid):
    # layers x (value heads x key x value x float32 + 3 tokens of queries, keys and values in 16 bits)
    assert hybrid.state_bytes == 30 * (32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2)


def test_a_state_is_set_aside_for_every_request(make_pool, hybrid):
    replica = make_pool(model=hybrid, hardware="h200").replica
    few, many = (kv_blocks(replica, 2048, requests) for requests in (1, 101))
    rows = 100 * hybrid.vocabulary * 4.0
    block = 16 * hybrid.kv_bytes_per_token
    assert (few - many) * block == pytest.approx(100 * hybrid.state_bytes + rows, abs=block)


def test_a_longer_context_costs_the_attention_layers_alone(make_pool, perf, hybrid):
    model = perf.of(make_pool(model=hybrid, hardware="b300").replica)
    full = replace(hybrid, linear_layers=0)
    plain = perf.of(make_pool(model=full, hardware="b300").replica)
    short, long = (StepShape(32, 32 * tokens) for tokens in (8_192, 32_768))
    grown = [steps.step_time(long) - steps.step_time(short) for steps in (model, plain)]
    assert grown[0] == pytest.approx(grown[1] / 4, rel=1e-6)


def test_decoding_reads_and_writes_the_state_of_every_sequence(make_pool, perf, hybrid):
    model = perf.of(make_pool(model=hybrid, hardware="b300").replica)
    light = replace(hybrid, state_dtype="bf16")
    lighter = perf.of(make_pool(model=light, hardware="b300").replica)
    assert lighter.step_time(StepShape(64, 64)) <= model.step_time(StepShape(64, 64))
    assert model.step_time(StepShape(512, 512)) > model.step_time(StepShape(256, 256))


def test_a_chunk_after_others_costs_linear_attention_no_more(make_pool, perf, hybrid):
    model = perf.of(make_pool(model=hybrid, hardware="b300").replica)
    plain = perf.of(make_pool(model=replace(hybrid, linear_layers=0), hardware="b300").replica)
    first, later = StepShape(0, 0, ((1024, 0),)), StepShape(0, 0, ((1024, 30_000),))
    assert model.step_time(later) - model.step_time(first) < 0.3 * (plain.step_time(later) - plain.step_time(first))


def test_a_common_prefix_read_once_leaves_the_states_to_be_read(make_pool, perf, hybrid):
    """Its queries and outputs are read again and merged, so a prefix of one token spares nothing."""
    model = perf.of(make_pool(model=hybrid, hardware="h100", engine={"cascade_overhead": 0.0}).replica)
    shape = StepShape(256, 256 * 300)
    assert model.step_time(shape._replace(shared=1)) > model.step_time(shape)


@TABLES
@pytest.mark.parametrize(("hardware", "timed"), [("b300", True), ("h100", True), ("a100", False)])
def test_a_result_says_whether_linear_attention_was_timed(hardware, timed, make_pool, sheet):
    perf = build(Measured, sheet("perf", "measured"))
    model = perf.of(make_pool(model="qwen3.5-27b", hardware=hardware, tp=2).replica)
    for shape in (StepShape(8, 8000), StepShape(0, 0, ((2048, 0),))):
        sources = {part.source for part in model.explain(shape) if part.operator.startswith("linear attention")}
        assert ("analytical" in sources) != timed


def test_pipeline_stages_share_the_layers_of_either_kind(make_pool, hybrid):
    replica = make_pool(model=hybrid, hardware="b300", pp=3).replica
    parts = [stage.model for stage in stages(replica)]
    assert sum(part.linear_layers for part in parts) == hybrid.linear_layers
    assert sum(part.attention_layers for part in parts) == hybrid.attention_layers
    assert sum(part.state_bytes for part in parts) == pytest.approx(hybrid.state_bytes)


def test_a_hand_over_takes_the_state_along(make_pool, drive, hybrid, linear):
    def served(model):
        pools = {
            role: make_pool(model=model, hardware="b300", role=role, perf=linear(1.0), kv_blocks=1000)
            for role in ("prefill", "decode")
        }
        return drive(pools, [(0.0, 100, 3)], LinkSpec("wire", 1e9, 0.0)).requests[0].finished

    heavier = replace(hybrid, state_dtype="fp32"), replace(hybrid, state_dtype="bf16")
    more = (heavier[0].state_bytes - heavier[1].state_bytes) / 1e9
    assert served(heavier[0]) - served(heavier[1]) == pytest.approx(more)


def test_heads_of_linear_attention_must_be_divisible_too(make_pool, hybrid):
    make_pool(model=hybrid, hardware="b300", tp=2)
    with pytest.raises(InputError, match=r"tp = 2: .* has 1 key heads of linear attention, which 2 does not divide"):
        make_pool(model=replace(hybrid, linear_key_heads=1), hardware="b300", tp=2)


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"linear_layers": 41}, "linear_layers"), ({"linear_key_dim": 0}, "linear_key_dim"),
     ({"linear_key_heads": 5}, "linear_key_heads")],
)  # fmt: skip
def test_a_shape_that_will_not_do_is_refused_by_name(hybrid, fields, word):
    with pytest.raises(InputError, match=word):
        replace(hybrid, **fields)
