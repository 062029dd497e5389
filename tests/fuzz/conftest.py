"""Clusters made of random mixes, and served, leaping or one step at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mist import routing
from mist.build import build
from mist.clients import cascading, seats
from mist.cluster import Cluster
from mist.kernel import Kernel
from mist.memory import choice
from mist.metrics import within
from mist.perf import cascade
from mist.perf.base import StepShape, Stretch
from mist.policy import Router, Scheduler
from mist.pool import PoolSpec
from mist.request import Request
from mist.slo import SLO
from mist.speculation import DraftModel

CONF = Path(__file__).parents[2] / "conf"
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
BLOCK_TOKENS = 4
# Seconds with no common measure: where two clients' steps end at one instant but for rounding, either may come first.
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
END = 120.0  # s, long after the last request of every mix
CALLS = 300_000  # more than any mix makes; one that makes them stands still at one instant
LIMITS = SLO(ttft_p99=0.02, tpot_p99=0.003)
MARKS = (0.0137, 0.0711, 0.313)  # s, instants between events at which energy is looked at
# What a scheduler has beside its limits, or a router, as sampled where it has it.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "policy": ("fcfs", "priority"),
    "chunked": (True, False),
    "reserve_full": (True, False),
    "watermark": (0.0, 0.0, 0.1, 0.5),
    "long_prefill_threshold": (0, 0, 3, 9),
    "aging": (0.0, 50.0, 1000.0),
    "least_chunk": (1, 4, 256),
    "patience": (0.0, 1e-3),
    "threshold": (3, 9),
    "share": (0.3, 0.5),
    "cache_threshold": (0.0, 0.3, 0.9),
    "balance_absolute": (0, 2, 64),
    "balance_relative": (1.0, 1.5),
}


@dataclass(frozen=True)
class Served:
    """A mix when nothing is left to do."""

    cluster: Cluster
    requests: list[Request] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)  # J, at the marks


class Bounded(Kernel):
    """A kernel that gives up where time does not go by."""

    def decide(self, call: Callable[..., None], *args: Any) -> None:
        assert self.events < CALLS, f"still busy at {self.now} s"
        super().decide(call, *args)


def sampled(policy: Any, random: np.random.Generator) -> Any:
    """The policy with options of its own."""
    values = {name: choices[random.integers(len(choices))] for name, choices in OPTIONS.items()}
    own = {field.name for field in fields_of(policy)}
    return replace(policy, **{name: value for name, value in values.items() if name in own})


@pytest.fixture(scope="session")
def specs(make_pool, make_scenario, tiny, linear, sheet):
    """The pools of a mix, checked together; InputError where they are refused."""

    engine = {"block_tokens": BLOCK_TOKENS, "step_overhead": STEP, "request_overhead": TOKEN, "mixed_overhead": TOKEN}
    engine["cascade_overhead"] = TOKEN
    base = make_pool(model=tiny, engine=engine)
    # slow enough for a tiny model to be bound by arithmetic here and by memory there
    slow = replace(
        base.hardware,
        host_bandwidth=1e6,
        memory_bandwidth=3e8,
        peaks=dict.fromkeys(base.hardware.peaks, 3e9),
        multiprocessors=1,
    )
    base = replace(base, hardware=slow)
    models = {"tiny": tiny, "windowed": replace(tiny, name="windowed", window_layers=1, window=7)}
    experts = {"experts": 4, "experts_per_token": 2, "expert_intermediate": 64}
    schedulers = {name: build(Scheduler, sheet("scheduler", name)) for name in SCHEDULERS}
    routers = {name: build(Router, sheet("router", name)) for name in ROUTERS}

    def spec(fields: dict[str, Any], mix: Any, mixture: bool) -> PoolSpec:
        fields = dict(fields)
        model = models[mix.model]
        if mixture:
            model = replace(model, name=f"{model.name}-moe", **experts)
        options = np.random.default_rng(fields.pop("options"))
        fields["scheduler"] = sampled(replace(schedulers[fields["scheduler"]], **fields.pop("limits")), options)
        fields["router"] = sampled(routers[fields["router"]], options)
        if not mix.roofline:
            fields["perf"] = Uneven(STEP, TOKEN, CACHED) if mix.uneven else linear(STEP, TOKEN, CACHED)
        if "speculation" in fields:
            drafts = dict(fields["speculation"])
            kind = drafts.pop("kind")
            drafter = {"model": replace(tiny, name="drafter", layers=1)} if kind is DraftModel else {}
            fields["speculation"] = kind(**drafts, **drafter)
        engine = replace(base.engine, front_end=mix.front_end, cascade_attention=mix.cascade, launch_time=mix.launch)
        return replace(base, model=model, engine=engine, node=mix.node, **fields)

    def build_all(mix: Any) -> dict[str, PoolSpec]:
        mixture = any("dp" in fields for fields in mix.pools.values())
        pools = {name: spec(fields, mix, mixture) for name, fields in mix.pools.items()}
        classless = {
            name: replace(pool, scheduler=replace(pool.scheduler, policy="fcfs"))
            if getattr(pool.scheduler, "policy", "") == "priority"
            else pool  # the scenario's workload has no classes, the mix has
            for name, pool in pools.items()
        }
        parts = {name: getattr(mix, name) for name in ("link", "handover", "faults", "roles", "network")}
        make_scenario(classless, **parts)
        return pools

    return build_all


@pytest.fixture(scope="session")
def play(one_by_one, plain_prefix_pool):
    """Serve a mix on its pools until nothing is left to do; ``each`` looks at every instant."""

    def run(mix: Any, pools: dict[str, PoolSpec], *, slow: bool = False, each: Any = None) -> Served:
        kernel = Bounded()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cascade, "SHORTEST", BLOCK_TOKENS)  # or no mix is large enough for cascade attention
            for module in (cascade, cascading):
                patch.setattr(module, "FEWEST", 2)
            if slow:
                patch.setattr(seats, "Decoding", one_by_one)
                patch.setattr(choice, "PrefixPool", plain_prefix_pool)
                patch.setattr(routing, "cached_prefixes", lambda pools, request: [pool.hit(request) for pool in pools])
                pools = {name: replace(pool, perf=Single(pool.perf)) for name, pool in pools.items()}
            options = {name: getattr(mix, name) for name in ("handover", "faults", "roles", "network", "seed")}
            served = Served(Cluster(kernel, pools, mix.link, good=within(LIMITS), **options))
            send(mix, served)
            cluster, marks = served.cluster, [*MARKS, inf]
            while kernel._facts and (cluster.arrived < len(mix.load) or cluster.in_flight):
                assert kernel.now < END
                while marks[0] < kernel._facts[0][0]:
                    kernel.now = marks.pop(0)
                    served.drawn.append(cluster.joules)
                kernel.run(until=kernel._facts[0][0])
                if each is not None:
                    each(served)
        return served

    return run


def send(mix: Any, served: Served) -> None:
    """Plan the arrivals: all of them, or in a closed loop those of its clients."""
    cluster, kernel = served.cluster, served.cluster.kernel
    for id_, (time, input_, output, kind, content) in enumerate(mix.load):
        served.requests.append(Request(id_, time, input_, output, kind.priority, content, kind))
    if mix.loop is None:
        for request in served.requests:
            kernel.at(request.arrived, cluster.arrive, request)
        return
    unsent = iter(served.requests)

    def begin() -> None:
        request = next(unsent, None)
        if request is not None:
            request.arrived = request.queued = kernel.now
            cluster.arrive(request)

    # each thinks a little differently, or those that do alike one after the other end at one instant but for rounding
    cluster.ended = lambda request: kernel.after(mix.loop.think + 1e-6 * (request.id + 2) ** 0.5, begin)
    for request in served.requests[: mix.loop.clients]:
        kernel.at(request.arrived, begin)
    for request in served.requests:
        request.arrived = inf  # until it is sent


@dataclass(frozen=True)
class Uneven:
    """A perf model whose decodes take what as many as long as the longest of them would."""

    step: float
    token: float
    cached: float
    uneven: bool = True

    def of(self, replica: Any) -> "Uneven":
        return self

    def step_time(self, shape: StepShape) -> float:
        read = shape.decodes * shape.longest if shape.longest else shape.context
        return self.step + self.token * shape.tokens + self.cached * (read - max(shape.decodes - 1, 0) * shape.shared)

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        first = self.step_time(StepShape(decodes, context, longest=longest, shared=shared))
        return Stretch(inf, first, self.cached * decodes)


@dataclass(frozen=True)
class Single:
    """A perf model's own step times, one step at a time."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # its efficiencies say what power is drawn

    def of(self, replica: Any) -> "Single":
        return Single(self.inner.of(replica))

    def step_time(self, shape: Any) -> float:
        time: float = self.inner.step_time(shape)
        return time

    def decode_stretch(self, decodes: int, context: int, *rest: int) -> Any:
        return self.inner.decode_stretch(decodes, context, *rest)._replace(steps=1, slope=0.0)
