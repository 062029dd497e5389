"""Layouts, collectives and expert spread, worked out by hand, and what must hold of pipelines."""

from dataclasses import replace

import numpy as np
import pytest

from mist.build import build
from mist.errors import ImpossibleLayout, Infeasible, InputError
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.node import NodeSpec
from mist.perf.base import Replica, StepShape
from mist.perf.collective import Fabric, allreduce, allreduce_time, exchange, fabric
from mist.perf.engine import EngineProfile
from mist.perf.experts import busiest_load, destinations, touched
from mist.perf.footprint import device_weights, kv_blocks
from mist.perf.roofline import Roofline
from mist.perf.stages import crosses, hop_time, layer_shares, stages

DECODES = StepShape(64, 64 * 700)
MIXED = StepShape(30, 9000, ((128, 4000), (700, 0)))


@pytest.fixture(scope="module")
def replica(sheet):
    """A replica from the sheets."""

    def of(model="llama-3.1-8b", hardware="h100", tp=1, node="isolated", **degrees):
        specs = build(ModelSpec, sheet("model", model)), build(HardwareSpec, sheet("hardware", hardware))
        engine, box = build(EngineProfile, sheet("engine", "vllm")), build(NodeSpec, sheet("node", node))
        return Replica(*specs, tp, engine, **degrees, node=box)

    return of


@pytest.fixture(scope="module")
def roofline(sheet):
    return build(Roofline, sheet("perf", "roofline"))


# collectives


def test_an_all_reduce_over_nodes_is_hierarchical():
    # 800 bytes, two nodes of four. Inside, 100 B/s and 1 s: reduce-scatter and all-gather of 3 rounds of 200 bytes,
    # 2 x 3 x (1 + 2) = 18 s. Between, 200 bytes at 10 B/s and 5 s: one shot 5 + 20 s, ring 2 x (5 + 10) s.
    links = Fabric(4, 100.0, 1.0, 10.0, 5.0)
    assert allreduce(links, 800.0, 8) == 18.0 + 25.0
    assert allreduce(links, 800.0, 4) == allreduce_time(800.0, 4, 100.0, 1.0)


def test_an_exchange_takes_the_busier_way():
    # 70 bytes from each of 8 devices to 7 others, 3 of them in its node: 30 bytes at 100 B/s, 40 at 10 B/s.
    assert exchange(Fabric(4, 100.0, 1.0, 10.0, 5.0), 70.0, 8) == pytest.approx(5 + 4)
    assert exchange(Fabric(4, 1.0, 1.0, 10.0, 5.0), 70.0, 8) == pytest.approx(1 + 30)
    assert exchange(Fabric(8, 100.0, 1.0, 10.0, 5.0), 70.0, 8) == pytest.approx(1 + 0.7)
    assert exchange(Fabric(8, 100.0, 1.0, 10.0, 5.0), 70.0, 1) == 0.0


def test_without_peer_access_a_two_device_all_reduce_is_two_to_four_times_as_long(replica):
    direct, staged = (fabric(replica(hardware="l40s", tp=2, node=node), 0.8) for node in ("isolated", "pcie-box"))
    for payload in (1e3, 1e5, 1e7, 1e9):
        assert 2 <= allreduce(staged, payload, 2) / allreduce(direct, payload, 2) <= 4


def test_more_devices_never_make_an_all_reduce_faster_per_node_crossed(replica):
    links = fabric(replica(node="hgx-h100"), 0.8)
    for payload in (1e4, 1e8):
        inside, across = allreduce(links, payload, 8), allreduce(links, payload, 16)
        assert across > inside


# experts


def test_the_busiest_device_is_what_a_draw_finds(replica):
    model = replica("deepseek-v3").model
    draw = np.random.default_rng(1)
    for tokens in (8, 64, 512):
        most, seen = [], []
        for _ in range(200):
            chosen = np.argsort(draw.random((tokens, model.experts)), axis=1)[:, : model.experts_per_token]
            most.append(np.bincount(chosen.ravel() // 32, minlength=8).max())
            seen.append(len(np.unique(chosen)))
        load = busiest_load(model, tokens, 8, 0.0)
        assert load == pytest.approx(np.mean(most), rel=0.06)
        even = busiest_load(model, tokens, 1, 0.0)
        assert touched(model, tokens, 1, even) == pytest.approx(np.mean(seen), rel=0.02)


def test_skew_and_devices_unbalance_and_never_below_the_mean(replica):
    model = replica("qwen3-30b-a3b").model
    for tokens in (1, 10, 1000):
        loads = [busiest_load(model, tokens, 8, skew) for skew in (0.0, 0.3, 0.6, 1.0)]
        assert loads == sorted(loads)
        mean = tokens * model.experts_per_token / 8
        assert mean <= loads[0] <= loads[-1] <= tokens * model.experts_per_token
    assert busiest_load(model, 10**6, 8, 0.0) == pytest.approx(10**6, rel=0.01)  # chance evens out


def test_a_tokens_choices_fall_into_as_many_groups_as_chance_has_it(replica):
    model = replica("mixtral-8x7b").model  # two of eight
    # Four groups of two experts: the second choice falls beside the first in one of seven.
    assert destinations(model, 4) == pytest.approx(1 + 6 / 7)
    assert destinations(model, 8) == pytest.approx(2)
    assert destinations(model, 1) == pytest.approx(1)


# layouts


def test_every_device_holds_its_part_of_the_weights(replica):
    dense = replica("llama-3.1-70b", tp=4)
    assert device_weights(dense) == dense.model.weight_bytes / 4
    spread = replica("deepseek-v3", "h200", tp=1, dp=8, ep=8)
    experts = 58 * 256 * 3 * 7168 * 2048  # bytes, FP8
    assert device_weights(spread) == pytest.approx(experts / 8 + (spread.model.weight_bytes - experts))
    assert device_weights(replica("deepseek-v3", "h200", tp=8)) < device_weights(spread)


def test_pipeline_stages_together_are_the_model(model_name, replica):
    whole = replica(model_name)
    for pp in (2, 3, 4):
        if pp > whole.model.layers:
            continue
        parts = [stage.model for stage in stages(whole._replace(pp=pp))]
        for field in ("layers", "window_layers", "dense_layers", "sparse_layers"):
            assert sum(getattr(part, field) for part in parts) == getattr(whole.model, field)
        assert sum(part.kv_bytes_per_token for part in parts) == pytest.approx(whole.model.kv_bytes_per_token)
        extra = 2 * whole.model.embedding_parameters * 2 + 1e6  # both ends keep the matrix of a tied or encoder model
        total = sum(part.weight_bytes for part in parts)
        assert whole.model.weight_bytes - 1e-3 <= total * (1 + 1e-9) <= whole.model.weight_bytes + extra
        assert max(part.layers for part in parts) - min(part.layers for part in parts) <= 1


def test_layers_left_over_go_before_the_last_stage():
    assert layer_shares(32, 4) == [8, 8, 8, 8]
    assert layer_shares(34, 4) == [8, 9, 9, 8]
    assert layer_shares(61, 2) == [31, 30]


def test_stage_times_add_up_to_the_step(replica, roofline):
    # stages of dense and of sparse layers differ in the width that element-wise kernels are counted with
    for name, exact in (("llama-3.1-70b", 1e-9), ("gemma-2-9b", 1e-9), ("deepseek-v2-lite", 0.02)):
        whole = replica(name)
        for shape in (DECODES, MIXED):
            parts = [roofline.of(stage).step_time(shape) for stage in stages(whole._replace(pp=2))]
            assert sum(parts) == pytest.approx(roofline.of(whole).step_time(shape), rel=exact)


def test_more_stages_hold_more_cache(replica):
    blocks = [kv_blocks(replica("llama-3.1-8b", pp=pp), 2048, 256) for pp in (1, 2, 4)]
    assert blocks == sorted(blocks)
    assert blocks[2] > 4 * blocks[0]  # the weights are split too
    with pytest.raises(Infeasible, match=r"llama-3\.1-405b needs 8\d\d GB of weights, 4 x h100 hold"):
        kv_blocks(replica("llama-3.1-405b", tp=2, pp=2), 2048, 256)


def test_activations_cross_nodes_where_stages_do(replica):
    inside, across = (replica(tp=4, pp=2, node="hgx-h100"), replica(tp=8, pp=2, node="hgx-h100"))
    assert not crosses(inside, 0)
    assert crosses(across, 0)
    # 100 tokens x 4096 x (activations and residual, 2 bytes each), a part for each device.
    per_device = 100 * 4096 * 4 / 8
    gather = 3.4e-6 + 7 * per_device / 450e9
    assert hop_time(across, 100, 0, 1.0) == pytest.approx(5e-6 + per_device / 50e9 + gather)


def test_spread_decodes_leap_as_they_step(replica, roofline):
    for name, degrees in (("deepseek-v3", {"dp": 8, "ep": 8}), ("mixtral-8x7b", {"tp": 2, "dp": 2})):
        model = roofline.of(replica(name, "h200", **degrees))
        for decodes in (1, 5, 64, 100):
            stretch = model.decode_stretch(decodes, decodes * 500)
            for step in range(min(int(min(stretch.steps, 50)), 50)):
                time = model.step_time(StepShape(decodes, decodes * 500 + step * decodes))
                assert stretch.first + step * stretch.slope == pytest.approx(time, rel=1e-12)


def test_attention_copies_pay_with_large_batches_of_latent_attention(replica, roofline):
    cut, copied = (replica("deepseek-v3", "h200", tp=8), replica("deepseek-v3", "h200", dp=8, ep=8))
    large, small = StepShape(2048, 2048 * 2000), StepShape(1, 2000)
    assert roofline.of(copied).step_time(large) < roofline.of(cut).step_time(large)
    assert roofline.of(copied).step_time(small) > roofline.of(cut).step_time(small)
    assert kv_blocks(copied, 8192, 1024) > 2 * kv_blocks(cut, 8192, 1024)


def test_skewed_experts_are_slower(replica, roofline):
    spread = replica("qwen3-235b-a22b", "h200", tp=4, dp=2, ep=8)
    times = [replace(roofline, expert_skew=skew).of(spread).step_time(MIXED) for skew in (0.0, 0.5, 1.0)]
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"pp": 33, "node": "hgx-h100"}, "pp", "has 32 layers"),
        ({"tp": 8, "pp": 2}, "pp", "no way out"),
        ({"dp": 2}, "dp", "no experts"),
        ({"ep": 2, "tp": 2}, "ep", "no experts"),
        ({"tp": 4, "ep": 3, "model": "mixtral-8x7b"}, "ep", r"valid: 1, 2, 4\)"),
        ({"tp": 8, "dp": 2, "ep": 16, "model": "mixtral-8x7b", "node": "hgx-h100"}, "ep", r"valid: 1, 2, 4, 8\)"),
        ({"dp": 16, "model": "mixtral-8x7b"}, "dp", "do not fit"),
        ({"dp": 12, "model": "mixtral-8x7b", "node": "hgx-h100"}, "dp", "whole number of nodes"),
        ({"tp": 16, "model": "llama-3.1-70b"}, "tp", "at most 8 devices"),
        ({"tp": 0}, "tp", "at least 1"),
        ({"pp": 0}, "pp", "at least 1"),
    ],
)
def test_an_impossible_layout_is_refused_by_name(fields, field, why, make_pool, sheet):
    fields = {**fields, "node": sheet("node", fields.get("node", "isolated"))}
    with pytest.raises(InputError, match=why) as caught:
        make_pool(**fields)
    assert caught.value.field == field
    assert isinstance(caught.value, ImpossibleLayout) or 0 in fields.values()


def test_the_default_skew_is_what_was_measured_of_deepseek(replica, sheet):
    # what balancing experts was worth over 32 devices (lmsys.org/blog/2025-05-05-large-scale-ep): 1.49 in prefill
    model, skew = replica("deepseek-v3").model, build(Roofline, sheet("perf", "roofline")).expert_skew
    imbalance = {devices: busiest_load(model, 10**6, devices, skew) * devices / (8 * 10**6) for devices in (8, 32, 64)}
    assert imbalance[32] == pytest.approx(1.49, rel=0.02)
    assert imbalance[8] < 1.2 < imbalance[32] < imbalance[64] < 2.54  # in decode over 72, small batches: 2.54


def test_nodes_widen_what_tensor_parallelism_can_be(make_pool, sheet):
    assert make_pool(model="llama-3.1-70b", tp=16, node=sheet("node", "hgx-h100")).devices == 16
    assert make_pool(model="llama-3.1-70b", tp=2, pp=3, replicas=2).devices == 12


def test_more_replicas_than_memory_holds_are_refused(make_pool):
    with pytest.raises(InputError, match=r"replicas = 1000000000: must be at most 100,000"):
        make_pool(replicas=10**9)
