"""What a process pays to have step times ready, from a composed config: with an empty cache, and with a full one.

Every measurement is a process of its own, its imports done: what a worker of a sweep or a ``mist simulate`` meets.
Bounds are on processor seconds, which neighbours do not lengthen; the least wall time is printed beside them.
"""

import json
import subprocess
import sys
from statistics import median

import pytest

COLD = 0.5  # CPU s, of the median process
WARM = 5e-3  # CPU s, the same
SIZE = 500_000  # bytes on disk
COLD_RUNS, WARM_RUNS = 3, 7
DEPLOYED = [
    ("llama-3.1-70b", "h100", 4),
    ("gpt-oss-120b", "b200", 1),
    ("deepseek-v3", "h200", 8),
    ("glm-4.5-air", "b300", 2),
    ("deepseek-v2", "b200", 4),
]

PROCESS = """
import json, sys, time
import pyarrow.parquet
from mist.build import build
from mist.compose import compose
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.base import Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.measured import Measured
from mist.perf.tables import files

model, hardware, tp = sys.argv[1:]
pool = compose([f"model={model}", f"hardware={hardware}", f"tp={tp}", "perf=measured"])["pools"]["llm"]
began = time.perf_counter(), time.process_time()
specs = build(ModelSpec, pool["model"]), build(HardwareSpec, pool["hardware"])
steps = build(Measured, pool["perf"]).of(Replica(*specs, int(tp), build(EngineProfile, pool["engine"])))
took = {"wall": time.perf_counter() - began[0], "seconds": time.process_time() - began[1]}
step = steps.step_time(StepShape(64, 64_000, ((512, 0),)))
print(json.dumps({**took, "parsed": files._table.cache_info().misses, "step": step}))
"""


def loaded(*deployment):
    """What a fresh process says: CPU ``seconds`` and ``wall`` ones, tables ``parsed``, and a ``step`` time."""
    words = [sys.executable, "-c", PROCESS, *map(str, deployment)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("model", "hardware", "tp"), DEPLOYED)
def test_a_fresh_process_has_step_times_at_once(model, hardware, tp, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MIST_CACHE", str(tmp_path))
    cold = []
    for _ in range(COLD_RUNS):
        for entry in tmp_path.glob("operators/*"):
            entry.unlink()
        cold.append(loaded(model, hardware, tp))
    warm = [loaded(model, hardware, tp) for _ in range(WARM_RUNS)]
    (entry,) = tmp_path.glob("operators/*")
    slow, fast = (median(run["seconds"] for run in runs) for runs in (cold, warm))
    wall = [min(run["wall"] for run in runs) * 1e3 for runs in (cold, warm)]
    with capsys.disabled():
        print(f"\n{model} on {tp} x {hardware}: cold {slow * 1e3:.0f} ms CPU ({wall[0]:.0f} wall), ", end="")
        print(f"warm {fast * 1e3:.2f} ({wall[1]:.2f} wall), 1 : {slow / fast:.0f}; {entry.stat().st_size / 1e3:.0f} kB")
    assert all(run["parsed"] > 0 for run in cold)
    assert all(run["parsed"] == 0 for run in warm)
    assert len({run["step"] for run in (*cold, *warm)}) == 1
    assert entry.stat().st_size < SIZE
    assert slow < COLD
    assert fast < WARM
