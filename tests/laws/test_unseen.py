"""Step times of deployments that nobody measured: what must hold of them whatever the tables say.

Every kind of device that has operator tables, dense models and mixtures, several degrees of parallelism, the kernels of
three engines.
"""

from functools import cache
from itertools import pairwise, product

import pytest

from mist.build import build
from mist.errors import MistError
from mist.model import BYTES_PER_ELEMENT
from mist.perf.base import StepShape
from mist.scenario import Scenario
from mist.validation.harness import composed

DEVICES = ("a100", "h100", "h200", "l40s", "b200", "b300", "gb200", "rtx-pro-6000")
LINKED = ("a100", "h100", "h200", "b200", "b300", "gb200")  # by NVLink
DEPLOYED = [
    *product(("llama-3.1-8b", "qwen3-32b"), (1, 2, 4), ("vllm_0_20",)),
    *product(("llama-3.1-8b",), (1,), ("sglang_0_5", "trtllm_0_17")),
    *product(("qwen3-30b-a3b", "gpt-oss-120b"), (1,), ("vllm_0_20",)),
]
BATCHES = (1, 2, 3, 4, 6, 8, 16, 17, 32, 64, 100, 128, 256, 400)
CHUNKS = (1, 16, 100, 128, 129, 256, 512, 1000, 1024, 2048, 4096, 8192)
SCATTER = 0.015  # of timed prompts: what they fall behind growing with the pairs of their tokens is up to 1.3 %
VERSIONS = ("vllm_0_10", "vllm_0_19", "vllm_0_20")  # those that replay CUDA graphs, in order


@cache
def deployed(device, model, tp, engine, perf="measured"):
    """The pool and its step times; None where a table is missing, which an error tells, or it does not fit."""
    said = {"hardware": device, "model": model, "tp": str(tp), "engine": engine, "perf": perf}
    node = {"node": "pcie-box"} if tp > 1 and device not in LINKED else {}
    try:
        (spec,) = build(Scenario, composed({"slo": "none"}, said, node)).pools.values()
        return spec, spec.steptimes()[0]
    except MistError:
        return None


def of(device, perf="measured"):
    found = [deployed(device, *one, perf) for one in DEPLOYED]
    assert sum(one is not None for one in found) >= len(DEPLOYED) - 3
    return [one for one in found if one is not None]


def beyond_overheads(spec, steps, shape):
    """Seconds of the device."""
    engine = spec.engine
    fitted = engine.step_overhead + shape.requests * engine.request_overhead
    return steps.step_time(shape) - fitted - (engine.mixed_overhead if shape.chunks else 0.0)


def physics(spec, shape):
    """Seconds below which no device ends a step: the weights that one token needs, and the cache, read once at the
    published bandwidth; the products of all tokens at the published peak."""
    model, hardware, tp = spec.model, spec.hardware, spec.tp
    expert = BYTES_PER_ELEMENT[model.expert_dtype or model.weight_dtype]
    width = BYTES_PER_ELEMENT[model.weight_dtype]
    routed = model.routed_parameters if model.experts else 0.0
    beside = model.weight_bytes - routed * expert - model.embedding_parameters * width
    taken = routed * (model.experts_per_token / model.experts) if model.experts else 0.0
    cache_ = 0.0 if model.window_layers else shape.context * model.kv_bytes_per_token / min(tp, model.kv_heads)
    peak = max(hardware.peak(model.weight_dtype), hardware.peak(model.expert_dtype or model.weight_dtype))
    products = 2 * shape.tokens * (beside / width + taken) / tp / peak
    return max(((beside + taken * expert) / tp + cache_) / hardware.memory_bandwidth, products)


@pytest.mark.parametrize(
    ("device", "perf"), [*((device, "measured") for device in DEVICES), ("h100", "roofline"), ("l40s", "roofline")]
)
def test_no_step_is_faster_than_its_bytes_and_its_arithmetic(device, perf):
    shapes = [StepShape(n, n * 1024) for n in (1, 8, 64, 256)]
    shapes += [StepShape(0, 0, ((n, 0),)) for n in (64, 512, 8192)] + [StepShape(32, 48_000, ((1024, 2048),))]
    for spec, steps in of(device, perf):
        for shape in shapes:
            assert beyond_overheads(spec, steps, shape) >= physics(spec, shape), (spec.model.name, spec.tp, shape)


@pytest.mark.parametrize("device", DEVICES)
def test_more_work_never_takes_less_time(device):
    """More sequences, longer contexts, longer chunks, a chunk beside decodes, further chunks."""
    for spec, steps in of(device):
        time = {
            shape: steps.step_time(shape)
            for n in BATCHES
            for shape in (StepShape(n, n * 1000), StepShape(n, n * 1100), StepShape(n, n * 1000, ((256, 0),)))
        }
        for fewer, more in pairwise(BATCHES):
            assert time[StepShape(fewer, fewer * 1000)] <= time[StepShape(more, more * 1000)], (spec.model.name, more)
        for n in BATCHES:
            mixed = time[StepShape(n, n * 1000, ((256, 0),))]
            assert time[StepShape(n, n * 1000)] <= min(time[StepShape(n, n * 1100)], mixed), (spec.model.name, n)
            assert steps.step_time(StepShape(0, 0, ((256, 0),))) <= mixed
        for fewer, more in pairwise(CHUNKS):
            one, longer = (StepShape(0, 0, ((n, 0),)) for n in (fewer, more))
            assert steps.step_time(one) <= steps.step_time(longer), (spec.model.name, more)
            assert steps.step_time(one) <= steps.step_time(StepShape(0, 0, ((fewer, 0), (fewer, 0))))


@pytest.mark.parametrize("device", DEVICES)
def test_a_longer_past_takes_no_less_time(device):
    for spec, steps in of(device):
        for chunk in CHUNKS:
            times = [steps.step_time(StepShape(0, 0, ((chunk, past),))) for past in (0, 1000, 4000, 16_000)]
            for less, more in pairwise(times):
                assert more >= less * (1 - SCATTER), (spec.model.name, spec.tp, chunk)


@pytest.mark.parametrize("device", DEVICES)
def test_more_devices_help_and_no_more_than_in_proportion(device):
    for model in ("llama-3.1-8b", "qwen3-32b"):
        found = [deployed(device, model, tp, "vllm_0_20") for tp in (1, 2, 4)]
        for shape in (StepShape(1, 1000), StepShape(64, 64_000), StepShape(0, 0, ((4096, 0),))):
            times = [beyond_overheads(*one, shape) for one in found if one is not None]
            for fewer, more in pairwise(times):
                assert more >= fewer / 2, (model, shape)
                assert more < fewer or device not in LINKED, (model, shape)


@pytest.mark.parametrize("device", DEVICES)
def test_versions_of_an_engine_differ_by_their_overheads_and_their_all_reduce_alone(device):
    """So a step time leaps from one version to the next no further than what is known to have changed."""
    shapes = (StepShape(1, 1000), StepShape(64, 64_000), StepShape(256, 256_000), StepShape(0, 0, ((2048, 0),)))
    for model, tp in (("llama-3.1-8b", 1), ("qwen3-32b", 4)):
        found = [one for version in VERSIONS if (one := deployed(device, model, tp, version)) is not None]
        for (was, older), (now, newer) in pairwise(found):
            for shape in shapes:
                one, other = was.engine, now.engine
                known = abs(one.step_overhead - other.step_overhead)
                known += shape.requests * abs(one.request_overhead - other.request_overhead)
                known += abs(one.mixed_overhead - other.mixed_overhead) if shape.chunks else 0.0
                summed = [part.seconds for part in older.explain(shape) if part.operator in ("all-reduce", "norms")]
                known += sum(summed) if tp > 1 else 0.0
                assert abs(newer.step_time(shape) - older.step_time(shape)) <= known * (1 + 1e-9), (model, shape)
