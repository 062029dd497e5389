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


def test_every_objective_of_a_study_of_several_seeds_is_their_mean():
    config = compose(ROUTED.split())
    traffic = Workloads().traffic(config, [0, 1])
    both, *each = (judge(config, {seed: traffic[seed] for seed in seeds}) for seeds in ([0, 1], [0], [1]))
    for objective in ("requests_per_dollar", "input_tokens_per_dollar"):
        assert both["metrics"][objective] == pytest.approx(sum(one["metrics"][objective] for one in each) / 2)
