"""How fast the engine is, in CPU seconds of one core: requests, events, steps, designs, and what replicas cost."""

from dataclasses import dataclass, replace
from math import inf
from time import process_time

import numpy as np
import pytest

from mist.build import build
from mist.cluster import Cluster, PoolSpec
from mist.compose import compose
from mist.kernel import Kernel
from mist.request import Request
from mist.simulate import Scenario, collector_paused, serve
from mist.sweep.capacity import search
from mist.workload.traffic import Traffic

REQUESTS = 10_000
TARGET = 20_000  # requests per CPU second on one replica
EACH = 500  # requests of a replica where streams are served side by side
DESIGN = 1000  # requests in a cycle of a small design's traffic
BEST_OF = 3


def chat(n: int, seed: int = 0) -> Traffic:
    """Poisson arrivals, prompts of 740 tokens (log-normal, median 490), answers of 210 (geometric)."""
    draw = np.random.default_rng(seed)
    prompts = np.clip(draw.lognormal(6.2, 0.9, n), 1, 8000).astype(int)
    return Traffic(np.sort(draw.uniform(0, n, n)), prompts, np.minimum(draw.geometric(1 / 210, n), 2000))


def merged(streams: list[Traffic]) -> tuple[Traffic, tuple[int, ...]]:
    """Streams side by side, and which of them each request is of."""
    times = np.concatenate([stream.times for stream in streams])
    order = np.argsort(times, kind="stable")
    owners = np.repeat(np.arange(len(streams)), [len(stream) for stream in streams])
    inputs, outputs = (np.concatenate([getattr(s, name) for s in streams]) for name in ("inputs", "outputs"))
    return Traffic(times[order], inputs[order], outputs[order]), tuple(owners[order].tolist())


@dataclass(frozen=True)
class Assigned:
    """A router that sends request number i where it is told."""

    owners: tuple[int, ...]

    def choose(self, view) -> int:
        return self.owners[view.turn]


def timed(pool: PoolSpec, traffic: Traffic, rate: float) -> dict[str, float]:
    """CPU seconds to serve one cycle until nothing is left to do, and what was done in each of them."""
    times = (traffic.times / rate).tolist()
    arrivals = enumerate(zip(times, traffic.inputs.tolist(), traffic.outputs.tolist(), strict=True))
    kernel = Kernel()
    cluster = Cluster(kernel, {"llm": pool}, None)

    def arrive(request: Request) -> None:
        cluster.arrive(request)
        following = next(arrivals, None)
        if following is not None:
            kernel.at(following[1][0], arrive, Request(following[0], *following[1]))

    number, first = next(arrivals)
    kernel.at(first[0], arrive, Request(number, *first))
    with collector_paused():  # as serve does
        began = process_time()
        kernel.run()
        spent = process_time() - began
    assert cluster.completed == len(traffic)
    clients = cluster.pools["llm"].clients
    steps, leaps = (sum(getattr(client, name) for client in clients) for name in ("steps", "leaps"))
    counts = {"requests": len(traffic), "events": kernel.events, "steps": steps, "leaps": leaps}
    return {"s": spent, **{f"{name}/s": count / spent for name, count in counts.items()}}


@dataclass(frozen=True)
class Kept:
    """A perf or power model whose tables are filled once for all the pools that use it."""

    made: object

    def of(self, *_: object, **__: object) -> object:
        return self.made


def line(title: str, figures: dict[str, float]) -> str:
    rates = "  ".join(f"{value:>12,.0f} {name}" for name, value in figures.items() if name != "s")
    return f"{title:<34}{figures['s']:>7.2f} s{rates}"


def test_azure_conversation_trace(capsys):
    config = compose(["workload=azure_conv", f"workload.requests={REQUESTS}", "workload.rate=3"])
    scenario = build(Scenario, config)
    traffic = scenario.workload.traffic(scenario.seed)
    runs, spent = [], []
    for _ in range(BEST_OF):
        began = process_time()
        runs.append(serve(scenario, traffic, 3.0))
        spent.append(process_time() - began)
    served, steps = len(runs[0].requests), runs[0].pools["llm"].steps
    best = min(spent)
    with capsys.disabled():
        print(
            f"\nAzure conversation trace, 3 req/s, one replica: {served:,} requests with warm-up in {best:.2f} s:",
            end=" ",
        )
        print(f"{served / best:,.0f} requests/s, {steps / best:,.0f} steps/s (target {TARGET:,} requests/s)", end="")
    assert served / best > TARGET


@pytest.mark.parametrize(("pipeline", "rate"), [("rag", 3.0), ("reasoning", 0.2), ("cascade", 1.0), ("agent", 0.1)])
def test_pipelines(pipeline, rate, capsys):
    queries = int(1000 * rate)
    config = compose([f"pipeline={pipeline}", "workload=azure_conv", f"workload.requests={queries}"])
    scenario = build(Scenario, config)
    traffic = scenario.workload.traffic(scenario.seed)
    began = process_time()
    run = serve(scenario, traffic, rate)
    spent = process_time() - began
    visits = sum(len(query.visits) for query in run.requests)
    with capsys.disabled():
        print(
            f"\n{pipeline}, {rate:g} req/s: {len(run.requests) / spent:,.0f} queries/s, {visits / spent:,.0f} visits/s",
            end="",
        )


EVERY_ENGINE = {"least_tokens", "slo_aware"}  # routers that look into every engine for every request


@pytest.mark.parametrize("rate", [3.0, 15.0, 30.0])
def test_one_replica(rate, scheduler_name, make_pool, capsys):
    pool = make_pool(scheduler=scheduler_name, limits={"token_budget": 2048, "max_running": 256})
    figures = timed(pool, chat(REQUESTS), rate)
    with capsys.disabled():
        print("\n" + line(f"{scheduler_name}, {rate:g} req/s", figures), end="")


def test_little_memory(make_pool, capsys):
    figures = timed(make_pool(kv_blocks=3000), chat(REQUESTS), 20.0)
    with capsys.disabled():
        print("\n" + line("3,000 KV blocks, 20 req/s", figures), end="")


def test_the_cost_of_a_request_from_1_to_64_replicas(router_name, make_pool, capsys):
    """Equal load per replica, but not equal work: 64 replicas get through the same requests in a 64th of the time."""
    costs = []
    for replicas in (1, 4, 16, 64):
        pool = make_pool(replicas=replicas, router=router_name)
        runs = [timed(pool, chat(REQUESTS), 8.0 * replicas) for _ in range(BEST_OF)]
        figures = min(runs, key=lambda run: run["s"])
        costs.append((figures["s"] / REQUESTS * 1e6, 1e6 / figures["events/s"]))
        with capsys.disabled():
            print("\n" + line(f"{router_name}, {replicas} replicas, {8 * replicas} req/s", figures), end="")
    (request, event), (request_of_64, event_of_64) = costs[0], costs[-1]
    with capsys.disabled():
        print(
            f"\n{router_name}, 64 replicas against 1: {request_of_64:.1f} us a request against {request:.1f}, ", end=""
        )
        print(f"ratio {request_of_64 / request:.2f}; an event, ratio {event_of_64 / event:.2f}", end="")
    if router_name not in EVERY_ENGINE:
        assert request_of_64 < 2 * request


def test_replicas_cost_no_more_together_than_one_by_one(make_pool, capsys):
    """The same streams of requests to one engine after the other, and to as many replicas at once: equal work."""
    streams = [chat(EACH, seed) for seed in range(64)]
    traffic, owners = merged(streams)
    one = make_pool()
    one = replace(one, perf=Kept(one.perf.of(one.replica)), power=Kept(one.power.of(one.replica)))
    together = replace(one, replicas=64, router=Assigned(owners))
    alone, whole = [], []
    for _ in range(BEST_OF):
        alone.append(sum(timed(one, stream, 8.0)["s"] for stream in streams))
        whole.append(timed(together, traffic, 8.0)["s"])
    first, last = (min(times) / len(traffic) * 1e6 for times in (alone, whole))
    with capsys.disabled():
        print(f"\nequal work: {first:.1f} us a request on 64 replicas one by one, {last:.1f} us together, ", end="")
        print(f"ratio {last / first:.2f}", end="")
    assert last < 1.5 * first


def test_designs(make_scenario, make_pool, drawn, capsys):
    """Capacity judgements of a small design: a few simulations of some hundred requests each."""
    workload = drawn(n=DESIGN)
    spent, probes = [], 0
    for budget in (512, 1024, 2048, 4096):
        scenario = make_scenario(make_pool(limits={"token_budget": budget}), workload)
        traffic = {0: workload.traffic(0)}
        began = process_time()
        probes += search(scenario, traffic, inf).probes
        spent.append(process_time() - began)
    with capsys.disabled():
        print(
            f"\n{len(spent) / sum(spent):.1f} designs/s: the capacity of one replica to 2 % on {DESIGN} requests, ",
            end="",
        )
        print(f"{probes / len(spent):.1f} simulations each", end="")
