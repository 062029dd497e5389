"""The same scenario is the same Result to the last bit, here and in any other process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mist.compose import compose
from mist.network import LinkSpec
from mist.simulate import serve, simulate
from mist.sweep.capacity import search

FINGERPRINT = """
import hashlib, json, sys
from mist.compose import compose
from mist.simulate import simulate
result = simulate(compose(sys.argv[1:]))
text = json.dumps(result.to_json()) + result.requests_frame().to_csv()
print(hashlib.sha256(text.encode()).hexdigest())
"""
OVERRIDES = ["workload=poisson_geometric", "workload.requests=400", "workload.rate=4", "replicas=2", "hardware=a100"]
DISAGGREGATED = [*OVERRIDES, "cluster=disaggregated", "decode.hardware=l40s", "router=least_loaded"]


@pytest.fixture(params=["one pool", "disaggregated, little memory"])
def scenario(request, scheduler_name, make_pool, make_scenario):
    common = {"scheduler": scheduler_name, "replicas": 2, "router": "least_loaded"}
    if request.param == "one pool":
        return make_scenario(make_pool(**common))
    pools = {role: make_pool(**common, role=role, kv_blocks=1200) for role in ("prefill", "decode")}
    return make_scenario(pools, link=LinkSpec("wire", 1e9, 1e-3))


def test_twice_is_the_same_to_the_last_bit(scenario, drawn):
    first, second = (serve(scenario, drawn(n=300).traffic(5), 9.0) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.requests_frame().equals(second.requests_frame())


def test_what_ran_before_leaves_no_trace(make_pool, make_scenario, drawn):
    scenario = make_scenario(make_pool())
    alone = serve(scenario, drawn(n=200).traffic(5), 3.0)
    search(scenario, {0: drawn(n=100).traffic(1)}, 60.0)
    assert serve(scenario, drawn(n=200).traffic(5), 3.0).to_json() == alone.to_json()


@pytest.mark.parametrize("overrides", [OVERRIDES, DISAGGREGATED], ids=["one pool", "disaggregated"])
def test_another_process_with_other_hashes_gives_the_same_result(overrides):
    prints = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", FINGERPRINT, *overrides]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
        prints.add(done.stdout.strip())
    result = simulate(compose(overrides))
    text = json.dumps(result.to_json()) + result.requests_frame().to_csv()
    prints.add(hashlib.sha256(text.encode()).hexdigest())
    assert len(prints) == 1
    assert result.counts.completed > 300


def test_another_seed_is_another_result():
    assert simulate(compose(OVERRIDES)).to_json() != simulate(compose([*OVERRIDES, "seed=1"])).to_json()
