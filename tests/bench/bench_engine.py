"""How fast the engine is: events, requests and steps per second of one core, and the cost of more replicas."""

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from mist.workload.traffic import Traffic

REQUESTS = 10_000


def chat(n: int) -> Traffic:
    """Poisson arrivals, prompts of 740 tokens (log-normal, median 490), answers of 210 (geometric)."""
    draw = np.random.default_rng(0)
    prompts = np.clip(draw.lognormal(6.2, 0.9, n), 1, 8000).astype(int)
    return Traffic(np.sort(draw.uniform(0, n, n)), prompts, np.minimum(draw.geometric(1 / 210, n), 2000))


def timed(drive: Callable, pool: object, traffic: Traffic, rate: float) -> dict[str, float]:
    arrivals = zip((traffic.times / rate).tolist(), traffic.inputs.tolist(), traffic.outputs.tolist(), strict=True)
    began = process_time()
    run = drive(pool, arrivals)
    seconds = process_time() - began
    steps = sum(client.steps for client in run.clients)
    tokens = sum(request.input + request.output for request in run.requests)
    counts = {"requests": len(run.requests), "events": run.kernel.events, "steps": steps, "tokens": tokens}
    return {"s": seconds, **{f"{name}/s": count / seconds for name, count in counts.items()}}


def line(title: str, figures: dict[str, float]) -> str:
    rates = "  ".join(f"{value:>12,.0f} {name}" for name, value in figures.items() if name != "s")
    return f"{title:<34}{figures['s']:>7.2f} s{rates}"


@pytest.mark.parametrize("rate", [3.0, 15.0, 30.0])
def test_one_replica(rate, scheduler_name, make_pool, drive, capsys):
    pool = make_pool(scheduler=scheduler_name, limits={"token_budget": 2048, "max_running": 256})
    figures = timed(drive, pool, chat(REQUESTS), rate)
    with capsys.disabled():
        print("\n" + line(f"{scheduler_name}, {rate:g} req/s", figures), end="")


def test_little_memory(make_pool, drive, capsys):
    figures = timed(drive, make_pool(kv_blocks=3000), chat(REQUESTS), 20.0)
    with capsys.disabled():
        print("\n" + line("3,000 KV blocks, 20 req/s", figures), end="")


def test_the_cost_of_a_request_from_1_to_64_replicas(router_name, make_pool, drive, capsys):
    costs = []
    for replicas in (1, 4, 16, 64):
        pool = make_pool(replicas=replicas, router=router_name)
        figures = timed(drive, pool, chat(REQUESTS), 8.0 * replicas)
        costs.append(figures["s"] / REQUESTS * 1e6)
        with capsys.disabled():
            print("\n" + line(f"{router_name}, {replicas} replicas, {8 * replicas} req/s", figures), end="")
    with capsys.disabled():
        print(f"\n{router_name}: {costs[0]:.0f} us a request on 1 replica, {costs[-1]:.0f} us on 64", end="")
    assert costs[-1] < 3 * costs[0]
