"""How much the engine does for a fixed case: counts, which no machine changes, not times."""

import gc
from dataclasses import dataclass, replace

import pytest

from mist.errors import DeadlineExceeded
from mist.simulate import serve


def work(run):
    return {
        "events": run.kernel.events,
        "steps": sum(client.steps for client in run.clients),
        "leaps": sum(client.leaps for client in run.clients),
    }


def test_a_lone_request_takes_one_leap_and_a_handful_of_events(make_pool, drive, linear):
    lone = [(10.0 * number, 300, 101) for number in range(50)]
    counts = work(drive(make_pool(perf=linear(0.01)), lone))
    # Steps: one chunk and 100 decodes. Events: arrival, routing, two launches, the chunk's end, the leap's end and a
    # last launch that finds nothing to do.
    assert counts == {"events": 50 * 7, "steps": 50 * 101, "leaps": 50}


def test_an_arrival_cuts_a_leap_once(make_pool, drive, linear):
    counts = work(drive(make_pool(perf=linear(0.01)), [(0.0, 300, 101), (0.505, 300, 101)]))
    # The first is cut after its chunk and 50 of its 100 decodes, joins the second's chunk with the 51st, leaves
    # after the other 49; 51 more for the second alone.
    assert counts["steps"] == 1 + 50 + 1 + 49 + 51
    assert counts["leaps"] == 3
    assert counts["events"] <= 2 * 7 + 2


def test_those_in_line_cut_no_leap(make_pool, drive, linear):
    pool = make_pool(perf=linear(0.01), limits={"token_budget": 512, "max_running": 1})
    counts = work(drive(pool, [(0.0, 300, 101), *[(0.1 + 0.001 * number, 300, 101) for number in range(20)]]))
    assert counts["leaps"] == 21 + 1  # the first arrival cuts: before it there was no line
    assert counts["steps"] == 21 * 101


def test_events_grow_with_requests_and_not_with_tokens(scheduler_name, make_pool, drive, poisson, linear):
    limits = {"token_budget": 2048, "max_running": 64}
    pool = make_pool(scheduler=scheduler_name, limits=limits, perf=linear(0.005, 1e-5), kv_blocks=10**6)
    few, many = (work(drive(pool, poisson(1, 300, 2.0, (100, 500), (n, n)))) for n in (50, 800))
    assert many["steps"] > 2 * few["steps"]
    assert few["events"] < 300 * 12
    assert many["events"] < 300 * 12


def test_the_work_of_a_busy_engine_is_what_it_was(make_pool, drive, linear):
    load = [(0.07 * number, 100 + 37 * number % 900, 1 + 53 * number % 300) for number in range(400)]
    pool = make_pool(perf=linear(0.005, 1e-5, 1e-8), limits={"token_budget": 512, "max_running": 64})
    counts = work(drive(pool, load))
    assert counts == {"events": 3809, "steps": 5203, "leaps": 713}


@dataclass(frozen=True)
class Assigned:
    """A router that sends request number i where it is told."""

    owners: tuple[int, ...]

    def choose(self, view) -> int:
        return self.owners[view.turn]


def test_replicas_do_together_exactly_the_work_that_each_does_alone(make_pool, drive, poisson, linear):
    pool = make_pool(perf=linear(0.005, 1e-5, 1e-8), limits={"token_budget": 512, "max_running": 16})
    streams = [poisson(seed, 60, 3.0, (50, 900), (1, 200)) for seed in range(8)]
    alone = [work(drive(pool, stream)) for stream in streams]
    load = sorted((*request, owner) for owner, stream in enumerate(streams) for request in stream)
    together = replace(pool, replicas=8, router=Assigned(tuple(owner for *_, owner in load)))
    counts = work(drive(together, [request[:3] for request in load]))
    assert counts == {name: sum(each[name] for each in alone) for name in counts}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_leaves_the_garbage_collector_as_it_was(enabled, make_scenario, make_pool, drawn):
    scenario = make_scenario(make_pool(), drawn(n=20))
    traffic, seen = scenario.workload.traffic(0), []

    def stop(_requests, now):
        seen.append(gc.isenabled())
        if now > traffic.times[-1] / 2:
            raise DeadlineExceeded("enough")
        return False

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(DeadlineExceeded):
            serve(scenario, traffic, 1.0, stop)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen
    assert not any(seen)
