"""The built-in workload stands for the trace it was drawn from."""

import os
from pathlib import Path
from statistics import fmean

import pytest

from mist.compose import compose
from mist.sweep.capacity import capacity

TRACE = Path(os.environ.get("MIST_DATA", ""), "traces/azure-2023/AzureLLMInferenceTrace_conv.csv")
DEPLOYMENTS = {
    "h100": [],
    # within 450 ms an L40S prefills the longest prompts only when they are alone: there a few of them decide
    "l40s, looser limits": ["hardware=l40s", "slo.ttft_p99=1s", "slo.tpot_p99=60ms"],
    "a100, continuous, looser limits": [
        "hardware=a100",
        "scheduler=continuous",
        "slo.ttft_p99=1s",
        "slo.tpot_p99=60ms",
    ],
}


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder with the real trace")
@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_capacity_under_drawn_and_replayed_traffic_agree_within_5_percent(deployment):
    replayed = capacity(compose([*deployment, "workload=trace", f"workload.path={TRACE}"])).rate
    drawn = capacity(compose(deployment), seeds=2).by_seed.values()
    assert fmean(drawn) == pytest.approx(replayed, rel=0.05)
