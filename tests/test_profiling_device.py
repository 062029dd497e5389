"""Laws of the clock and of a whole run of mist profile ops on a GPU, with a device that keeps time by itself.

What no test without a GPU can show is that torch's own calls are right there. That graphs are replayed, launches
and flushes left out, and tables written that perf=measured reads, can be shown.
"""

import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.perf.base import StepShape
from mist.profiling import console, kernels, ops, retrieval, sheet
from mist.profiling.device import Device
from mist.profiling.faiss_cells import BUILDS
from mist.profiling.place import writable
from mist.profiling.plan import Attention, Gemm
from mist.scenario import Scenario

CONF = Path(__file__).parents[1] / "conf"
LAUNCH, FLUSH = 7e-6, 3e-3  # s


class Torch:
    """Of torch what Device asks for, on a GPU whose calls take as long as they say."""

    __version__ = "2.9.0"
    int8 = "int8"
    version = SimpleNamespace(hip=None)

    def __init__(self, captures: bool) -> None:
        self.captures, self.now, self.graph, self.made = captures, 0.0, None, []
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            set_device=lambda _where: None,
            get_device_properties=lambda _where: SimpleNamespace(name="A GPU", total_memory=8e10, L2_cache_size=2**20),
            mem_get_info=lambda _where: (6e10, 8e10),
            Event=lambda **_timing: Event(self),
            Stream=lambda: SimpleNamespace(wait_stream=lambda _other: None),
            current_stream=lambda: SimpleNamespace(wait_stream=lambda _other: None),
            stream=lambda _stream: nullcontext(),
            synchronize=lambda: None,
            CUDAGraph=lambda: Graph(self),
            graph=self.capture,
        )

    def device(self, kind, index=None):
        if not kind.startswith(("cuda", "cpu", "meta")):
            raise RuntimeError(f"Expected one of cpu, cuda, meta at start of device string: {kind}")
        return SimpleNamespace(type=kind.partition(":")[0], index=index)

    def empty(self, *_size, **_how):
        return SimpleNamespace(zero_=lambda: self.spend(FLUSH))

    def spend(self, seconds):
        self.now += seconds

    @contextmanager
    def capture(self, graph, capture_error_mode="global"):
        self.mode = capture_error_mode
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.graph = graph
        yield
        self.graph = None

    def call(self, name, seconds):
        def made():
            if self.graph is not None:
                self.graph.calls.append((name, seconds))
            else:
                self.run(name, seconds + LAUNCH)

        return made

    def run(self, name, seconds):
        self.made.append(name)
        self.spend(seconds)


class Event:
    def __init__(self, torch):
        self.torch = torch

    def record(self):
        self.at = self.torch.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Graph:
    def __init__(self, torch):
        self.torch, self.calls = torch, []

    def replay(self):
        for name, seconds in self.calls:
            self.torch.run(name, seconds)


def on(monkeypatch, captures=True):
    torch = Torch(captures)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch, Device("")


def test_a_call_is_timed_as_a_graph_replays_it_without_launch_and_flush(monkeypatch):
    torch, device = on(monkeypatch)
    assert device.gpu
    assert device.time([torch.call(n, 20e-6) for n in range(8)]) == pytest.approx(20e-6)
    assert len(torch.made) > 2 * 8 + 3 * 8  # chosen outside the capture, then replayed more than once
    assert torch.made == list(range(8)) * (len(torch.made) // 8)  # in turn, so that each is cold


def test_what_no_graph_captures_is_timed_with_its_launch(monkeypatch):
    torch, device = on(monkeypatch, captures=False)
    assert device.time([torch.call("a", 20e-6)]) == pytest.approx(20e-6 + LAUNCH)


def test_a_long_call_is_not_made_more_often_than_needed(monkeypatch):
    torch, device = on(monkeypatch)
    device.time([torch.call("long", 2.0)])
    assert len(torch.made) <= 5


def test_operands_are_as_many_as_keep_each_out_of_the_cache(monkeypatch):
    _, device = on(monkeypatch)
    assert device.copies(2**20, 1e-6) == 3  # twice the cache lies between two uses
    assert device.copies(2**30, 1e-6) == 1
    assert device.copies(1, 1e-6) == 32
    assert device.copies(2**20, 10.0) == 1  # it computes for longer than it could wait


@pytest.mark.parametrize(("name", "why"), [("meta", "no clock is known"), ("banana", "Expected one of cpu")])
def test_a_device_that_cannot_be_timed_is_refused(monkeypatch, name, why):
    monkeypatch.setitem(sys.modules, "torch", Torch(True))
    with pytest.raises(InputError, match=why) as told:
        Device(name)
    assert "cpu" in told.value.choices


class Recorder:
    """Of torch what operators ask for: it says which calls were made on which shapes."""

    bfloat16, float32, float8_e4m3fn, float8_e4m3fnuz = "bf16", "fp32", "e4m3fn", "e4m3fnuz"

    def __init__(self):
        self.asked = []
        sdpa = self.noted("sdpa")
        self.nn = SimpleNamespace(
            functional=SimpleNamespace(scaled_dot_product_attention=sdpa, linear=self.noted("linear"))
        )
        self._scaled_mm = self.noted("scaled_mm")

    def noted(self, name):
        return lambda *operands, **how: self.asked.append((name, *operands, how))

    def randn(self, *size, dtype, device):
        return Tensor(size, dtype)

    def ones(self, size, *, dtype, device):
        return Tensor(size, dtype)


class Tensor:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def clone(self):
        return Tensor(self.shape, self.dtype)

    def to(self, dtype):
        return Tensor(self.shape, dtype)

    def t(self):
        return Tensor(self.shape[::-1], self.dtype)


def asked_of(shape, architecture=""):
    """The first call of an operator: its name, operands and options."""
    properties = SimpleNamespace(gcnArchName=architecture) if architecture else SimpleNamespace()
    device = SimpleNamespace(torch=Recorder(), where="cuda", gpu=True, properties=properties, copies=lambda *_: 2)
    made, _ = kernels.calls(device, shape, 1e-3)
    assert len(made) == 2  # in turn, on operands of their own
    for call in made:
        call()
    first, second = device.torch.asked
    assert first[2] is not second[2]
    return first


def test_in_generation_the_heads_of_a_group_are_queries_over_the_keys_they_share():
    """What grouped queries compute, and no kernel copies the cache for each head."""
    name, q, k, v, how = asked_of(Attention("generation", 3, 100, 32, 8, 128))
    assert (name, q.shape, k.shape, v.shape) == ("sdpa", (3, 8, 4, 128), (3, 8, 100, 128), (3, 8, 100, 128))
    assert how == {"is_causal": False, "enable_gqa": False}


@pytest.mark.parametrize(("kv_heads", "grouped"), [(8, True), (32, False)])
def test_in_a_prompt_every_head_has_its_queries_and_sees_what_is_before_them(kv_heads, grouped):
    _, q, k, _, how = asked_of(Attention("context", 2, 64, 32, kv_heads, 128))
    assert (q.shape, k.shape) == ((2, 32, 64, 128), (2, kv_heads, 64, 128))
    assert how == {"is_causal": True, "enable_gqa": grouped}


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("", "e4m3fn"), ("gfx942:sramecc+:xnack-", "e4m3fnuz"), ("gfx950", "e4m3fn")]
)
def test_eight_bits_are_multiplied_as_the_device_has_them(architecture, dtype):
    """[m, k] in rows by [k, n] in columns, one FP32 scale each."""
    name, x, w, how = asked_of(Gemm(16, 64, 32, "fp8"), architecture)
    assert (name, x.shape, w.shape, x.dtype, w.dtype) == ("scaled_mm", (16, 32), (32, 64), dtype, dtype)
    assert (how["scale_a"].shape, how["scale_a"].dtype, how["out_dtype"]) == ((), "fp32", "bf16")


def test_the_cache_that_an_amd_driver_does_not_tell_is_flushed_too(monkeypatch):
    _, device = on(monkeypatch)
    assert (device.amd, device.cache, device.serial) == (False, 2**20, "0")
    monkeypatch.setattr(Torch, "version", SimpleNamespace(hip="6.4"))
    _, device = on(monkeypatch)
    assert (device.amd, device.cache) == (True, 2**28)


def test_devices_that_cannot_be_summed_over_cost_no_other_figure(ideal, monkeypatch):
    def fails(_devices):
        raise ValueError("\n\nProcess 1 terminated:\nNCCL error: no peer access")

    monkeypatch.setattr(Ideal, "count", 2)
    monkeypatch.setattr(ops.allreduce, "allreduce", fails)
    monkeypatch.setattr(Ideal.torch, "multiprocessing", SimpleNamespace(ProcessException=ValueError), raising=False)
    outcome = ideal(1)
    assert outcome.rows["gemm_perf"]
    assert "all-reduce over 2 devices failed: NCCL error: no peer access" in console.told_of(outcome)


@pytest.mark.parametrize("captures", [True, False])
def test_a_sum_is_timed_by_events_around_its_graph_or_around_the_calls_themselves(captures):
    torch = Torch(captures)
    summed = torch.call("sum", 10e-6)
    torch.distributed = SimpleNamespace(all_reduce=lambda _tensor: summed(), barrier=lambda: torch.spend(1.0))
    torch.zeros = lambda *_size, **_how: None
    torch.bfloat16 = "bf16"
    seconds, graph = ops.allreduce._seconds(torch, SimpleNamespace(type="cuda"), 128)
    assert graph is captures
    assert seconds == pytest.approx(10e-6 if captures else 10e-6 + LAUNCH)
    if captures:
        assert torch.mode == "thread_local"  # NCCL's watchdog thread must not end it


@pytest.mark.parametrize(("graph", "source"), [(True, "NCCL"), (False, "NCCL_eager")])
def test_a_sum_that_no_graph_replayed_says_so(ideal, monkeypatch, graph, source):
    monkeypatch.setattr(Ideal, "count", 2)
    monkeypatch.setattr(ops.allreduce, "allreduce", lambda devices: [(devices, 128, 5e-6, graph)])
    outcome = ideal(1)
    table = pd.read_parquet(next(outcome.tables.rglob("custom_allreduce_perf.parquet")))
    assert list(table["kernel_source"]) == [source]


def test_a_run_that_is_interrupted_leaves_a_sheet_of_what_there_is(ideal, monkeypatch):
    left, known = [40], Ideal.time

    def stops(self, calls):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return known(self, calls)

    monkeypatch.setattr(Ideal, "time", stops)
    cut = ideal(1)
    assert 0 < cut.coarse == cut.unmeasured
    assert cut.hardware.exists()
    assert ideal(1).coarse == 0  # and goes on from there


class Ideal:
    """A device with 1,000 TFLOP/s, 3 TB/s and 2 us a kernel."""

    torch = SimpleNamespace(__version__="2.9.0", version=SimpleNamespace(hip=None))
    where, serial, amd = SimpleNamespace(index=0), "0", False
    gpu, count, title, memory, room, cache = True, 1, "Ideal GPU", 80_000_000_000, 4e10, 2**25

    def time(self, calls):
        (shape,) = calls
        return max(shape.flops / 1e15, shape.traffic / 3e12) + 2e-6


@pytest.fixture
def ideal(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "calls", lambda _device, shape, _seconds: ([shape], "ideal"))
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda _device: (2**30, 2**30 / 3e12))
    monkeypatch.setattr(kernels, "host_bandwidth", lambda _device: 5e10)
    monkeypatch.setattr(kernels, "multiplies_fp8", lambda _device: False)
    monkeypatch.setattr(sheet, "driver_watts", lambda _serial: (700.0, 80.0))

    def run(levels, minutes=5.0):
        monkeypatch.setattr(ops, "LEVELS", levels)
        return ops.ops("ideal", minutes, tmp_path / "profiles", Ideal(), (None, None), lambda *_how: None)

    return run


@pytest.mark.parametrize("levels", [1, 3])
def test_the_tables_of_a_run_are_what_measured_steps_are_composed_of(ideal, levels):
    """The first grids alone are enough; finer ones come nearer."""
    outcome = ideal(levels)
    assert (outcome.unmeasured, outcome.coarse) == (0, 0)
    free = [f"engine.{name}='0 s'" for name in ("step_overhead", "request_overhead", "mixed_overhead")]
    config = compose(["hardware=ideal", "price.hourly.ideal=2 $/h", "perf=measured", "model=llama-3.1-8b", *free])
    (steps,) = build(Scenario, config).pools["llm"].steptimes()
    read, launched = 15.0e9 / 3e12, 32 * 10 * 2e-6  # weights but the embedding; some ten kernels a layer
    cache = 64 * 4000 * 131_072 / 3e12
    near = 0.2 if levels == 1 else 0.1
    assert steps.step_time(StepShape(1, 100)) == pytest.approx(read + launched, rel=near)
    assert steps.step_time(StepShape(64, 64 * 4000)) == pytest.approx(read + launched + cache, rel=near)
    computed = 2 * 7e9 * 8192 / 1e15 + 2 * 8192**2 * 4096 * 32 / 1e15  # matrices, and pairs of queries and keys
    assert computed < steps.step_time(StepShape(0, 0, ((8192, 0),))) < 1.25 * computed


def test_a_run_goes_on_where_the_last_one_ended(ideal):
    first = ideal(1)
    again = ideal(1)
    assert (first.known, again.known) == (0, sum(first.rows.values()) - first.rows["memory_perf"])
    assert again.rows == first.rows


def test_a_run_that_ends_within_the_first_grids_says_so(ideal, monkeypatch):
    ideal(1)
    for row in sorted((ops.Path("profiles") / "data").rglob("gemm_perf.parquet")):
        row.unlink()
    now = iter([0.0] * 5 + [i * 1.0 for i in range(10**5)])
    monkeypatch.setattr(ops.time, "monotonic", lambda: next(now))
    cut = ideal(1, minutes=1.0)
    assert 0 < cut.coarse == cut.unmeasured
    assert "not enough for perf=measured yet" in console.told_of(cut)
    with pytest.raises(InputError, match="--minutes = 1e-09: not one matrix product"):
        ops.ops("other", 1e-9, ops.Path("profiles"), Ideal(), (None, None), lambda *_how: None)


def test_a_place_where_nothing_can_be_written_is_told_before_anything_is_measured(ideal, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kernels, "copy_bandwidth", None)
    with pytest.raises(InputError, match=r"--out = .*file/x: nothing can be written there"):
        ops.ops("ideal", 1.0, tmp_path / "file" / "x", Ideal(), (None, None), lambda *_how: None)
    with pytest.raises(InputError, match=r"--out = .*file: nothing can be written there"):
        writable("--out", tmp_path / "file")


def test_index_files_of_ones_own_are_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "library", lambda: None)
    (tmp_path / "hnsw.yaml").write_text("_target_: mist.perf.retrieval.hnsw.Hnsw\n")
    with pytest.raises(InputError, match=r"hnsw\.yaml: is a file that was not measured here"):
        next(retrieval.profile(tmp_path))
    monkeypatch.setattr(retrieval, "measure", lambda *_what: [{"index": "flat"}])
    for path in (CONF / "retrieval").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    with pytest.raises(AttributeError):  # the shipped ones are; and then there is no faiss
        next(retrieval.profile(tmp_path))


def test_a_profile_of_retrieval_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """And starts over with another library, whose figures are others."""
    shipped = pd.read_csv(CONF / "retrieval" / "measured.csv", comment="#")
    measured, stops = [], [5]

    def measure(build, _faiss, _threads):
        if len(measured) == stops[0]:
            raise KeyboardInterrupt
        measured.append(build)
        same = (shipped[list(asdict(build))] == pd.Series(asdict(build))).all(axis=1)
        return shipped[same].drop(columns="predicted", errors="ignore").to_dict("records")

    def faiss(version):
        cvar = SimpleNamespace(distance_compute_blas_threshold=128_000)
        return lambda: SimpleNamespace(__version__=version, omp_get_max_threads=lambda: 2, cvar=cvar)

    monkeypatch.setattr(retrieval, "measure", measure)
    monkeypatch.setattr(retrieval, "library", faiss("1"))
    with pytest.raises(KeyboardInterrupt):
        list(retrieval.profile(tmp_path))
    assert not list(tmp_path.glob("*.yaml"))
    stops[0] = 10**6
    list(retrieval.profile(tmp_path))
    assert measured == list(BUILDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat.yaml", "hnsw.yaml", "ivf_pq.yaml", "measured.csv"]
    (tmp_path / retrieval.PARTIAL).write_text("# another machine\nindex\nflat\n")
    monkeypatch.setattr(retrieval, "library", faiss("2"))
    list(retrieval.profile(tmp_path))
    assert measured == 2 * list(BUILDS)
