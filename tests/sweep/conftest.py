import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
TOY = str(HERE / "toy")
SWEEP = {
    "question": "Which toy?",
    "space": {
        "hardware": "choice(h100, a100, l40s)",
        "tp": "choice(1, 2, 4, 8)",
        "scheduler": "choice(static, chunked)",
        "token_budget": "choice(512, 1024, 2048, 4096)",
    },
    "when": {"token_budget": "scheduler in (chunked)"},
    "search": {"sampler": "tpe"},
    "budget": {"designs": 20},
    "confirm": {"leaders": 2, "seeds": 2},
    "timeout": "5 s",
    "workers": "serial",
}


# The toy world is on the path of this process and of those it starts, workers of Ray among them.
sys.path.insert(0, TOY)
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), TOY])


@pytest.fixture
def ask(tmp_path):
    """``ask("budget.designs=5", ...)`` runs the toy sweep here; (exit code, run folder)."""
    import toy  # noqa: F401  registers its workload

    from mist.sweep.inputs import World
    from mist.sweep.study import run

    def asked(*overrides, **changes):
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        code = run(
            str(path),
            overrides,
            world=World("toy.compose", "toy.canonical", "toy.judge", "toy.bound"),
            results=tmp_path / "results",
        )
        return code, (tmp_path / "results/toy/latest").resolve()

    return asked


@pytest.fixture
def again():
    """Resume a run here."""
    from mist.sweep.inputs import World
    from mist.sweep.study import resume

    return lambda run: resume(run, world=World("toy.compose", "toy.canonical", "toy.judge", "toy.bound"))


@pytest.fixture
def lines():
    """The trials of a run that are whole, optionally of some states; of the search, unless another rung is named."""

    def read(run, *states, rung="search"):
        text = (run / "trials.jsonl").read_bytes()
        told = [json.loads(line) for line in text.split(b"\n")[:-1]]
        return [line for line in told if line["rung"] == rung and (not states or line["state"] in states)]

    return read


@pytest.fixture
def drive(tmp_path):
    """A driver in a process of its own; the result of ``subprocess.Popen``."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    started = []

    def start(verb, *rest, **environment):
        what = [verb, str(path), str(tmp_path / "results")] if verb == "run" else [verb]
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "toy/drive.py"), *what, *map(str, rest)],
            env={**os.environ, "TOY_LOG": str(tmp_path / "log"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(driver)
        return driver

    start.runs = lambda: sorted((tmp_path / "results/toy").glob("2*"))
    start.log = tmp_path / "log"
    yield start
    for driver in started:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


@pytest.fixture(scope="session")
def on_ray():
    """One private Ray for the whole session, though the environment names a cluster that is not ours."""
    from mist.sweep.on_ray import OnRay
    from mist.sweep.options import RayOptions

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    hands = OnRay(RayOptions(cpus=2), "toy.judge")
    yield hands
    hands.close()
    patch.undo()
