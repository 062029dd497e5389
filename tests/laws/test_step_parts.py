"""A step is what its parts say: explained, predicted by a scheduler and paid for in joules by the same account."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from mist.build import build
from mist.clients.llm import LLMClient
from mist.clients.pipeline import Lane
from mist.clients.seats import Seats
from mist.drafting import DraftedSteps
from mist.perf.base import PerfModel, StepShape
from mist.perf.measured import Measured
from mist.request import RequestClass
from mist.speculation import DraftModel, Head

SHAPES = {
    "one decode": StepShape(1, 100, longest=100),
    "decodes": StepShape(37, 37 * 3000, longest=9000),
    "prompts": StepShape(0, 0, ((512, 0), (300, 4000))),
    "mixed": StepShape(30, 30 * 900, ((700, 512),), longest=2000),
    "drafts": StepShape(9, 9 * 2000, (), 27, longest=5000),
    "drafts and a prompt": StepShape(9, 9 * 2000, ((400, 0),), 27, longest=5000),
    "common prefix": StepShape(40, 40 * 3000, longest=9000, shared=2048),
    "common prefix and a prompt": StepShape(40, 40 * 3000, ((100, 2048),), longest=9000, shared=2048),
}
OVERHEADS = {
    "step_overhead": 1e-3, "request_overhead": 1e-5, "mixed_overhead": 2e-3, "cascade_overhead": 3e-3,
    "captured_tokens": 512, "launch_time": 0.0,
}  # fmt: skip
ENGINES = {
    "graphs": {},
    "eager": {"launch_time": 20e-6},  # the device is the slower of the two
    "slow host": {"launch_time": 3e-3},
    "another version": {"kernel_factor": 1.3},
}
NO_GRAPH = {"captured_tokens": 0}
MODELS = {"llama-3.1-8b": "b300", "gpt-oss-20b": "h100", "qwen3.6-35b-a3b": "b300", "deepseek-v3": "h200"}
TABLES = pytest.mark.skipif(sys.platform == "win32", reason="the operator tables are not published for Windows")
PERFS = ["roofline", pytest.param("measured", marks=TABLES)]


@pytest.fixture(scope="module")
def pool(make_pool, sheet):
    def make(model, perf, **engine):
        tp = 8 if model == "deepseek-v3" else 1
        spec = make_pool(model=model, hardware=MODELS[model], tp=tp, engine={**OVERHEADS, **engine})
        return replace(spec, perf=build(PerfModel, sheet("perf", perf)))

    return make


@pytest.mark.parametrize("perf", PERFS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_the_parts_of_a_step_add_up_to_it_and_the_overheads_are_the_engines(perf, engine, model, pool):
    spec = pool(model, perf, **ENGINES[engine])
    steps, engine = spec.steptimes()[0], spec.engine
    for name, shape in SHAPES.items():
        if model == "deepseek-v3" and shape.shared:
            continue  # no engine reads a common latent once
        parts = steps.explain(shape)
        assert sum(part.seconds for part in parts) == pytest.approx(steps.step_time(shape), rel=1e-12), name
        assert all(part.seconds >= 0 for part in parts), name
        beside = engine.mixed_overhead if shape.chunks else engine.cascade_overhead if shape.shared else 0.0
        expected = engine.step_overhead + shape.requests * engine.request_overhead
        expected += 0.0 if engine.launch_time else beside  # the host's, beside the device's work
        assert parts[-1].operator == "engine overheads"
        assert parts[-1].seconds == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("perf", PERFS)
@pytest.mark.parametrize("degrees", [{"dp": 8, "ep": 8}, {"tp": 8, "pp": 2}])
def test_so_do_those_of_every_copy_and_stage(perf, degrees, make_pool, sheet):
    spec = make_pool(model="deepseek-v3", hardware="h200", node=sheet("node", "hgx-h100"), engine=OVERHEADS, **degrees)
    spec = replace(spec, perf=build(PerfModel, sheet("perf", perf)))
    for shape in (SHAPES[name] for name in ("one decode", "decodes", "prompts", "mixed")):
        fitted = 0.0
        for steps in spec.steptimes():
            parts = steps.explain(shape)
            assert sum(part.seconds for part in parts) == pytest.approx(steps.step_time(shape), rel=1e-12)
            fitted += parts[-1].seconds
        rows = -(-shape.requests // spec.dp)
        assert fitted == pytest.approx(1e-3 + rows * 1e-5 + (2e-3 if shape.chunks else 0.0), rel=1e-12)


@pytest.mark.parametrize("perf", PERFS)
def test_what_a_device_waits_for_its_host_is_told_apart(perf, pool):
    shape = SHAPES["mixed"]
    device = pool("llama-3.1-8b", perf, **dict.fromkeys(OVERHEADS, 0)).steptimes()[0].step_time(shape)
    for engine, waits in (("eager", False), ("slow host", True)):
        spec = pool("llama-3.1-8b", perf, **ENGINES[engine])
        (waiting,) = (p.seconds for p in spec.steptimes()[0].explain(shape) if p.operator == "waiting for the host")
        host = 32 * spec.engine.launch_time + spec.engine.mixed_overhead
        assert waiting == pytest.approx(host - device if waits else 0.0, abs=1e-12)


@TABLES
def test_what_is_read_once_is_explained_as_such(pool):
    """And the attention that is left is to what is each sequence's own."""
    steps = pool("llama-3.1-8b", "measured").steptimes()[0]
    shapes = [StepShape(40, 40 * 3000, shared=shared) for shared in (0, 2048)]
    plain, once = ({part.operator: part.seconds for part in steps.explain(shape)} for shape in shapes)
    assert once.keys() - plain.keys() == {"common prefix attention", "merging with the rest"}
    own = {p.operator: p.seconds for p in steps.explain(StepShape(40, 40 * (3000 - 2048)))}
    assert once["decode attention"] == own["decode attention"] < plain["decode attention"]


@pytest.mark.parametrize("perf", PERFS)
@pytest.mark.parametrize("drafts", [Head(tokens=3, acceptance=0.5, pass_overhead=1e-4), "a model"])
def test_a_drafters_passes_are_parts_of_the_step(perf, drafts, pool):
    if drafts == "a model":
        drafts = DraftModel(tokens=3, acceptance=0.5, model=pool("llama-3.1-8b", perf).model, pass_overhead=1e-4)
    spec = replace(pool("llama-3.1-8b", perf), speculation=drafts)
    (steps,) = spec.steptimes()
    assert isinstance(steps, DraftedSteps)
    for name in ("drafts", "drafts and a prompt", "prompts"):
        parts = steps.explain(SHAPES[name])
        assert sum(part.seconds for part in parts) == pytest.approx(steps.step_time(SHAPES[name]), rel=1e-12)
        passes = {part.operator: part.seconds for part in parts}["drafter's passes"]
        assert passes == pytest.approx(1e-4 * (3 if SHAPES[name].decodes else 1))
        assert parts[-1].operator == "engine overheads"


# kernels that wait for their longest sequence


@TABLES
def test_verifying_drafts_waits_for_the_longest_sequence_too(pool, make_pool, sheet):
    """One sequence, and equal ones, are their own longest."""
    spec = replace(pool("llama-3.1-8b", "measured"), speculation=Head(tokens=3, acceptance=0.5))
    for steps in (pool("llama-3.1-8b", "measured").steptimes()[0], spec.steptimes()[0]):
        assert steps.uneven
        for decodes in (1, 16):
            even = StepShape(decodes, decodes * 2000, (), 3 * decodes)
            assert steps.step_time(even._replace(longest=2000)) == pytest.approx(steps.step_time(even), rel=1e-12)
        assert steps.step_time(even._replace(longest=20_000)) > 1.1 * steps.step_time(even)


@TABLES
@pytest.mark.parametrize("fields", [{}, {"pp": 2}, {"speculation": Head(tokens=2, acceptance=0.5)}])
def test_every_engine_waits_for_its_longest_sequence(fields, pool, drive):
    """Short sequences beside a long one of the same batch wait for it; one sequence alone is its own longest."""
    spec = replace(pool("llama-3.1-8b", "measured"), **fields)
    spec = replace(spec, scheduler=replace(spec.scheduler, max_running=26))  # or one of two lanes would have all others
    blind = replace(spec, perf=Even(**vars(spec.perf)))
    alone, mixed = [(0.0, 3000, 300)], [(0.0, 60_000, 400), *[(0.0, 100, 400)] * 24]
    taken = []
    for each in (spec, blind):
        runs = [drive(each, load) for load in (alone, mixed)]
        taken.append([(run.column("finished") - run.column("first_token")).max() for run in runs])
    assert taken[0][0] == pytest.approx(taken[1][0], rel=1e-9)
    assert taken[0][1] > 1.05 * taken[1][1]


@TABLES
def test_a_pipeline_that_waits_for_its_longest_leaps_as_it_steps(pool, drive, poisson):
    spec = replace(pool("llama-3.1-8b", "measured"), pp=2)
    spec = replace(spec, perf=replace(spec.perf, link_efficiency=1.0))  # as the slow twin's
    load = poisson(4, 60, 30.0, (1, 6000), (1, 300))
    fast, slow = drive(spec, load), drive(spec, load, one_by_one=True)
    for name in ("first_token", "finished"):
        np.testing.assert_allclose(fast.column(name), slow.column(name), rtol=1e-12, atol=0)


class Even(Measured):
    """Operator tables whose kernels are not known to wait for the longest sequence."""

    def of(self, replica):
        return Blind(super().of(replica))


class Blind:
    def __init__(self, inner):
        self.step_time, self.decode_stretch = inner.step_time, inner.decode_stretch


# what a scheduler predicts


@pytest.fixture
def foretold(monkeypatch):
    """Of every step whose shape was asked about before it: what was said, and what it took."""
    said, seen = {}, []
    ask, lane_ask, run = Seats.step_time, Lane.step_time, LLMClient._run

    def asked(of):
        def step_time(client, chunks, last):
            said[client, client.now, client.decodes.count, chunks] = time = of(client, chunks, last)
            return time

        return step_time

    def watched(client):
        chunks = tuple((tokens, request.computed) for request, tokens in client.granted.values())
        told = said.get((client, client.now, client.decodes.count, chunks))
        client.watch = lambda _, time: told is None or seen.append((told, time, client.decodes.count))
        run(client)
        client.watch = None

    monkeypatch.setattr(Seats, "step_time", asked(ask))
    monkeypatch.setattr(Lane, "step_time", asked(lane_ask))
    monkeypatch.setattr(LLMClient, "_run", watched)
    return seen


ENGINES_TOLD = {
    "plain": {},
    "uneven": {"measured": True},
    "pipeline": {"pp": 2, "measured": True},
    "drafts": {"speculation": Head(tokens=3, acceptance=0.5), "measured": True},
    "swap": {"preemption": "swap", "kv_blocks": 900},
    "prefix caching": {"prefix_caching": True},
    "cascade": {"prefix_caching": True, "engine": {"cascade_attention": True, "cascade_overhead": 1e-3}},
}


@pytest.mark.parametrize("told", ENGINES_TOLD)
def test_a_step_takes_what_the_slo_aware_scheduler_was_told(told, make_pool, sheet, drive, poisson, foretold):
    """Unless it preempts somebody after it asked, which makes the step shorter."""
    fields = dict(ENGINES_TOLD[told])
    perf = build(PerfModel, sheet("perf", "measured")) if fields.pop("measured", False) else None
    limits = {"token_budget": 1024, "max_running": 31, "least_chunk": 16}
    drafts = fields.pop("speculation", None)
    spec = make_pool(hardware="b300" if perf else "h100", scheduler="slo_aware", perf=perf, limits=limits, **fields)
    spec = spec if drafts is None else replace(spec, speculation=drafts)
    contents = (lambda _: OnePrompt()) if spec.prefix_caching else None
    kinds = (RequestClass("interactive", 0, 0.2, 0.012), RequestClass("batch", 1, 2.0, 0.03))
    run = drive(spec, poisson(7, 150, 25.0, (700, 3000), (20, 120)), kinds=kinds, contents=contents)
    assert sum(1 for *_, decodes in foretold if decodes > 2) > 20
    for said, taken, _ in foretold:
        assert taken == pytest.approx(said, rel=1e-12)
    assert told != "cascade" or run.clients[0].cascade.steps > 20
    assert told != "swap" or run.clients[0].kv.blocks_in > 20


class OnePrompt:
    """All begin with the same 640 tokens; who holds what after that is all one."""

    def key(self, block, block_tokens):
        return ("same", block) if (block + 1) * block_tokens <= 640 else (id(self), block)


# energy


@pytest.mark.parametrize("model", MODELS)
def test_a_stretch_draws_what_its_steps_draw_whatever_they_read(model, pool):
    (load,) = pool(model, "roofline").loads()
    for shared in (0, 1024):
        for decodes, context in ((5, 5 * 2000), (64, 64 * 3000)):
            singly = sum(load.step(StepShape(decodes, context + i * decodes, shared=shared)) for i in range(30))
            assert load.stretch(decodes, context, 30, shared) == pytest.approx(singly, rel=1e-12)


@TABLES
def test_padded_rows_draw_power_where_they_take_time(pool):
    """At a captured size nothing is padded, and nothing is by an engine whose host launches every kernel."""
    shape = StepShape(17, 17 * 500)
    for perf, pads in (("measured", True), ("roofline", False)):
        padded, free = (pool("llama-3.1-8b", perf, captured_tokens=most).loads()[0] for most in (512, 0))
        assert (padded.step(shape) > free.step(shape)) == pads
        assert padded.step(StepShape(24, 24 * 500)) == free.step(StepShape(24, 24 * 500))
    hosted, free = (pool("llama-3.1-8b", "measured", **e).loads()[0] for e in ({"launch_time": 1e-5}, NO_GRAPH))
    assert hosted.step(shape) == free.step(shape)


def test_a_state_is_read_once_a_sequence_however_many_drafts_it_verifies(pool):
    spec = pool("qwen3.6-35b-a3b", "roofline")
    light = replace(spec, model=replace(spec.model, state_dtype="bf16"))
    for drafted in (0, 24):
        shape = StepShape(8, 8 * 1000, (), drafted)
        more = spec.loads()[0].step(shape) - light.loads()[0].step(shape)
        byte = spec.power.memory_share / (spec.hardware.memory_bandwidth * spec.perf.bandwidth_efficiency)
        states = 8 * 2 * (spec.model.state_bytes - light.model.state_bytes)
        assert more == pytest.approx(states * byte, rel=1e-6)


def test_waiting_for_a_host_draws_idle_power_alone(pool):
    shape = SHAPES["mixed"]
    fast, slow = (pool("llama-3.1-8b", "roofline", launch_time=time) for time in (0.0, 3e-3))
    assert slow.steptimes()[0].step_time(shape) > fast.steptimes()[0].step_time(shape)
    assert slow.loads()[0].step(shape) == fast.loads()[0].step(shape)


@pytest.mark.parametrize("model", MODELS)
def test_no_step_asks_for_more_than_its_time(model, pool):
    """Utilisation is that of arithmetic and a share of that of memory, and both can be full at a time."""
    spec = pool(model, "roofline", **dict.fromkeys(OVERHEADS, 0))
    (steps,), (load,) = spec.steptimes(), spec.loads()
    for name, shape in SHAPES.items():
        if model == "deepseek-v3" and shape.shared:
            continue
        assert 0 < load.step(shape) <= (1 + spec.power.memory_share) * steps.step_time(shape), name
