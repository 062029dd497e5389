"""Step times and memory, worked out by hand, and what must hold of them for every sheet."""

from dataclasses import replace

import pytest

from mist.build import build
from mist.errors import ImpossibleLayout, Infeasible
from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.perf.base import Replica, StepShape
from mist.perf.collective import allreduce_time
from mist.perf.engine import EngineProfile
from mist.perf.footprint import kv_blocks
from mist.perf.roofline import Roofline

SMALL = ModelSpec("small", 2, 8, 4, 2, 2, 16, 32, context=100, parameters=1e3)
# Matrices of one layer: attention 8 x (8 + 2 x 4) + 8 x 8 = 192, MLP 3 x 8 x 16 = 384; head 32 x 8 = 256.
SLOW_SUMS = HardwareSpec("sums", "us", "asic", {"bf16": 1e3}, 1e6, 1e3, 100.0, 1.0, 4, 1.0, 1.0, 1.0)
SLOW_READS = replace(SLOW_SUMS, peaks={"bf16": 1e9})
ENGINE = EngineProfile("engine", "1", 0.1, 0.01, 0.2, 4, 0.9, 0.0)
IDEAL = Roofline(1.0, 1.0, 1.0, 1.0)
FREE = EngineProfile("free", "1", 0.0, 0.0, 0.0, 16, 1.0, 0.0)
SHAPES = [
    StepShape(1, 100),
    StepShape(64, 64 * 700),
    StepShape(400, 400 * 90),
    StepShape(0, 0, ((512, 0),)),
    StepShape(30, 9000, ((128, 4000), (700, 0))),
]


@pytest.fixture(scope="module")
def steps(sheet):
    """Step times under the roofline of conf/ of a model sheet or spec on a hardware sheet or spec."""

    def of(model, hardware="h100", tp=1, engine=None):
        model = model if isinstance(model, ModelSpec) else build(ModelSpec, sheet("model", model))
        hardware = hardware if isinstance(hardware, HardwareSpec) else build(HardwareSpec, sheet("hardware", hardware))
        profile = engine or build(EngineProfile, sheet("engine", "vllm"))
        return build(Roofline, sheet("perf", "roofline")).of(Replica(model, hardware, tp, profile))

    return of


def test_a_decode_step_bound_by_arithmetic_is_its_operations():
    # Two sequences, 10 tokens cached. Operations per layer: attention matrices 2 x 2 x 192 = 768, MLP
    # 2 x 2 x 384 = 1536, attention 2 x 4 heads x (2 + 2) = 32 per pair, 10 + 2 pairs = 384; each longer than its bytes.
    # Element-wise, bytes: 2 tokens x (8 x 8 + 3 x 16) x 2 = 448. Head: 2 x 2 x 256 = 1024. Engine: 0.1 + 2 x 0.01.
    by_hand = 2 * (0.768 + 1.536 + 0.384 + 0.448) + 1.024 + 0.12
    assert IDEAL.of(Replica(SMALL, SLOW_SUMS, 1, ENGINE)).step_time(StepShape(2, 10)) == pytest.approx(by_hand)


def test_a_decode_step_bound_by_memory_is_its_bytes():
    # Bytes per layer: attention matrices 192 x 2 + 2 x 2 x 8 x 2 = 448, MLP 384 x 2 + 64 = 832, element-wise 448,
    # cache 12 tokens x 2 x 2 x 2 x 2 = 192 and queries 2 x 4 x 4 x 2 = 64. Head 256 x 2 = 512.
    by_hand = 2 * (0.448 + 0.832 + 0.448 + 0.256) + 0.512 + 0.12
    assert IDEAL.of(Replica(SMALL, SLOW_READS, 1, ENGINE)).step_time(StepShape(2, 10)) == pytest.approx(by_hand)


def test_a_chunk_attends_to_its_past_and_causally_to_itself():
    # Three tokens after two: 3 x 2 + 3 x 4 / 2 = 12 pairs x 32 = 384 operations. Matrices 2 x 3 x 192 and 2 x 3 x 384;
    # element-wise 112 x 2 x 3 = 672 bytes; head for one request 512; engine 0.1 + 0.01 + 0.2 for the chunk.
    by_hand = 2 * (1.152 + 2.304 + 0.384 + 0.672) + 0.512 + 0.31
    model = IDEAL.of(Replica(SMALL, SLOW_SUMS, 1, ENGINE))
    assert model.step_time(StepShape(0, 0, ((3, 2),))) == pytest.approx(by_hand)


def test_efficiencies_divide_the_peaks():
    half = Roofline(0.5, 0.5, 0.5, 0.5)
    free = replace(ENGINE, step_overhead=0.0, request_overhead=0.0, mixed_overhead=0.0)
    for shape in (StepShape(2, 10), StepShape(1, 3, ((3, 2),))):
        whole, halved = (perf.of(Replica(SMALL, SLOW_SUMS, 1, free)).step_time(shape) for perf in (IDEAL, half))
        assert halved == pytest.approx(2 * whole)


def test_a_large_all_reduce_goes_round_a_ring_and_a_small_one_in_one_shot():
    # 1000 bytes over 4 devices, 100 B/s, 1 s: one shot 1 + 3 x 10 = 31 s, ring 2 x 3 x (1 + 2.5) = 21 s.
    assert allreduce_time(1000.0, 4, 100.0, 1.0) == 21.0
    # 10 bytes: one shot 1 + 3 x 0.1 = 1.3 s, ring 6 x 1.025 s.
    assert allreduce_time(10.0, 4, 100.0, 1.0) == pytest.approx(1.3)
    assert allreduce_time(1000.0, 1, 100.0, 1.0) == 0.0


def test_tensor_parallelism_splits_the_bytes_and_pays_two_all_reduces_a_layer():
    # Two devices, two sequences, 10 tokens cached. Attention matrices 96 x 2 + 64 = 256, MLP 192 x 2 + 64 = 448,
    # element-wise 2 x (64 + 24) x 2 = 352, cache 12 x 1 head x 2 x 2 x 2 = 96 and queries 32: 1.184 s. Head 256.
    # All-reduce of 2 x 8 x 2 = 32 bytes at 100 B/s: one shot 1 + 0.32 s, ring 2 x (1 + 0.16) s.
    by_hand = 2 * (0.256 + 0.448 + 0.352 + 0.128 + 2 * 1.32) + 0.256 + 0.12
    assert IDEAL.of(Replica(SMALL, SLOW_READS, 2, ENGINE)).step_time(StepShape(2, 10)) == pytest.approx(by_hand)


def test_a_stretch_is_the_steps_it_stands_for(model_name, steps):
    model = steps(model_name)
    for decodes, context in ((1, 5), (7, 7 * 500), (64, 64 * 100), (64, 64 * 5000), (300, 300 * 1000)):
        ahead = 0
        for _ in range(12):  # stretches in a row, across every kink
            stretch = model.decode_stretch(decodes, context + ahead * decodes)
            count = int(min(stretch.steps, 20_000))
            assert count >= 1
            singly = [
                model.step_time(StepShape(decodes, context + (ahead + i) * decodes)) for i in range(min(count, 40))
            ]
            for i, time in enumerate(singly):
                assert stretch.first + i * stretch.slope == pytest.approx(time, rel=1e-12)
            assert stretch.time(len(singly)) == pytest.approx(sum(singly), rel=1e-12)
            for i in (count // 3, count // 2, count - 1):
                time = model.step_time(StepShape(decodes, context + (ahead + i) * decodes))
                assert stretch.first + i * stretch.slope == pytest.approx(time, rel=1e-12)
            ahead += count


def test_a_windowed_layer_reads_no_more_than_its_window(steps, sheet):
    spec = build(ModelSpec, sheet("model", "gemma-3-12b"))
    model, all_windows = steps(spec), steps(replace(spec, window_layers=spec.layers))
    far, further = (StepShape(4, 4 * context) for context in (50_000, 100_000))
    assert all_windows.step_time(far) == all_windows.step_time(further)
    assert model.step_time(far) < model.step_time(further)
    assert model.step_time(further) < steps(replace(spec, window_layers=0)).step_time(further)


def test_one_token_reads_every_weight_it_needs_once(model_name, sheet):
    model = build(ModelSpec, sheet("model", model_name))
    memory_bound = replace(SLOW_READS, peaks={"bf16": 1e30}, memory_bandwidth=1.0)
    read = IDEAL.of(Replica(model, memory_bound, 1, FREE)).step_time(StepShape(1, 0))
    layer = BYTES_PER_ELEMENT[model.weight_dtype]
    expert = BYTES_PER_ELEMENT[model.expert_dtype or model.weight_dtype]
    head = model.embedding_parameters * max(layer, 2.0) if model.kind == "decoder" else 0.0
    inner = model.counted_parameters - model.routed_parameters - model.outer_parameters
    chosen = model.routed_parameters * model.experts_per_token / model.experts if model.experts else 0.0
    # Activations, a router's matrix and the cache of one token come to less than 2 %.
    assert read == pytest.approx(inner * layer + chosen * expert + head, rel=0.02)


@pytest.mark.parametrize("device", ["a100", "h100", "b200", "mi300x", "tpu-v6e"])
def test_narrower_weights_are_never_slower(device, model_name, steps, sheet):
    spec = replace(build(ModelSpec, sheet("model", model_name)), expert_dtype=None)
    wide, narrow = (steps(replace(spec, weight_dtype=dtype), device) for dtype in ("bf16", "fp8"))
    for shape in SHAPES:
        assert narrow.step_time(shape) <= wide.step_time(shape) * (1 + 1e-12)


def test_a_faster_device_is_never_slower(hardware_name, steps, sheet):
    device = build(HardwareSpec, sheet("hardware", hardware_name))
    faster = [
        replace(device, memory_bandwidth=1.5 * device.memory_bandwidth),
        replace(device, peaks={dtype: 1.5 * peak for dtype, peak in device.peaks.items()}),
        replace(device, scale_up_bandwidth=1.5 * device.scale_up_bandwidth),
    ]
    tp = min(2, device.scale_up_devices)
    for name in ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-2-9b"):
        now, others = steps(name, device, tp), [steps(name, other, tp) for other in faster]
        for shape in SHAPES:
            assert all(other.step_time(shape) <= now.step_time(shape) for other in others)


def test_eight_bits_halve_the_layers_weights_and_the_cache(model_name, sheet):
    spec = replace(build(ModelSpec, sheet("model", model_name)), expert_dtype=None)
    wide, narrow = (replace(spec, weight_dtype=dtype, kv_dtype=dtype) for dtype in ("bf16", "fp8"))
    outer = 2.0 * spec.outer_parameters
    assert narrow.weight_bytes - outer == pytest.approx((wide.weight_bytes - outer) / 2)
    assert narrow.kv_bytes_per_token == wide.kv_bytes_per_token / 2


def test_the_kv_blocks_of_llama_8b_on_an_h100(sheet):
    model = build(ModelSpec, sheet("model", "llama-3.1-8b"))
    device = replace(build(HardwareSpec, sheet("hardware", "h100")), memory=80e9)
    engine = replace(FREE, memory_utilization=0.9, reserve=2e9)
    # Weights, elements: 32 layers of attention 4096 x (4096 + 2 x 1024) + 4096 x 4096 = 41,943,040 and MLP
    # 3 x 4096 x 14336 = 176,160,768; two vocabulary matrices of 128256 x 4096 = 525,336,576; 16 bits each.
    weights = 2 * (32 * (41_943_040 + 176_160_768) + 2 * 525_336_576)
    assert model.weight_bytes == weights == 16_059_990_016
    # Activations of 2048 tokens (4 x 4096 + 2 x 14336) x 2 bytes; logits of 256 requests, 4 bytes.
    activations = 2048 * 45_056 * 2 + 256 * 128_256 * 4
    # A block: 16 tokens x 32 layers x 2 x 8 heads x 128 x 2 bytes = 2 MiB.
    by_hand = (72_000_000_000 - weights - activations - 2_000_000_000) // 2_097_152
    assert kv_blocks(Replica(model, device, 1, engine), 2048, 256) == by_hand == 25_569
    # Two devices: half the weights and half a block each; of the activations, MLP and logits are split.
    activations = 2048 * (4 * 4096 + 14_336) * 2 + 256 * 64_128 * 4
    by_hand = (72_000_000_000 - weights // 2 - activations - 2_000_000_000) // 1_048_576
    assert kv_blocks(Replica(model, device, 2, engine), 2048, 256) == by_hand


def test_a_model_that_does_not_fit_says_so_with_numbers(make_pool):
    with pytest.raises(Infeasible, match=r"llama-3\.1-70b needs 141 GB of weights, 2 x l40s hold 96 GB"):
        make_pool(model="llama-3.1-70b", hardware="l40s", tp=2).blocks()
    with pytest.raises(Infeasible, match=r"llama-3\.1-70b leaves no memory for KV cache: of .* 2 x a100"):
        make_pool(model="llama-3.1-70b", hardware="a100", tp=2, engine={"memory_utilization": 0.83}).blocks()


@pytest.mark.parametrize(("tp", "why"), [(3, "which 3 does not divide"), (16, "has at most 8 devices")])
def test_an_impossible_layout_names_its_choices(tp, why, make_pool):
    with pytest.raises(ImpossibleLayout, match=rf"tp = {tp}: .*{why}.* \(valid: 1, 2, 4, 8\)"):
        make_pool(tp=tp)
