"""Laws of seeds: whatever is drawn is drawn anew for each."""

import pytest

from mist.compose import compose
from mist.sweep.capacity import capacity, judge
from mist.sweep.inputs import Workloads

PLANS = "pipeline=shortest perf=roofline workload.requests=20 slo=none slo.e2e_p90=30s"
ROUTED = "router=random replicas=3 perf=roofline workload.requests=100 slo=none slo.ttft_p90=300ms"


@pytest.mark.parametrize("words", [PLANS, ROUTED])
def test_a_capacity_over_seeds_is_that_of_each_seed_alone(words):
    config = compose(words.split())
    both = capacity(config, 2).results
    alone = capacity({**config, "seed": 1}).results[1]
    assert both[1].rate == alone.rate and both[1].latency == alone.latency
    assert both[1].seed == 1


def test_a_study_judges_a_seed_as_the_command_that_replays_it_does():
    config = compose(PLANS.split())
    assert judge(config, Workloads().traffic(config, [1]))["capacity"] == capacity({**config, "seed": 1}).rate
