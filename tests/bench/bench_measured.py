"""What composed operator tables cost: to load cold and warm, to keep, and to look up."""

from time import perf_counter, process_time

import pytest

from mist.build import build
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.base import Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.measured import Measured
from mist.perf.tables import comm, files, gemm, store

COLD = 0.5  # CPU s
WARM = 5e-3  # s
SIZE = 500_000  # bytes
LOOK_UP = 20e-6  # s per step
DEPLOYED = [
    ("llama-3.1-70b", "h100", 4),
    ("qwen3-32b", "b300", 1),
    ("gpt-oss-120b", "b200", 1),
    ("deepseek-v3", "h200", 8),
]


@pytest.fixture
def replica(sheet):
    def of(model, hardware, tp):
        specs = build(ModelSpec, sheet("model", model)), build(HardwareSpec, sheet("hardware", hardware))
        return Replica(*specs, tp, build(EngineProfile, sheet("engine", "vllm")))

    return of


@pytest.mark.parametrize(("model", "hardware", "tp"), DEPLOYED)
def test_tables_load_quickly_and_stay_small(model, hardware, tp, replica, sheet, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MIST_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "_known", {})
    for cached in (files._table, gemm._grid, comm._graph):
        cached.cache_clear()
    perf, one = build(Measured, sheet("perf", "measured")), replica(model, hardware, tp)
    began = process_time()
    perf.of(one)
    cold = process_time() - began
    (entry,) = tmp_path.glob("operators/*.json")
    warm = []
    for _ in range(5):
        store._known.clear()
        began = perf_counter()
        steps = perf.of(one)
        warm.append(perf_counter() - began)
    shapes = [StepShape(n, n * 1000 + i, ((512, i),) if i % 4 == 0 else ()) for n in (8, 100) for i in range(500)]
    began = process_time()
    for shape in shapes:
        steps.step_time(shape)
    each = (process_time() - began) / len(shapes)
    size = entry.stat().st_size
    with capsys.disabled():
        print(f"\n{model} on {tp} x {hardware}: cold {cold * 1e3:.0f} ms CPU, warm {min(warm) * 1e3:.2f} ms, ", end="")
        print(f"{size / 1e3:.0f} kB, {each * 1e6:.1f} us a step")
    assert cold < COLD
    assert min(warm) < WARM
    assert size < SIZE
    assert each < LOOK_UP
