"""Queueing theory, through the real cluster: waits of one server, Little's law, processor sharing."""

from itertools import pairwise

import numpy as np
import pytest

from mist.kernel import Kernel
from mist.network import Link, LinkSpec

TOKEN = 1e-3  # s; a prompt of a thousand tokens takes a second
WIDE = {"token_budget": 10**6, "max_running": 1}


@pytest.fixture(scope="module")
def one_server(make_pool, tiny, linear):
    """A pool that serves one prompt at a time, TOKEN seconds per token, and knows no memory limit."""

    def pool(scheduler, **fields):
        perf = linear(0.0, TOKEN)
        return make_pool(
            model=tiny, hardware="h200", scheduler=scheduler, limits=WIDE, perf=perf, kv_blocks=10**9, **fields
        )  # fmt: skip

    return pool


def stream(seed, n, rho, exponential):
    """Poisson arrivals at ``rho`` per second of prompts of a second on average, one token of answer."""
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rho, n))
    prompts = np.ceil(draw.exponential(1000, n)) if exponential else np.full(n, 1000)
    return [(time, int(prompt), 1) for time, prompt in zip(times.tolist(), prompts, strict=True)]


def waits(run):
    return np.array([request.visits[0].started - request.arrived for request in run.requests])


@pytest.mark.parametrize("exponential", [True, False])
def test_one_server_serves_by_lindleys_recursion(scheduler_name, exponential, one_server, drive):
    load = stream(1, 2000, 0.9, exponential)
    expected, wait = [], 0.0
    for (time, prompt, _), (following, _, _) in pairwise([*load, load[-1]]):
        expected.append(wait)
        wait = max(wait + prompt * TOKEN - (following - time), 0.0)
    found = waits(drive(one_server(scheduler_name), load))
    if scheduler_name == "shortest_first" and exponential:
        assert found.mean() < np.mean(expected)  # not first come, first served, and better so on average
    else:
        np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("rho", [0.5, 0.7])
@pytest.mark.parametrize("exponential", [True, False])
def test_mean_waits_are_those_of_m_m_1_and_m_d_1(rho, exponential, one_server, drive):
    n, seeds = 8000, range(4)
    means = [waits(drive(one_server("continuous"), stream(seed, n, rho, exponential))).mean() for seed in seeds]
    theory = rho / (1 - rho) * (1 if exponential else 0.5)  # Pollaczek and Khinchine, services of one second
    # Variance of the mean wait over many customers of M/M/1 (Daley, 1968); that of M/D/1 is smaller.
    variance = rho * (2 + 5 * rho - 4 * rho**2 + rho**3) / (1 - rho) ** 4 / (n * len(seeds))
    assert abs(np.mean(means) - theory) < 4 * variance**0.5
    assert variance**0.5 < 0.09 * theory / (1 if exponential else 0.5)  # or the test would say nothing


def test_littles_law_holds(scheduler_name, make_pool, drive, poisson, tiny, linear):
    load = poisson(5, 3000, 20.0, (1, 200), (1, 60))
    pool = make_pool(
        model=tiny, scheduler=scheduler_name, perf=linear(5e-3, 1e-5), replicas=2, router="least_loaded",
        limits={"token_budget": 256, "max_running": 16},
    )  # fmt: skip
    area, last = 0.0, (0.0, 0)

    def integrate(run):
        nonlocal area, last
        area += last[1] * (run.kernel.now - last[0])
        last = run.kernel.now, run.cluster.in_flight

    run = drive(pool, load, after_each=integrate)
    sojourns = run.column("finished") - run.column("arrived")
    assert area == pytest.approx(sojourns.sum(), rel=1e-9)
    assert sojourns.mean() > 0.1


def transfers(bandwidth, latency, load):
    """Response times of (time, bytes) pairs over a link."""
    kernel, ends = Kernel(), {}
    link = Link(kernel, LinkSpec("wire", bandwidth, latency))

    def end(number):
        ends[number] = kernel.now

    for number, (time, size) in enumerate(load):
        kernel.at(time, link.send, size, end, number)
    kernel.run()
    assert link.bytes_sent == pytest.approx(sum(size for _, size in load))
    return np.array([ends[number] - time for number, (time, _) in enumerate(load)])


def shared_equally(bandwidth, load):
    """Response times by brute force: from one change to the next, everybody gets an equal share."""
    left, ends, now, coming = {}, {}, 0.0, list(enumerate(load))
    while left or coming:
        nearest = min(left.values(), default=np.inf) * len(left) / bandwidth if left else np.inf
        step = min(nearest, coming[0][1][0] - now if coming else np.inf)
        for number in left:
            left[number] -= step * bandwidth / len(left)
        now += step
        if step == nearest:
            number = min(left, key=left.get)
            ends[number] = now
            del left[number]
        else:
            number, (_, size) = coming.pop(0)
            left[number] = size
    return np.array([ends[number] - time for number, (time, _) in enumerate(load)])


def drawn_sizes(kind, draw, n):
    """Sizes of mean 1: all equal, exponential, or nine small in ten and one large."""
    if kind == "equal":
        return np.ones(n)
    return draw.exponential(1.0, n) if kind == "exponential" else np.where(draw.random(n) < 0.9, 0.5, 5.5)


@pytest.mark.parametrize("kind", ["equal", "exponential", "two sizes"])
def test_transfers_share_a_link_equally_and_then_take_one_latency(kind):
    draw = np.random.default_rng(2)
    load = list(zip(np.cumsum(draw.exponential(1.25, 400)).tolist(), drawn_sizes(kind, draw, 400), strict=True))
    np.testing.assert_allclose(transfers(1.0, 0.25, load), shared_equally(1.0, load) + 0.25, rtol=1e-9)


def test_transfers_that_start_together_end_together():
    np.testing.assert_allclose(transfers(10.0, 0.5, [(1.0, 20.0)] * 3), [6.5, 6.5, 6.5], rtol=1e-12)


@pytest.mark.parametrize("kind", ["equal", "exponential", "two sizes"])
def test_mean_time_over_a_link_depends_on_mean_size_alone(kind):
    n, rho, means = 6000, 0.6, []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        times = np.cumsum(draw.exponential(1 / rho, n)).tolist()
        means.append(transfers(1.0, 0.0, list(zip(times, drawn_sizes(kind, draw, n), strict=True))).mean())
    error = np.std(means, ddof=1) / len(means) ** 0.5
    theory = 1 / (1 - rho)  # M/G/1 processor sharing, insensitive to the distribution (Kleinrock, vol. 2, 4.4)
    assert abs(np.mean(means) - theory) < 5 * error  # 5 % of chance, five degrees of freedom, is 2.6; once in 500 is 5
    assert error < 0.03 * theory


def test_joining_the_shortest_line_waits_less_than_taking_turns(one_server, drive):
    load = stream(4, 4000, 0.85 * 4, exponential=True)
    turns, shortest = (
        drive(one_server("continuous", replicas=4, router=name), load) for name in ("round_robin", "least_loaded")
    )
    assert waits(shortest).mean() < 0.6 * waits(turns).mean()
    assert turns.column("replica").tolist() == [number % 4 for number in range(len(load))]


def test_every_router_uses_every_replica_and_one_replica_leaves_no_choice(router_name, one_server, drive):
    load = stream(6, 300, 3.0, exponential=True)
    spread = np.bincount(drive(one_server("continuous", replicas=3, router=router_name), load).column("replica"))
    assert len(spread) == 3
    assert spread.min() > 0
    assert set(drive(one_server("continuous", router=router_name), load).column("replica")) == {0}
