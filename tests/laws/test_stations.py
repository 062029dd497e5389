"""Stations are the queues of the textbooks."""

from dataclasses import dataclass, replace
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.build import build
from mist.clients.encoder_station import EncoderStation
from mist.clients.host import Host, HostSpec
from mist.clients.station import DrawnStation, Station, Task
from mist.clients.work_station import DeviceStation, HostStation
from mist.errors import Infeasible, InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.base import StepShape
from mist.perf.work import PerQuery, Work

N = 12_000  # visits of one run
SEEDS = range(16)


@dataclass(frozen=True)
class Batches:
    """A station like any other whose batches take ``step + each * tasks`` seconds."""

    servers: int | None
    max_batch: int
    max_wait: float
    step: float
    each: float
    timed = False

    def server(self, kernel, hosts):
        return Stepping(kernel, self)


@dataclass(frozen=True)
class Stepping:
    kernel: Kernel
    spec: Batches

    def run(self, batch, call):
        self.kernel.after(self.spec.step + self.spec.each * len(batch), call)


def visit(spec, arrivals, hosts=None, then=None):
    """(queued, started, finished) of (arrival, service) in order of arrival; ``then`` is told of each that leaves."""
    kernel = Kernel()
    station, seen = Station(kernel, "s", spec, {} if hosts is None else hosts(kernel)), {}

    def leave(number, task, started):
        seen[number] = task.queued, started, kernel.now
        if then is not None:
            then(kernel, number)

    def arrive(number, seconds):
        station.submit(Task(100, 1, seconds, kernel.now, lambda task, started: leave(number, task, started)))

    for number, (time, seconds) in enumerate(arrivals):
        kernel.at(time, arrive, number, seconds)
    kernel.run()
    assert station.tasks == len(seen) and not station.queue
    return np.array([seen[number] for number in range(len(seen))])


def erlang_c(servers, load):
    """Chance to wait in M/M/c, ``load`` in Erlang."""
    tail = load**servers / factorial(servers) * servers / (servers - load)
    return tail / (sum(load**k / factorial(k) for k in range(servers)) + tail)


def agrees(means, expected):
    """Whether the mean of independent runs is as expected: within four standard errors, which are below 5 %."""
    error = np.std(means, ddof=1) / len(means) ** 0.5
    assert error < 0.05 * expected
    return abs(np.mean(means) - expected) < 4 * error


def poisson(rate, mean, seed=3, n=N):
    draw = np.random.default_rng(seed)
    return list(zip(np.cumsum(draw.exponential(1 / rate, n)).tolist(), draw.exponential(mean, n).tolist(), strict=True))


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (3, 2.2), (8, 5.6)])
def test_the_mean_wait_is_that_of_m_m_c(servers, load):
    runs = [visit(DrawnStation(servers), poisson(load, 1.0, seed)) for seed in SEEDS]
    waits = [np.mean(seen[:, 1] - seen[:, 0]) for seen in runs]
    assert agrees(waits, erlang_c(servers, load) / (servers - load))


@pytest.mark.parametrize(("cv2", "law"), [(0.0, "constant"), (2.0, "lognormal")])
def test_the_mean_wait_of_one_server_is_that_of_pollaczek_and_khinchine(cv2, law):
    load, s2, waits = 0.6, np.log(1 + cv2), []
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        services = np.ones(N) if law == "constant" else draw.lognormal(-s2 / 2, s2**0.5, N)
        arrivals = np.cumsum(draw.exponential(1 / load, N))
        seen = visit(DrawnStation(1), list(zip(arrivals.tolist(), services.tolist(), strict=True)))
        waits.append(np.mean(seen[:, 1] - seen[:, 0]))
    assert agrees(waits, load / (1 - load) * (1 + cv2) / 2)


def test_servers_without_limit_keep_nobody_waiting():
    seen = visit(DrawnStation(None), poisson(50.0, 1.0, n=2000))
    assert (seen[:, 1] == seen[:, 0]).all()


def test_a_tandem_of_two_queues_waits_like_two_alone():
    """Burke: departures of M/M/1 are Poisson; Jackson: the second queue does not know the first."""
    load, gaps, responses = 0.6, [], []
    for seed in SEEDS:
        departures = np.sort(visit(DrawnStation(1), poisson(load, 1.0, seed))[:, 2])
        gaps.append(np.std(np.diff(departures)))
        services = np.random.default_rng(100 + seed).exponential(1.0, N)
        second = visit(DrawnStation(1), list(zip(departures.tolist(), services.tolist(), strict=True)))
        responses.append(np.mean(second[:, 2] - second[:, 0]))
    assert agrees(gaps, 1 / load)
    assert agrees(responses, 1 / (1 - load))


@pytest.mark.parametrize(
    ("spec", "times", "finished"),
    [
        (Batches(1, 4, 0.0, 1.0, 0.1), [0, 0.5, 0.6, 0.7], [1.1, 2.4, 2.4, 2.4]),  # whoever waits goes together
        (Batches(1, 2, 0.0, 1.0, 0.1), [0, 0, 0], [1.2, 1.2, 2.3]),  # simultaneous arrivals too
        (Batches(1, 3, 0.4, 1.0, 0.1), [0, 0.1], [1.6, 1.6]),  # the oldest has waited long enough
        (Batches(1, 3, 0.4, 1.0, 0.1), [0, 0.1, 0.2], [1.5, 1.5, 1.5]),  # full
        (Batches(2, 2, 5.0, 1.0, 0.1), [0, 0, 0.1, 0.1], [1.2, 1.2, 1.3, 1.3]),
    ],
)
def test_batches_worked_by_hand(spec, times, finished):
    assert visit(spec, [(time, 0.0) for time in times])[:, 2] == pytest.approx(finished)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(2, 5),
    st.sampled_from((0.0, 0.3)),
)
def test_batches_are_full_or_late_in_order_and_never_too_large(times, servers, most, wait):
    seen = visit(Batches(servers, most, wait, 0.2, 0.05), [(time, 0.0) for time in sorted(times)])
    starts, counts = np.unique(seen[:, 1], return_counts=True)
    assert (np.diff(seen[:, 1]) >= 0).all() and (seen[:, 1] >= seen[:, 0]).all()
    assert counts.max() <= most * servers
    for start, count in zip(starts, counts, strict=True):
        rest = seen[seen[:, 1] == start][count - count % most :, 0]  # those of a batch that is not full
        assert not len(rest) or start >= rest[0] + wait


@pytest.fixture
def cpu(sheet):
    spec = build(HostSpec, {"hardware": sheet("hardware", "sapphire-rapids"), "cores": 1})
    return lambda kernel: {"cpu": Host(kernel, "cpu", spec)}


def test_a_host_shared_by_all_who_come_is_m_d_1_ps(cpu):
    load, spec = 0.5, HostStation("cpu", PerQuery(1.0, 0.0), servers=None)
    runs = [visit(spec, poisson(load, 1.0, seed, n=3000), cpu) for seed in SEEDS]
    assert agrees([np.mean(seen[:, 2] - seen[:, 0]) for seen in runs], 1 / (1 - load))


def test_searches_on_a_busy_host_take_longer(cpu):
    spec = HostStation("cpu", PerQuery(1.0, 0.0, 0.5), servers=2)
    assert visit(spec, [(0, 0), (0, 0), (0, 0)], cpu)[:, 2] == pytest.approx([2.5, 2.5, 4.0])


@pytest.fixture
def embedder(sheet):
    config = {noun: sheet(noun, name) for noun, name in (("hardware", "l4"), ("engine", "vllm"), ("perf", "roofline"))}
    return build(EncoderStation, config | {"model": sheet("model", "bge-large-en"), "max_batch": 4})


def test_an_encoder_reads_a_batch_in_one_step_and_no_text_beyond_its_context(embedder):
    seen = visit(replace(embedder, max_batch=2), [(0.0, 0.0), (0.0, 0.0)])
    steps = embedder.perf.of(embedder.replica)
    assert seen[:, 2] == pytest.approx([steps.step_time(StepShape(0, 0, ((100, 0), (100, 0))))] * 2)
    kernel = Kernel()
    for tokens in (512, 5000):
        embedder.server(kernel, {}).run([Task(tokens, 1, 0.0, 0.0, print)], lambda: None)
    times = [time for time, *_ in kernel._facts]
    assert times[0] == times[1]


@pytest.mark.parametrize("field", ["hardware", "model"])
def test_a_better_device_or_a_smaller_model_is_faster(embedder, sheet, field):
    other = build(EncoderStation, {
        "hardware": sheet("hardware", "h100" if field == "hardware" else "l4"),
        "model": sheet("model", "bge-base-en" if field == "model" else "bge-large-en"),
        "engine": sheet("engine", "vllm"), "perf": sheet("perf", "roofline"),
    })  # fmt: skip
    load = [(0.0, 0.0)] * 20
    assert visit(other, load)[-1, 2] < visit(embedder, load)[-1, 2]


@dataclass(frozen=True)
class Flat:
    """An index that fills ``memory_bytes``, on a device whose searches take a second."""

    hardware: object = None
    memory_bytes: float = 0.0

    def work(self, queries):
        return Work(0.0, 0.0, 1.0 * queries)


def test_a_device_of_its_own_is_shared_with_nobody_and_paid_at_full_power_while_busy(sheet):
    device = build(HardwareSpec, sheet("hardware", "l4"))
    spec = DeviceStation(Flat(device), servers=2, max_batch=2)
    assert visit(spec, [(0.0, 0.0)] * 5)[:, 2] == pytest.approx([2, 2, 2, 2, 3])
    kernel = Kernel()
    server = spec.server(kernel, {})
    server.run([Task(1, 3, 0.0, 0.0, print)], lambda: None)
    kernel.now = 1.5  # half of it
    assert server.joules(1.5) == pytest.approx(3 * device.idle_power + 1.5 * (device.power - device.idle_power))
    kernel.run()
    assert server.joules(10.0) == pytest.approx(2 * 10 * device.idle_power + 3 * (device.power - device.idle_power))
    assert (spec.devices, spec.place) == (2, "l4")


def test_what_does_not_fit_memory_is_infeasible_with_the_numbers(cpu, embedder, sheet):
    kernel = Kernel()
    hosts = cpu(kernel)
    HostStation("cpu", Flat(memory_bytes=400e9)).server(kernel, hosts)
    held = r"600\.0 GB in memory \(flat 400\.0 \+ flat 200\.0\), sapphire-rapids has 512\.0"
    with pytest.raises(Infeasible, match=f"host cpu is to keep {held}"):
        HostStation("cpu", Flat(memory_bytes=200e9)).server(kernel, hosts)
    large = build(ModelSpec, sheet("model", "llama-3.1-70b"))
    with pytest.raises(Infeasible, match=r"llama-3\.1-70b needs 141\.\d GB of weights on each l4"):
        replace(embedder, model=large).server(kernel, {})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"servers": 0}, "servers = 0"),
        ({"max_batch": 0}, "max_batch = 0"),
        ({"max_wait": -1.0}, "max_wait = -1.0"),
        ({"max_wait": 1.0, "max_batch": 1}, "max_wait = 1.0: has no effect"),
        ({"servers": None, "max_batch": 2}, "max_batch = 2: has no effect"),
        ({"cores": 0}, "cores = 0"),
    ],
)
def test_what_makes_no_station_is_refused(fields, told):
    with pytest.raises(InputError, match=told):
        HostStation("cpu", PerQuery(1.0, 0.0), **fields)
