"""Step times composed of timed operators: the laws of any step model, and what must hold of tables and their cache."""

import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.build import build
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.node import NodeSpec
from mist.perf.base import Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.measured import Measured
from mist.perf.provenance import typical
from mist.perf.roofline import Roofline
from mist.perf.stages import stages
from mist.perf.tables import files, store
from mist.perf.tables.curve import line, through, total
from mist.perf.tables.files import System, root, rows
from mist.perf.tables.gemm import gemm
from mist.perf.tables.grid import decode_grid, from_memory
from mist.simulate import serve

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the operator tables are not published for Windows")

# model, hardware, degrees, what differs from the sheets: dense, windows, latent, experts, every kernel source
DEPLOYED = {
    "dense": ("llama-3.1-8b", "h100", {}, {}),
    "cut": ("llama-3.1-70b", "a100", {"tp": 4}, {}),
    "quantised": ("llama-3.1-70b", "b200", {"tp": 2}, {"weight_dtype": "fp4", "kv_dtype": "fp8"}),
    "windowed": ("gemma-3-27b", "l40s", {"tp": 2}, {}),
    "small heads": ("qwen2.5-0.5b", "rtx-pro-6000", {}, {}),
    "scaled heads": ("gemma-2-9b", "a100", {}, {}),
    "odd heads": ("phi-3-mini", "h200", {}, {}),
    "experts": ("gpt-oss-120b", "gb200", {}, {}),
    "spread": ("qwen3-235b-a22b", "h200", {"dp": 4, "ep": 4}, {"weight_dtype": "fp8"}),
    "hybrid": ("qwen3.6-35b-a3b", "b300", {}, {}),
    "hybrid cut": ("qwen3.5-397b-a17b", "h200", {"dp": 4, "tp": 2, "ep": 8}, {"weight_dtype": "fp8"}),
    "hybrid untimed": ("qwen3.5-27b", "a100", {"tp": 2}, {}),
    "unseen experts": ("olmoe-1b-7b", "h100", {}, {}),
    "unseen experts cut": ("glm-4.5-air", "b300", {"tp": 4, "kernels": "sglang"}, {"weight_dtype": "fp8"}),
    "unseen latent": ("deepseek-v2-lite", "h200", {"tp": 2}, {}),
    "latent": ("deepseek-v3", "h200", {"tp": 8}, {}),
    "latent spread": ("deepseek-v3", "b300", {"dp": 8, "ep": 8}, {}),
    "sglang": ("llama-3.1-8b", "gb300", {"kernels": "sglang"}, {"weight_dtype": "fp8"}),
    "trtllm": ("llama-2-70b", "h100", {"tp": 2, "kernels": "trtllm"}, {"weight_dtype": "fp8"}),
}
SHAPES = [
    StepShape(1, 100),
    StepShape(64, 64 * 700),
    StepShape(400, 400 * 90),
    StepShape(0, 0, ((512, 0),)),
    StepShape(30, 9000, ((128, 4000), (700, 0))),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An empty cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MIST_CACHE", str(folder))
        patch.setattr(store, "_known", {})
        yield folder


@pytest.fixture(scope="module")
def perf(sheet):
    return build(Measured, sheet("perf", "measured"))


@pytest.fixture(scope="module")
def replica(sheet):
    def of(model, hardware="h100", kernels="vllm", changed=None, **degrees):
        engine = replace(build(EngineProfile, sheet("engine", "vllm")), kernels=kernels)
        spec = build(ModelSpec, sheet("model", model) | (changed or {}))
        return Replica(spec, build(HardwareSpec, sheet("hardware", hardware)), degrees.pop("tp", 1), engine, **degrees)

    return of


@pytest.fixture(scope="module", params=sorted(DEPLOYED))
def deployed(request, replica):
    model, hardware, degrees, changed = DEPLOYED[request.param]
    return replica(model, hardware, changed=changed, **degrees)


def test_a_stretch_is_the_steps_it_stands_for(deployed, perf):
    model = perf.of(deployed)
    for decodes, context in ((1, 5), (7, 7 * 500), (64, 64 * 100), (64, 64 * 5000), (300, 300 * 1000), (5000, 10**6)):
        ahead = 0
        for _ in range(24):  # stretches in a row, across every knot
            stretch = model.decode_stretch(decodes, context + ahead * decodes)
            count = int(min(stretch.steps, 20_000))
            assert count >= 1
            for i in (0, 1, 2, count // 3, count // 2, count - 1):
                if i < count:
                    time = model.step_time(StepShape(decodes, context + (ahead + i) * decodes))
                    assert stretch.first + i * stretch.slope == pytest.approx(time, rel=1e-12)
            ahead += count


@given(data=st.data())
def test_more_work_never_takes_less_time(data, deployed, perf):
    model = perf.of(deployed)
    decodes = data.draw(st.integers(1, 600))
    context = decodes * data.draw(st.integers(1, 40_000))
    chunk, past, more = (data.draw(st.integers(*bounds)) for bounds in ((1, 9000), (0, 30_000), (1, 3000)))
    least = model.step_time(StepShape(decodes, context)) * (1 - 1e-9)
    assert model.step_time(StepShape(decodes, context + more)) >= least
    assert model.step_time(StepShape(decodes + 1, context + context // decodes)) >= least
    assert model.step_time(StepShape(decodes, context, ((chunk, past),))) >= least
    before = model.step_time(StepShape(0, 0, ((chunk, past),))) * (1 - 1e-9)
    assert model.step_time(StepShape(0, 0, ((chunk + more, past),))) >= before
    assert model.step_time(StepShape(0, 0, ((chunk, past), (more, 0)))) >= before


@pytest.mark.parametrize("kernels", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("name", ["a100", "h100", "h200", "l40s", "b200", "rtx-pro-6000"])
def test_no_cache_is_read_faster_than_the_memory_can_deliver_it(name, kernels, replica, perf):
    whole = replica("llama-3.1-8b", name, kernels=kernels)
    steps = perf.of(whole)
    for decodes, context in ((16, 16_000), (64, 8000), (256, 2000), (256, 60_000), (2000, 1000)):
        parts = {part.operator: part.seconds for part in steps.explain(StepShape(decodes, decodes * context))}
        cache = decodes * context * whole.model.kv_bytes_per_token
        assert cache / parts["decode attention"] < whole.hardware.memory_bandwidth


def test_beyond_what_was_timed_every_batch_reads_at_one_rate():
    batches, lengths = np.array([1.0, 4.0, 16.0]), np.array([100.0, 200.0, 400.0, 800.0])
    seconds = 1e-6 + 1e-9 * np.outer(batches, lengths)
    seconds[0] += [0.0, 0.0, 0.0, 1e-6]  # of few sequences the last step up says little of the memory
    seconds[2, 2:] = np.nan
    grid = decode_grid(batches, lengths, seconds)
    assert grid.row(16) == pytest.approx(1e-6 + 16e-9 * lengths)


def test_timings_that_beat_the_memory_are_held_to_a_share_of_it():
    batches, lengths = np.array([8.0, 64.0]), np.array([1000.0, 2000.0])
    timed = decode_grid(batches, lengths, 1e-6 + 1e-9 * np.outer(batches, lengths))
    assert from_memory(timed, 0.9e-9, 0.8) is timed
    held = from_memory(timed, 1.5e-9, 0.8)
    assert held.row(64) == pytest.approx(1.5e-9 / 0.8 * 64 * lengths)
    assert held.source == "extrapolated"


@pytest.mark.parametrize("operator", ["norms", "rotary, activation"])
def test_fused_norms_and_activations_of_fp8_weights_write_less(operator, replica, perf):
    shape, times = StepShape(0, 0, ((4096, 0),)), {}
    for kernels in ("vllm", "sglang"):
        for dtype in ("bf16", "fp8"):
            steps = perf.of(replica("llama-3.1-8b", kernels=kernels, changed={"weight_dtype": dtype}))
            times[kernels, dtype] = {p.operator: p.seconds for p in steps.explain(shape)}[operator]
    assert times["vllm", "fp8"] < times["vllm", "bf16"] == times["sglang", "bf16"] == times["sglang", "fp8"]


def test_equal_prompts_take_what_was_timed_of_so_many(replica, perf):
    model = perf.of(replica("llama-3.1-8b"))
    grid = model._found.attention[0].prompt
    for batch, length in ((1, 4096), (4, 1024), (16, 512)):
        parts = {part.operator: part for part in model.explain(StepShape(0, 0, ((length, 0),) * batch))}
        timed = grid.seconds[grid.batches.index(batch)][grid.lengths.index(length)]
        assert parts["prompt attention"].seconds == pytest.approx(32 * timed, rel=1e-12)
        assert parts["prompt attention"].source == "measured"


def test_what_explains_a_step_adds_up_to_it(deployed, perf):
    model = perf.of(deployed)
    for shape in SHAPES:
        parts = model.explain(shape)
        assert sum(part.seconds for part in parts) == pytest.approx(model.step_time(shape), rel=1e-12)
        assert all(part.seconds >= 0 for part in parts)
        overheads = [part.seconds for part in parts if part.source == "fitted"]
        engine = deployed.engine
        expected = engine.step_overhead + engine.mixed_overhead * bool(shape.chunks)
        expected += -(-shape.requests // deployed.dp) * engine.request_overhead
        assert overheads == [pytest.approx(expected, rel=1e-6)]


def test_stage_times_add_up_to_the_step(replica, perf):
    for name, exact in (("llama-3.1-70b", 1e-9), ("gemma-3-27b", 1e-9), ("gpt-oss-120b", 1e-9)):
        whole = replica(name, "h200")
        for shape in SHAPES:
            parts = [perf.of(stage).step_time(shape) for stage in stages(whole._replace(pp=2))]
            assert sum(parts) == pytest.approx(perf.of(whole).step_time(shape), rel=exact)


def test_drafts_cost_little_more_than_none_and_less_than_as_many_sequences(replica, perf):
    model = perf.of(replica("llama-3.1-8b"))
    plain, drafted = model.step_time(StepShape(8, 8000)), model.step_time(StepShape(8, 8000, (), 24))
    assert plain < drafted < model.step_time(StepShape(32, 32_000))


def test_a_device_with_more_bandwidth_decodes_faster(replica, perf):
    times = [perf.of(replica("llama-3.1-8b", name)).step_time(SHAPES[1]) for name in ("l40s", "a100", "h100", "b200")]
    assert times == sorted(times, reverse=True)


def test_measured_times_lie_near_the_roofline(replica, perf, sheet):
    analytical = build(Roofline, sheet("perf", "roofline"))
    for name in ("a100", "h100", "h200", "b200"):
        one = replica("llama-3.1-8b", name)
        for shape in (StepShape(64, 64 * 2000), StepShape(0, 0, ((4096, 0),))):
            ratio = perf.of(one).step_time(shape) / analytical.of(one).step_time(shape)
            assert 0.7 < ratio < 1.6


def test_a_timed_point_is_given_back(perf):
    system = System("h100_sxm", "vllm")
    (path,) = system.newest("gemm", "gemm_perf")
    curve = gemm(system, "bf16", 6144, 4096)
    table = rows(path, gemm_dtype="bfloat16", n=6144, k=4096)
    by_rows = dict(zip(table["m"].tolist(), (table["latency"] * 1e-3).tolist(), strict=True))
    assert curve(1) == pytest.approx(by_rows[1], rel=0.05)  # a spike is cut to what larger products take
    assert curve(32768) == pytest.approx(by_rows[32768], rel=0.05)
    assert curve.source_at(64) == "measured"
    assert curve.source_at(60) == "interpolated"
    assert curve.source_at(100_000) == "extrapolated"


def test_without_peer_access_an_all_reduce_takes_longer(replica, perf):
    one = replica("llama-3.1-70b", "rtx-pro-6000", tp=2)
    staged = one._replace(node=NodeSpec("box", devices=8, bandwidth=3e9, latency=1e-5, peer_to_peer=False))
    parts = [{p.operator: p.seconds for p in perf.of(each).explain(SHAPES[1])} for each in (one, staged)]
    assert 2 < parts[1].pop("all-reduce") / parts[0].pop("all-reduce") < 6
    assert parts[0].keys() == parts[1].keys()


def test_experts_are_reached_as_the_engine_does(replica, perf):
    spread = replica("deepseek-v3", "h200", dp=8, ep=8)
    ways = {}
    for exchange in ("gather", "deepep_low_latency", "deepep_high_throughput"):
        for kernels in ("vllm", "sglang"):
            own = spread._replace(engine=replace(spread.engine, kernels=kernels))
            try:
                parts = replace(perf, exchange=exchange).of(own).explain(StepShape(64, 64_000))
            except InputError as error:
                assert "h200" in str(error)
                continue
            ways[exchange, kernels] = sum(p.seconds for p in parts if p.operator in ("dispatch", "combine"))
    assert len(ways) >= 4
    assert all(1e-3 < seconds < 0.1 for seconds in ways.values())
    with pytest.raises(InputError, match=r"perf\.exchange = deepep_low_latency: has no effect with dp = 1"):
        replace(perf, exchange="deepep_low_latency").of(replica("deepseek-v3", "h200", tp=8))


def test_a_missing_table_is_named(replica, perf, sheet):
    for one, what in (
        (replica("llama-3.1-8b", "mi300x"), "operator tables for vllm kernels on mi300x"),
        (replica("llama-3.1-8b", "a100", changed={"weight_dtype": "fp8"}), "fp8 GEMM"),
        (replica("gpt-oss-20b", "a100", "trtllm"), r"fp4 experts \(hidden 2880, width 2880, 4 of 32\)"),
        (replica("deepseek-v2-lite", "a100"), "latent attention of deepseek-v2-lite with 16 heads"),
    ):
        with pytest.raises(InputError, match=rf"perf = measured: .* has no {what}.* \(valid: roofline\)"):
            perf.of(one)


def test_a_pool_without_tables_is_refused_before_it_runs(make_pool, perf):
    with pytest.raises(InputError, match="no operator tables"):
        make_pool(hardware="mi300x", perf=perf)


def test_only_the_data_of_the_package_are_used(replica, perf):
    perf.of(replica("llama-3.1-8b"))
    assert "aiconfigurator_core" not in sys.modules
    assert (root() / "h100_sxm").is_dir()


def test_the_cache_changes_nothing(cache, replica, perf, monkeypatch):
    one = replica("qwen3-32b", "h100", tp=2)
    fresh = [perf.of(one).step_time(shape) for shape in SHAPES]
    assert list((cache / "operators").glob("*.json"))
    for spoil in (None, "", "{}", "[1]", '{"local": {"a": 1}, "group": {}, "head": {}, "attention": []}'):
        monkeypatch.setattr(store, "_known", {})
        if spoil is not None:
            for path in (cache / "operators").glob("*.json"):
                path.write_text(spoil)
        assert [perf.of(one).step_time(shape) for shape in SHAPES] == fresh
    assert not list((cache / "operators").glob("*.part"))


def test_a_cache_that_cannot_be_written_is_done_without(replica, perf, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIST_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(store, "_known", {})
    assert perf.of(replica("llama-3.1-8b")).step_time(SHAPES[0]) > 0


def test_a_process_reads_an_entry_once(cache, replica, perf, monkeypatch):
    one = replica("qwen3-32b", "h100", tp=2)
    perf.of(one)
    monkeypatch.setattr(store, "_known", {})
    monkeypatch.setattr(store, "operators", None)  # the entry is there: nothing is composed of tables
    fresh = perf.of(one).step_time(SHAPES[0])
    for path in (cache / "operators").glob("*.json"):
        path.unlink()
    assert perf.of(one).step_time(SHAPES[0]) == fresh


def test_tables_of_ones_own_are_hashed_once_until_they_change(tmp_path, monkeypatch):
    table, read = tmp_path / "gemm" / "torch" / "1" / "a.parquet", []
    table.parent.mkdir(parents=True)
    table.write_bytes(b"one")
    monkeypatch.setattr(files, "sha256", lambda content: read.append(content) or sha256(content))
    system = files.System(tmp_path.as_posix(), "vllm")
    first = [system.identity() for _ in range(3)]
    assert len(set(first)) == 1
    assert read.count(b"one") == 1
    table.write_bytes(b"other")
    assert system.identity() not in first


def test_what_is_asked_decides_the_cache_entry(replica, perf):
    one = replica("llama-3.1-8b")
    renamed = one._replace(model=replace(one.model, name="other"), engine=replace(one.engine, step_overhead=1.0))
    others = [
        one._replace(tp=2),
        one._replace(engine=replace(one.engine, kernels="sglang")),
        replica("llama-3.1-8b", "h200"),
    ]
    asked = [store.digest(store.Asked(each, "balanced", 0.8, 3e-6, 0.8, "gather")) for each in (one, renamed, *others)]
    assert asked[0] == asked[1]
    assert len(set(asked)) == 4


def test_the_cache_lies_where_the_platform_says(monkeypatch):
    monkeypatch.delenv("MIST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert store.folder() == Path("/somewhere/mist/operators")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.folder() == Path.home() / "Library" / "Caches" / "mist" / "operators"
    monkeypatch.setenv("MIST_CACHE", "/mine")
    assert store.folder() == Path("/mine/operators")


def test_a_result_says_how_its_step_times_are_known(make_pool, make_scenario, drawn, perf):
    for own, known in ((perf, {"measured", "interpolated", "analytical", "fitted"}), (None, {"analytical", "fitted"})):
        scenario = make_scenario(make_pool(perf=own), drawn(n=50))
        result = serve(scenario, scenario.workload.traffic(0), 1.0)
        sources = result.pools["llm"].step_time_sources
        assert known <= set(sources)
        assert sum(sources.values()) == pytest.approx(1.0)


def test_typical_steps_are_as_many_as_were_made_and_hold_all_prompt_tokens():
    for prompt, answer, steps in ((700.0, 200.0, 9000), (9000.0, 10.0, 700), (50.0, 300.0, 400)):
        made = typical(100, prompt, answer, steps, 2048, "both")
        assert sum(times for _, times in made) == steps
        tokens = sum(times * chunk for shape, times in made for chunk, _ in shape.chunks)
        assert tokens == pytest.approx(100 * prompt, rel=0.01) or steps < 500
    ((decode, times),) = typical(100, 500.0, 200.0, 1000, 2048, "decode")
    assert (decode, times) == (StepShape(20, 12_000), 1000.0)
    assert typical(0, 1.0, 1.0, 0, 2048, "both") == []


def test_a_spike_is_cut_down_and_the_end_grows_in_proportion():
    curve = through([1, 2, 4], [1.0, 5.0, 2.0])
    assert [curve(x) for x in (1, 2, 3, 4, 8, 40)] == [1.0, 2.0, 2.0, 2.0, 4.0, 20.0]
    summed = total([curve, line(0.5, 1.0)])
    for x in (1, 1.5, 3, 7, 100):
        assert summed(x) == pytest.approx(curve(x) + 1.0 + 0.5 * x)


def test_tables_of_ones_own_are_read_as_the_packaged_ones_are(replica, perf, tmp_path):
    """The layout that mist profile ops writes: the kernels are torch's, whatever the engine."""
    packaged, own = replica("llama-3.1-8b", "h100", tp=2), tmp_path / "data" / "mine"
    packaged = packaged._replace(engine=replace(packaged.engine, allreduce="apart"))  # no table of one's own fuses it
    for table in (root() / "h100_sxm").glob("*/vllm/*/*.parquet"):
        family, _, version, file = table.parts[-4:]
        there = own / family / "torch" / version / file
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(table)
    mine = packaged._replace(hardware=replace(packaged.hardware, tables=own.as_posix()))
    for shape in SHAPES[:3]:
        assert perf.of(mine).step_time(shape) == pytest.approx(perf.of(packaged).step_time(shape), rel=0.02)
    bare = packaged._replace(hardware=replace(packaged.hardware, tables=(tmp_path / "none").as_posix()))
    with pytest.raises(InputError, match=r"none has no .* \(mist profile ops writes such tables, and goes on"):
        perf.of(bare)
