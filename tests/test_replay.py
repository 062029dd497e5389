"""The built-in workload stands for the trace it was drawn from."""

import os
from pathlib import Path
from statistics import fmean

import pytest

from mist.compose import compose
from mist.sweep.capacity import capacity

TRACE = Path(os.environ.get("MIST_DATA", ""), "traces/azure-2023/AzureLLMInferenceTrace_conv.csv")
DEPLOYMENTS = {
    "h100": ([], 2),
    # within 450 ms an L40S prefills the longest prompts only when they are alone: there a few of them decide
    # (0 to 5 are seeds of 1.94, 1.94, 2.00, 2.01, 2.01, 1.87 requests/s: two say too little)
    "l40s, looser limits": (["hardware=l40s", "slo.ttft_p99=1s", "slo.tpot_p99=60ms"], 4),
    "a100, continuous, looser limits": (
        ["hardware=a100", "scheduler=continuous", "slo.ttft_p99=1s", "slo.tpot_p99=60ms"],
        2,
    ),
}


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder with the real trace")
@pytest.mark.parametrize(("deployment", "seeds"), DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_capacity_under_drawn_and_replayed_traffic_agree_within_5_percent(deployment, seeds):
    replayed = capacity(compose([*deployment, "workload=trace", f"workload.path={TRACE}"])).rate
    drawn = capacity(compose(deployment), seeds=seeds).by_seed.values()
    assert fmean(drawn) == pytest.approx(replayed, rel=0.05)
