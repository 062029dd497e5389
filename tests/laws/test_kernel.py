"""Facts before routes before decisions, and time never runs back."""

import random
from math import nan

import pytest

from mist.errors import CausalityError
from mist.kernel import Kernel


def test_facts_come_before_routes_before_decisions_whatever_the_insertion_order():
    ranks = ("fact", "route", "decision")
    events = [(time, rank) for time in (1.0, 2.0) for rank in ranks for _ in range(3)]
    for seed in range(50):
        kernel, made = Kernel(), []

        def happen(event, kernel=kernel, made=made):
            ask = {"fact": kernel.after, "route": kernel.route, "decision": kernel.decide}[event[1]]
            ask(*((0.0,) if event[1] == "fact" else ()), made.append, event)

        for event in random.Random(seed).sample(events, len(events)):
            kernel.at(event[0], happen, event)
        kernel.run()
        assert made == sorted(events, key=lambda event: (event[0], ranks.index(event[1])))
        assert kernel.events == 2 * len(events)
        assert kernel.idle


def test_calls_of_one_rank_at_one_instant_are_made_in_the_order_they_were_asked_for():
    kernel, made = Kernel(), []
    for number in range(20):
        kernel.at(1.0, made.append, number)
    kernel.run()
    assert made == list(range(20))


def test_a_decision_sees_facts_that_other_decisions_bring_about_at_the_same_instant():
    kernel, made = Kernel(), []

    def decide() -> None:
        kernel.decide(made.append, "decided")
        kernel.at(kernel.now, made.append, "fact")

    kernel.at(1.0, kernel.decide, decide)
    kernel.run()
    assert made == ["fact", "decided"]


@pytest.mark.parametrize("time", [0.5, nan])
def test_time_never_runs_back(time):
    kernel = Kernel()
    kernel.at(1.0, kernel.at, time, print)
    with pytest.raises(CausalityError, match=r"it is 1\.0 s"):
        kernel.run()


def test_the_clock_stops_at_the_last_call_made():
    kernel, made = Kernel(), []
    for time in (1.0, 2.0, 3.0):
        kernel.at(time, made.append, time)
    kernel.run(until=2.5)
    assert (kernel.now, made, kernel.idle) == (2.0, [1.0, 2.0], False)
    kernel.run()
    assert (kernel.now, kernel.idle) == (3.0, True)
