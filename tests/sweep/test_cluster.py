"""A named Ray cluster judges designs with the sources of the driver."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture
def address():
    """Of a Ray cluster in processes of its own, open to who knows TOKEN."""
    head = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "toy/head.py")],
        env={**os.environ, **TOKEN, "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield head.stdout.readline().strip()
    head.communicate(timeout=20)


def test_a_sweep_runs_on_the_cluster_it_names(address, drive, lines):
    driver = drive("run", "workers=ray", f"ray.address={address}", "budget.designs=6", "search.sampler=random", **TOKEN)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, out
    assert f"on Ray at {address}" in out
    (run,) = drive.runs()
    assert len(lines(run, "ok", "infeasible")) == 6 and not lines(run, "failed")
    assert lines(run, rung="confirm")
