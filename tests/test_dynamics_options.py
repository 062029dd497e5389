"""Every option of cluster dynamics is one override away, is in the summary, and is refused where it has no effect."""

from pathlib import Path

import pytest
from rich.console import Console

from mist.compose import compose
from mist.errors import InputError
from mist.report.text import simulation
from mist.simulate import simulate

CONF = Path(__file__).parents[1] / "conf"
SHORT = ["workload=poisson_fixed", "workload.requests=200", "workload.rate=20", "workload.outputs.tokens=100"]
PAIR = ["cluster=disaggregated", "prefill.replicas=2", "decode.replicas=2"]
NEEDS = {
    "autoscaler=queue_length": ["hardware=l40s"],
    "roles=queue_ratio": PAIR,
    "faults=drawn": ["faults.mtbf='5 s'", "faults.mttr='1 s'", "replicas=2"],
    "faults=given": ["faults.outage.first.at='2 s'", "faults.outage.first.lasting='1 s'"],
}
CHOICES = [
    f"{noun}={path.stem}"
    for noun in ("autoscaler", "faults", "roles")
    for path in sorted((CONF / noun).glob("*.yaml"))
    if path.stem not in ("none", "fixed")
]


def text(result):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(simulation(result))
    return capture.get()


@pytest.mark.parametrize("choice", CHOICES)
def test_one_override_turns_it_on_and_the_summary_says_so(choice):
    base = [*SHORT, *NEEDS.get(choice, [])]
    on = simulate(compose([*base, choice]))
    assert "replica-seconds" in text(on)
    assert all(pool.fleet is not None for pool in on.pools.values())
    assert on.counts.arrived == on.counts.completed + on.counts.in_flight + on.counts.refused + on.counts.lost
    if choice.startswith("faults"):
        assert "available" in text(on)


def test_off_the_summary_is_silent():
    assert "replica-seconds" not in text(simulate(compose(SHORT)))


def test_lost_requests_are_in_the_summary():
    lose = ["faults=drawn", "faults.mtbf='6 s'", "faults.mttr='1 s'", "faults.requests=lose", "faults.retries=0"]
    result = simulate(compose([*SHORT, *lose, "replicas=3"]))
    assert result.counts.lost > 0
    assert f"{result.counts.lost:,} lost with a replica" in text(result)
    assert set(result.requests_frame()["state"]) >= {"completed", "lost"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["autoscaler.max_replicas=4"], "autoscaler.max_replicas = 4: Fixed has no such option"),
        (["faults.mtbf='1 h'"], "NoFaults has no such option"),
        (["autoscaler=queue_length", "replicas=9"], "replicas = 9: a pool begins within"),
        (["autoscaler=slo_attainment", "slo=none"], "no effect"),
        (["faults=drawn", "faults.retries=0"], "faults.retries = 0"),
        (["faults=given", "faults.outage.first.replica=1"], "llm has replicas 0 to 0"),
        (["faults=given", "faults.outage.second={at: 90, lasting: 1}"], "out of order until 240 s"),
        (["faults=given", "autoscaler=queue_length"], "come and go"),
        (["handover.layerwise=true"], "no such address"),
        (["cluster=disaggregated", "handover.reach=local", "handover.groups=2"], "prefill has 1 replicas"),
        (["cluster=disaggregated", "roles=queue_ratio"], "min_replicas = 1"),
        ([*PAIR, "roles=queue_ratio", "decode.hardware=a100"], "same hardware"),
    ],
)
def test_what_has_no_effect_is_refused(overrides, message):
    with pytest.raises(InputError) as caught:
        simulate(compose([*SHORT, *overrides]))
    assert message in str(caught.value)
