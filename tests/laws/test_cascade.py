"""Cascade attention: what all running requests have in common is read once, where the engine would do so."""

from dataclasses import replace

import pytest

from mist.build import build
from mist.colocation import Colocation
from mist.compose import compose
from mist.errors import InputError
from mist.inert import refuse_inert
from mist.perf.base import PerfModel, StepShape
from mist.perf.cascade import CascadeRule
from mist.plan.branches import Fork, Path
from mist.plan.stages import Generate, Pipeline
from mist.workload.lengths import Fixed

BLOCK = 16
ON = {"cascade_attention": True, "cascade_overhead": 0.0}
FIRST, SECOND = 1e-4 * 2**0.5, 1e-2 * 3**0.5


@pytest.fixture
def pool(make_pool):
    def make(**fields):
        limits = {"token_budget": 4096, "max_running": 64}
        engine = {"block_tokens": BLOCK, "reserved_blocks": 0, **ON, **fields.pop("engine", {})}
        fields = {"kv_blocks": 20_000, "prefix_caching": True, "limits": limits, **fields}
        return make_pool(engine=engine, **fields)

    return make


def forked(paths, output=40):
    return Pipeline({"f": Fork({"p": Path({"x": Generate(output=Fixed(output))}, paths)}, carries="none")})


@pytest.mark.parametrize(
    ("tp", "common", "requests", "chunks", "shared"),
    [
        (1, 1024, 7, (), 0),  # fewer than 8 requests
        (1, 240, 64, (), 0),  # less than 256 tokens
        (1, 1024, 16, (), 0),  # 32 of 132 multiprocessors, 8 waves; split: 16 x 8 x 8 / 132, 7.8 waves
        (1, 1024, 17, (), 1024),  # 8.2 waves
        (4, 1024, 64, (), 0),  # 8 query and 2 KV heads: 64 x 2 x 8 / 132, 7.8 waves
        (4, 1024, 67, (), 1024),
        (1, 1024, 9, ((5, 1024),), 1024),  # with a prompt nothing is split
        (1, 1024, 9, ((5, 1023),), 1008),  # whole blocks that are computed
        (1, 1024, 9, ((5, 100),), 0),
        (1, 1024, 9, ((1, 1024),), 0),  # one token is no prompt to the kernel
    ],
)
def test_the_rule_is_vllms_worked_by_hand(tp, common, requests, chunks, shared, pool):
    """Llama-3.1-8B, 32 query and 8 KV heads, on H100s of 132 multiprocessors."""
    assert CascadeRule(pool(tp=tp).replica).shared(common, requests, chunks) == shared


def test_a_prefix_read_once_spares_its_bytes_for_all_sequences_but_the_first(pool):
    """Bound by memory; beside it, queries are read twice and outputs merged."""
    spec = pool()
    model, hardware = spec.model, spec.hardware
    steps, shape = spec.steptimes()[0], StepShape(32, 32 * 2000)
    spared = steps.step_time(shape) - steps.step_time(shape._replace(shared=1600))
    kv = 31 * 1600 * model.kv_bytes_per_token
    queries = 2.5 * 32 * model.layers * 2 * model.heads * model.head_dim * 2
    bandwidth = hardware.memory_bandwidth * spec.perf.bandwidth_efficiency
    assert spared == pytest.approx((kv - queries) / bandwidth, rel=1e-9)


@pytest.mark.parametrize("perf", ["roofline", "measured"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt-oss-20b"])
def test_a_stretch_is_its_steps(perf, model, pool, sheet):
    spec = replace(pool(model=model), perf=build(PerfModel, sheet("perf", perf)))
    steps = spec.steptimes()[0]
    for decodes, context, shared in ((20, 20 * 900, 512), (64, 64 * 5000, 4096), (9, 9 * 300, 288)):
        stretch = steps.decode_stretch(decodes, context, shared=shared)
        for step in range(int(min(stretch.steps, 40))):
            shape = StepShape(decodes, context + step * decodes, shared=shared)
            assert stretch.first + step * stretch.slope == pytest.approx(steps.step_time(shape), rel=1e-9)
    assert steps.step_time(StepShape(64, 64 * 5000, shared=4096)) < steps.step_time(StepShape(64, 64 * 5000))


def test_paths_of_one_question_read_it_once(pool, drive):
    """32 paths of 40 tokens, of which the first comes with the prompt: 39 steps that spare 31 readings."""
    run = drive(pool(), [(0.0, 2001, 1)], pipeline=forked(32))
    use = run.clients[0].cascade
    assert (use.steps, use.spared_tokens) == (39, 39 * 31 * 2000)
    plain = drive(pool(engine={"cascade_attention": False}), [(0.0, 2001, 1)], pipeline=forked(32))
    assert run.requests[0].finished < plain.requests[0].finished
    assert run.cluster.joules < plain.cluster.joules


def test_a_stranger_in_the_batch_ends_it(pool, drive):
    """Requests that do not all begin alike read everything for themselves, to the last bit as an engine without it."""
    arrivals = [(0.0, 2001, 1), (0.0, 900, 1)]
    runs = [drive(pool(engine=engine), arrivals, pipeline=forked(32)) for engine in ({}, {"cascade_attention": False})]
    assert runs[0].clients[0].cascade.steps == 0
    assert runs[0].column("finished").tolist() == runs[1].column("finished").tolist()
    assert runs[0].cluster.joules == runs[1].cluster.joules


@pytest.mark.parametrize("blocks", [20_000, 260])
@pytest.mark.parametrize(("overhead", "launch"), [(0.0, 0.0), (1e-3, 0.0), (1e-3, 250e-6)])
def test_leaping_equals_stepping(blocks, overhead, launch, pool, drive):
    """With a stranger now and then, and with so little memory that some are preempted; energy too."""
    arrivals = [(0.0, 1001, 1), (FIRST, 700, 1), (SECOND, 1500, 1), (1.7, 1200, 1)]
    spec = pool(kv_blocks=blocks, engine={"cascade_overhead": overhead, "launch_time": launch})
    spec = replace(spec, perf=replace(spec.perf, matmul_efficiency=1.0, bandwidth_efficiency=1.0))  # as the slow twin's
    fast, slow = (
        drive(spec, arrivals, pipeline=forked(24, output=90), cycle=4, one_by_one=slow) for slow in (False, True)
    )
    assert fast.column("finished") == pytest.approx(slow.column("finished"), rel=1e-9)
    assert fast.cluster.joules == pytest.approx(slow.cluster.joules, rel=1e-9)
    assert fast.clients[0].cascade == slow.clients[0].cascade
    assert fast.clients[0].cascade.steps > 0
    assert fast.clients[0].leaps < slow.clients[0].leaps
    assert fast.clients[0].preemptions == slow.clients[0].preemptions
    assert (fast.clients[0].preemptions > 0) == (blocks < 1000)


def test_on_shared_devices_too(pool, drive):
    path = Path({"x": Generate("a", output=Fixed(60))}, 24)
    pipeline = Pipeline({"f": Fork({"p": path}, carries="none"), "y": Generate("b", output=Fixed(30))})
    options = {"pipeline": pipeline, "cycle": 3, "colocated": {"gpu": Colocation({"a": 1.0, "b": 1.7})}}
    arrivals = [(0.0, 1001, 1), (0.8, 700, 1), (0.9 + FIRST, 900, 1)]
    fast, slow = (drive({"a": pool(), "b": pool()}, arrivals, one_by_one=slow, **options) for slow in (False, True))
    assert fast.column("finished") == pytest.approx(slow.column("finished"), rel=1e-9)
    assert fast.clients[0].cascade == slow.clients[0].cascade
    assert fast.clients[0].cascade.steps > 0


def test_what_is_shared_is_what_all_tables_begin_with(pool, drive):
    def look(run):
        client = run.clients[0]
        tables = [request.table for request in client.running]
        if tables:
            same = next((i for i, column in enumerate(zip(*tables, strict=False)) if len({*column}) > 1), None)
            same = min(map(len, tables)) if same is None else same
            assert client.kv.shared_blocks(client.running) == same

    drive(
        pool(kv_blocks=260), [(0.0, 1001, 1), (0.05, 700, 1)], pipeline=forked(12, output=60), cycle=2, after_each=look
    )


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ([], "without prefix_caching=true"),
        (["prefix_caching=true", "pp=2"], "one pipeline stage"),
        (["prefix_caching=true", "speculation=ngram"], "without speculation"),
        (["prefix_caching=true", "hardware=mi300x", "perf=roofline"], "no such kernel for mi300x"),
        (["prefix_caching=true", "hardware=h200", "model=deepseek-v3", "tp=8"], "attention of deepseek-v3"),
        (["cluster=disaggregated", "prefill.prefix_caching=true"], "only prefills"),
    ],
)
def test_where_it_does_nothing_it_is_refused(overrides, why):
    overrides = [*overrides, "engine.cascade_attention=true"]
    with pytest.raises(InputError, match=f"cascade_attention = true: has no effect: .*{why}"):
        refuse_inert(overrides, compose(overrides))


def test_a_decode_pool_is_not_told_to_cache_prefixes_which_it_cannot():
    overrides = ["cluster=disaggregated", "decode.engine.cascade_attention=true"]
    with pytest.raises(InputError, match="cascade_attention = true: has no effect: a decode pool is sent whole caches"):
        refuse_inert(overrides, compose(overrides))


def test_an_engine_that_has_it_by_default_does_without_where_it_does_nothing(pool, drive):
    spec = pool(prefix_caching=False)
    off = replace(spec, engine=replace(spec.engine, cascade_attention=False))
    runs = [drive(each, [(0.0, 2001, 1)], pipeline=forked(32)) for each in (spec, off)]
    assert runs[0].column("finished").tolist() == runs[1].column("finished").tolist()
    refuse_inert(["engine=vllm_0_10"], compose(["engine=vllm_0_10"]))
