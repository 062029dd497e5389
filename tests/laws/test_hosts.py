"""Sharing a host: processor sharing is exact, loses nothing and makes nothing up."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.build import build
from mist.clients.host import Host, HostSpec, Shared
from mist.errors import InputError
from mist.kernel import Kernel
from mist.perf.work import Work

JOBS = st.lists(
    st.tuples(st.floats(0, 5, allow_subnormal=False), st.floats(0.01, 3), st.sampled_from((0.5, 1.0, 2.0, inf))),
    min_size=1,
    max_size=12,
)


def shared(jobs, capacity):
    """When each of (arrival, amount, most) ends, and the resource."""
    kernel, ends = Kernel(), {}
    resource = Shared(kernel, capacity)
    for number, (time, amount, most) in enumerate(jobs):
        kernel.at(time, resource.use, amount, most, lambda n=number: ends.update({n: kernel.now}))
    kernel.run()
    return [ends[number] for number in range(len(jobs))], resource


def fluid(jobs, capacity):
    """The same, worked out from rates alone: from each change to the next one."""
    left = {n: amount for n, (_, amount, _) in enumerate(jobs)}
    ends, now = {}, 0.0
    while len(ends) < len(jobs):
        here = [n for n in left if jobs[n][0] <= now]
        level = bisected(sum, [jobs[n][2] for n in here], capacity)
        rates = {n: min(jobs[n][2], level) for n in here}
        to_end = min((left[n] / rates[n] for n in here), default=inf)
        to_arrival = min((jobs[n][0] - now for n in left if n not in here), default=inf)
        step = min(to_end, to_arrival)
        now = now + step if step == to_end else min(jobs[n][0] for n in left if n not in here)
        for n in here:
            left[n] -= rates[n] * step
            if left[n] <= 1e-12 * jobs[n][1]:
                ends[n] = now
                del left[n]
    return [ends[n] for n in range(len(jobs))]


def bisected(total, mosts, capacity):
    """The level to which everybody who can is filled up, by halving."""
    low, high = 0.0, capacity
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if total(min(most, middle) for most in mosts) > capacity else (middle, high)
    return high


@pytest.mark.parametrize(
    ("jobs", "capacity", "ends"),
    [
        ([(0, 1, 1), (0, 2, 1)], 1, [2, 3]),
        ([(0, 3, 1), (1, 1, 1)], 1, [4, 3]),
        ([(0, 1, 1)] * 3, 2, [1.5] * 3),
        ([(0, 1, 1), (0, 6, 8)], 4, [1, 1.75]),  # 1 and 3 of 4 cores, then 4: 3 done at 1 s, the rest in 0.75 s
        ([(0, 1, 1)] * 2, 8, [1, 1]),  # nobody is faster than it can be
    ],
)
def test_hand_worked_cases(jobs, capacity, ends):
    assert shared(jobs, capacity)[0] == pytest.approx(ends)


@given(JOBS, st.sampled_from((0.7, 1.0, 2.5)))
def test_rates_between_changes_are_those_of_max_min_fairness(jobs, capacity):
    ends, resource = shared(jobs, capacity)
    assert ends == pytest.approx(fluid(jobs, capacity), rel=1e-6, abs=1e-6)
    assert resource.used == pytest.approx(sum(amount for _, amount, _ in jobs))
    assert max(ends) >= resource.used / capacity * (1 - 1e-9)


@pytest.mark.parametrize("law", ["exponential", "constant", "lognormal"])
def test_mean_response_is_that_of_m_g_1_ps_whatever_the_distribution(law):
    n, load, means = 6000, 0.6, []
    for seed in range(12):
        draw = np.random.default_rng(seed)
        times = np.cumsum(draw.exponential(1 / load, n))
        amounts = {
            "exponential": lambda draw=draw: draw.exponential(1.0, n),
            "constant": lambda: np.ones(n),
            "lognormal": lambda draw=draw: draw.lognormal(-np.log(2) / 2, np.log(2) ** 0.5, n),  # mean 1, cv 1
        }[law]()
        ends, _ = shared(list(zip(times.tolist(), amounts.tolist(), [1.0] * n, strict=True)), 1.0)
        means.append(np.mean(np.array(ends) - times))
    error = np.std(means, ddof=1) / len(means) ** 0.5
    assert error < 0.03 / (1 - load)
    assert abs(np.mean(means) - 1 / (1 - load)) < 4 * error  # Kleinrock vol. 2, section 4.4


@pytest.fixture
def sheets(sheet):
    return sheet("hardware", "sapphire-rapids")


def test_alone_a_batch_takes_the_longer_of_compute_and_traffic_and_the_latency(sheets):
    kernel, ended = Kernel(), []
    host = Host(kernel, "cpu", build(HostSpec, {"hardware": sheets | {"memory_bandwidth": 100.0}, "cores": 8}))
    host.run(Work(4.0, 50.0, 0.25), 2, lambda: ended.append(kernel.now))  # 2 s of compute, 0.5 s of traffic
    kernel.run()
    host.run(Work(1.0, 300.0, 0.0), 8, lambda: ended.append(kernel.now))  # 0.125 s and 3 s
    kernel.run()
    assert ended == pytest.approx([2.25, 5.25])
    assert (host.cores.used, host.memory.used) == pytest.approx((5.0, 350.0))


def test_energy_is_idle_power_and_the_rest_by_busy_cores(sheets):
    kernel = Kernel()
    host = Host(kernel, "cpu", build(HostSpec, {"hardware": sheets, "cores": 56}))
    host.run(Work(56.0, 0.0, 9.0), 28, lambda: None)
    kernel.run()
    spec = host.spec.hardware
    assert host.joules(kernel.now) == pytest.approx(11 * spec.idle_power + (spec.power - spec.idle_power))


def test_a_host_without_cores_is_refused(sheets):
    with pytest.raises(InputError, match="cores = 0"):
        build(HostSpec, {"hardware": sheets, "cores": 0})
