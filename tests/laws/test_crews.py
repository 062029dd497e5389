"""Servers of stations fail and scale: nothing is lost that was not said to be, and what broke off is done anew."""

from dataclasses import replace

import numpy as np
import pytest

from mist.autoscalers.queue_length import QueueLength
from mist.build import build
from mist.clients.encoder_station import EncoderStation
from mist.clients.station import DrawnStation, Station
from mist.compose import compose
from mist.crew import CrewedStation
from mist.errors import InputError
from mist.faults import NO_FAULTS, DrawnFaults, GivenFaults, Outage
from mist.plan.branches import Fork, Path
from mist.plan.stages import Generate, Pipeline, Serve
from mist.plan.times import Constant
from mist.request import Stage
from mist.scaling import FIXED, Autoscale
from mist.scenario import Scenario
from mist.simulate import simulate
from mist.workload.lengths import Fixed

SEARCH = Pipeline({"s": Serve("tool", "s", time=Constant(1.0)), "x": Generate(output=Fixed(1))})


@pytest.fixture
def pool(make_pool, tiny, linear):
    return make_pool(model=tiny, perf=linear(0.0), limits={"token_budget": 512, "max_running": 64}, kv_blocks=4000)


@pytest.fixture
def serve(drive, pool):
    def go(arrivals, spec, faults=NO_FAULTS, pipeline=SEARCH, **options):
        arrivals = [(time, 10, 1) for time in arrivals]
        options = {"pipeline": pipeline, "stations": {"s": spec}, "cycle": len(arrivals), **options}
        return drive(pool, arrivals, faults=faults, **options)

    return go


def given(*outages, requests="migrate", retries=3):
    """Outages of station ``s``: (at, lasting, server)."""
    named = {f"o{n}": Outage(at, lasting, server, "s") for n, (at, lasting, server) in enumerate(outages)}
    return GivenFaults(named, requests, retries)


def visits(run):
    """(queued, started, finished) of each request's visit to the station."""
    return [next(v[2:] for v in r.visits if v.stage is Stage.TOOL) if not r.lost else None for r in run.requests]


def test_what_broke_off_is_done_anew_once_the_server_is_back(serve):
    run = serve([0.0, 0.25], DrawnStation(1), given((0.5, 2.0, 0)))
    assert visits(run) == [(0.0, 2.5, 3.5), (0.25, 3.5, 4.5)]
    assert [r.retries for r in run.requests] == [1, 0]
    station = run.cluster.stations["s"]
    assert (station.tasks, station.busy, station.free) == (2, 2.5, 1)


def test_another_server_takes_it_before_those_who_wait(serve):
    """Three at once on two servers; the one that fails leaves its task to the other, ahead of the third."""
    run = serve([0.0, 0.0, 0.125], DrawnStation(2), given((0.5, 9.0, 0)))
    assert visits(run) == [(0.0, 1.0, 2.0), (0.0, 0.0, 1.0), (0.125, 2.0, 3.0)]


@pytest.mark.parametrize(
    ("requests", "retries", "lost"), [("lose", 0, True), ("migrate", 1, True), ("migrate", 2, False)]
)
def test_it_is_lost_when_the_faults_say_so(requests, retries, lost, serve):
    run = serve([0.0, 5.0], DrawnStation(1), given((0.5, 0.25, 0), (1.0, 0.25, 0), requests=requests, retries=retries))
    first, second = run.requests
    assert bool(first.lost) == lost
    assert not lost or first.lost == "s: s/0 failed"
    assert second.finished == 6.0
    assert (run.cluster.lost, run.cluster.completed) == (int(lost), 2 - lost)


def test_a_branch_that_is_lost_loses_its_query_once(serve):
    path = Path({"s": Serve("tool", "s", time=Constant(1.0))}, 3)
    fork = Pipeline({"f": Fork({"p": path}, carries="none"), "x": Generate(output=Fixed(1))})
    run = serve([0.0], DrawnStation(3), given((0.5, 1.0, 0), (0.6, 1.0, 1), requests="lose", retries=0), pipeline=fork)
    assert (run.cluster.lost, run.cluster.completed, run.cluster.in_flight) == (1, 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_done_twice(seed, serve):
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(0.4, 200)).tolist()
    run = serve(arrivals, DrawnStation(3), DrawnFaults(4.0, 1.5, "migrate", 1000), seed=seed, until=400.0)
    station = run.cluster.stations["s"]
    assert station.tasks == run.cluster.completed == 200
    assert sum(r.retries for r in run.requests) > 10
    assert all(finished == pytest.approx(started + 1.0) for _, started, finished in visits(run))
    spent = station.busy - 200
    assert 0 < spent < sum(r.retries for r in run.requests)  # what broke off took less than a second each
    assert not station.turns and not station.queue


@pytest.mark.parametrize("seed", range(12))
def test_whatever_fails_batches_end_once_and_in_whole(seed, serve, sheet):
    """Random batches, waits and outages: every task is done once, and no server runs two batches at a time."""
    random = np.random.default_rng(seed)
    servers, most = int(random.integers(1, 4)), int(random.integers(1, 6))
    spec = reader(sheet, servers=servers, max_batch=most, max_wait=float(random.choice([0.0, 0.2])) * (most > 1))
    time = serve([0.0], replace(spec, servers=1, max_wait=0.0), pipeline=READ).cluster.stations["s"].busy
    ends = [np.cumsum(random.exponential(6 * time, 10)).tolist() for _ in range(servers)]
    outages = [(a, b - a, s) for s in range(servers) for a, b in zip(ends[s][::2], ends[s][1::2], strict=True)]
    arrivals = np.cumsum(random.exponential(time / servers, 60)).tolist()
    run = serve(arrivals, spec, given(*outages, retries=99), pipeline=READ)
    station = run.cluster.stations["s"]
    assert station.tasks == run.cluster.completed == 60
    assert all(finished > started >= queued for queued, started, finished in _embedded(run))
    spans = sorted({(started, finished) for _, started, finished in _embedded(run)})
    assert all(sum(a <= begin < b for a, b in spans) <= servers for begin, _ in spans)
    assert station.server.worked()[1] == pytest.approx(station.busy)
    assert not station.turns and station.free == servers


def test_a_crew_that_stays_is_a_station(serve):
    """To the last bit, batches and waits included."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(0.3, 150)).tolist()
    runs = [serve(arrivals, DrawnStation(3), faults) for faults in (NO_FAULTS, given((1e9, 1.0, 0)))]
    assert [type(run.cluster.stations["s"]) for run in runs] == [Station, CrewedStation]
    assert runs[0].column("finished").tolist() == runs[1].column("finished").tolist()
    ours = [(at.tasks, at.batches, at.busy) for at in (run.cluster.stations["s"] for run in runs)]
    assert ours[0] == ours[1]


def reader(sheet, **fields):
    config = {name: sheet(noun, choice) for name, (noun, choice) in {
        "model": ("model", "bge-large-en"), "hardware": ("hardware", "l4"), "engine": ("engine", "vllm"),
        "perf": ("perf", "roofline"),
    }.items()}  # fmt: skip
    return replace(build(EncoderStation, config), **fields)


READ = Pipeline({"s": Serve("embed", "s", tokens=Fixed(400)), "x": Generate(output=Fixed(1))})


def test_energy_is_that_of_the_time_worked_and_of_servers_that_were_there(sheet, serve):
    spec = reader(sheet, servers=1, max_batch=4)
    alone = serve([0.0], spec, pipeline=READ)
    time = alone.cluster.stations["s"].busy
    run = serve([0.0], spec, given((time / 2, 7.0, 0)), pipeline=READ)
    broken, whole = run.cluster.stations["s"], alone.cluster.stations["s"]
    assert broken.busy == pytest.approx(1.5 * time)
    load, busy = broken.server.worked()
    assert (load, busy) == pytest.approx([1.5 * x for x in whole.server.worked()])
    idle = spec.hardware.idle_power
    assert broken.joules(0.0) - 1.5 * (whole.joules(time) - idle * time) == pytest.approx(idle * run.kernel.now)


def test_a_full_batch_that_lost_some_waits_no_longer_than_it_may(sheet, serve):
    """Four go together; two may not be tried again, so the others are no full batch, but have waited long enough."""
    spec = reader(sheet, servers=1, max_batch=4, max_wait=5.0)
    run = serve([0.0] * 4, spec, given((1e-3, 1.0, 0), requests="migrate", retries=1), pipeline=READ)
    assert all(started == 5.0 or started == pytest.approx(1.001) for _, started, _ in _embedded(run))


def _embedded(run):
    return [next(v[2:] for v in r.visits if v.stage is Stage.EMBED) for r in run.requests]


def scaling(**fields):
    fields = {"startup": 2.0, "interval": 1.0, "stabilization": 3.0, "min_replicas": 1, "max_replicas": 4, **fields}
    return Autoscale(QueueLength(2.0, 4.0), **fields)


def test_servers_come_with_the_queue_and_go_when_it_is_gone(sheet, pool, drive):
    spec = reader(sheet, max_batch=1, autoscaler=scaling())
    slow = Pipeline({"s": Serve("embed", "s", items=40, tokens=Fixed(400)), "x": Generate(output=Fixed(1))})
    arrivals = [(n * 0.05, 10, 1) for n in range(100)]
    run = drive(pool, arrivals, pipeline=slow, stations={"s": spec}, cycle=100, until=200.0)
    fixed = drive(pool, arrivals, pipeline=slow, stations={"s": replace(spec, autoscaler=FIXED)}, cycle=100)
    station = run.cluster.stations["s"]
    up = [span for span in station.fleet.history() if span.state == "up"]
    assert run.cluster.completed == 100
    assert len({span.replica for span in up}) == 4
    assert len(station.fleet.up) == 1
    assert max(r.finished for r in run.requests) < max(r.finished for r in fixed.requests)
    starting = [span for span in station.fleet.history() if span.state == "starting" and span.until is not None]
    assert all(span.until - span.since == pytest.approx(2.0) for span in starting)


def test_a_server_that_is_to_go_ends_its_batch(serve, sheet):
    """Scaled down while it works: nobody's work breaks off."""
    arrivals = np.cumsum(np.random.default_rng(2).exponential(0.05, 120)).tolist()
    pipeline = Pipeline({"s": Serve("embed", "s", items=30, tokens=Fixed(400)), "x": Generate(output=Fixed(1))})
    spec = reader(sheet, servers=4, max_batch=1, autoscaler=scaling(stabilization=0.0, interval=0.21))
    run = serve(arrivals, spec, pipeline=pipeline, until=100.0)
    station = run.cluster.stations["s"]
    assert run.cluster.completed == 120 == station.tasks
    assert any(span.state == "draining" and span.until > span.since for span in station.fleet.spans)
    _, started, finished = _embedded(run)[0]
    assert station.busy == pytest.approx(120 * (finished - started))


RAG = ["pipeline=rag", "workload.requests=60", "workload.rate=4", "slo=none"]


BUSY = ["pipeline=rag", "workload.requests=200", "workload.rate=14", "slo=none"]


def test_the_bill_is_for_servers_that_were_ordered():
    words = ["stations.reranker.autoscaler=queue_length", "stations.reranker.autoscaler.interval=1s"]
    words += ["stations.reranker.autoscaler.startup=2s", "stations.reranker.autoscaler.policy.concurrency=1"]
    plain, scaled = (simulate(compose([*BUSY, *more])) for more in ([], words))
    fleet = scaled.stations["reranker"].fleet
    assert fleet.mean_replicas > 1 and plain.stations["reranker"].fleet is None
    each = plain.stations["reranker"].dollars_per_hour
    assert scaled.stations["reranker"].dollars_per_hour == pytest.approx(each * fleet.mean_replicas)
    assert scaled.dollars_per_hour - plain.dollars_per_hour == pytest.approx(each * (fleet.mean_replicas - 1))
    again = simulate(compose([*BUSY, *words]))
    assert (again.stations, again.latency) == (scaled.stations, scaled.latency)


def test_drawn_faults_reach_stations_too():
    words = ["faults=drawn", "faults.mtbf=5s", "faults.mttr=1s", "faults.retries=50"]
    result = simulate(compose([*RAG, *words]))
    assert result.stations["reranker"].fleet.failures > 0
    assert result.stations["index"].fleet is None  # on a host
    assert result.window.requests.lost == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["faults=given", "faults.outage.first.pool=index"], "index: on a host"),
        (["faults=given", "faults.outage.first.pool=nobody"], "no such pool .*embedder, llm, reranker"),
        (["faults=given", "faults.outage.first.pool=reranker", "faults.outage.first.replica=1"], "replicas 0 to 0"),
        (["stations.reranker.autoscaler=slo_attainment"], r"reranker\.autoscaler = slo_attainment: without a limit"),
        (["stations.reranker.autoscaler=queue_length", "stations.reranker.servers=9"], "replicas = 9"),
        (
            ["stations.reranker.autoscaler=target_utilization", "stations.reranker.autoscaler.policy.share=memory"],
            "holds no KV cache",
        ),
        (
            ["stations.reranker.autoscaler=queue_length", "faults=given", "faults.outage.first.pool=reranker"],
            "come and go",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, why):
    with pytest.raises(InputError, match=why):
        build(Scenario, compose([*RAG, *words]))
