"""Random mixes of everything a cluster can be: leaping equals stepping, and nothing is lost or made up.

``make fuzz`` runs many more cases, from a new seed every time. A mix that the checks of a Scenario refuse must be
refused by an InputError; it is not served.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.autoscalers.queue_length import QueueLength
from mist.autoscalers.slo_attainment import SloAttainment
from mist.autoscalers.target_utilization import TargetUtilization
from mist.build import build
from mist.clients import llm
from mist.clients.llm import LLMClient
from mist.clients.pipeline import PipelineClient
from mist.cluster import Cluster
from mist.errors import InputError
from mist.faults import NO_FAULTS, DrawnFaults, Faults, GivenFaults, Outage
from mist.fleet import Autoscale, seconds
from mist.handover import GLOBAL, HandoverSpec
from mist.kernel import Kernel
from mist.memory import choice
from mist.memory.prefix import PrefixPool
from mist.memory.swap import SwapPool
from mist.metrics import within
from mist.network import LinkSpec
from mist.policy import Router, Scheduler
from mist.pool import PoolSpec
from mist.request import Request, RequestClass
from mist.roles import FIXED_ROLES, QueueRatio, Roles, SwitchRoles
from mist.slo import SLO
from mist.speculation import DraftModel, Head, NGram

CONF = Path(__file__).parents[2] / "conf"
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
BLOCK_TOKENS = 4
BLOCK_BYTES = BLOCK_TOKENS * 2 * 2 * 2 * 16 * 2.0  # of the tiny model: layers, keys and values, heads of 16, 16 bits
# Seconds with no common measure: where two clients' steps end at one instant but for rounding, either may come first.
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
END = 120.0  # s, long after the last request of every mix
CALLS = 300_000  # more than any mix makes; one that makes them stands still at one instant
CASES = max(2000, settings().max_examples)
LIMITS = SLO(ttft_p99=0.02, tpot_p99=0.003)
KINDS = (RequestClass("urgent", 0, 0.02, 0.003), RequestClass("plain", 1), RequestClass("batch", 2, 1.0, 0.1))
# What a scheduler has beside its limits, as sampled where it has it.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "policy": ("fcfs", "priority"),
    "chunked": (True, False),
    "reserve_full": (True, False),
    "watermark": (0.0, 0.0, 0.1, 0.5),
    "long_prefill_threshold": (0, 0, 3, 9),
    "aging": (0.0, 50.0, 1000.0),
    "least_chunk": (1, 4, 256),
    "patience": (0.0, 1e-3),
}
SCALING_POLICIES = (
    QueueLength(2.0, 4.0),
    TargetUtilization("memory", 0.4, 0.1),
    TargetUtilization("busy", 0.5, 0.1),
    SloAttainment(0.9, 0.7),
)


@dataclass(frozen=True)
class Conversation:
    """Tokens below ``shared`` are the same for all requests of a group."""

    group: int
    request: int
    shared: int

    def key(self, block: int, block_tokens: int) -> tuple[Any, ...]:
        whole = (block + 1) * block_tokens <= self.shared
        return ("group", self.group, block) if whole else ("request", self.request, block)


@dataclass(frozen=True)
class Mix:
    """What is served by what."""

    load: list[tuple[float, int, int, RequestClass, Conversation]]  # arrival, input, output, class, content
    pools: dict[str, dict[str, Any]]
    link: LinkSpec | None = None
    handover: HandoverSpec = GLOBAL
    faults: Faults = NO_FAULTS
    roles: Roles = FIXED_ROLES
    seed: int = 0
    model: str = "tiny"
    roofline: bool = False  # else steps take a time linear in their tokens


@dataclass(frozen=True)
class Served:
    """A mix when nothing is left to do."""

    cluster: Cluster
    requests: list[Request] = field(default_factory=list)


class Bounded(Kernel):
    """A kernel that gives up where time does not go by."""

    def decide(self, call: Callable[..., None], *args: Any) -> None:
        assert self.events < CALLS, f"still busy at {self.now} s"
        super().decide(call, *args)


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    disaggregated, scaled = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    blocks = draw(st.sampled_from([8, 12, 20, 20, 30, 10_000]))
    load = draw(loads())
    groups = draw(st.sampled_from([1, 1, 2, 3, 4])) if disaggregated and not scaled else 1
    roles = ("prefill", "decode") if disaggregated else ("both",)
    pools = {"llm" if role == "both" else role: draw(pool_fields(role, blocks, scaled, groups)) for role in roles}
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    faults = draw(st.sampled_from([None, None, drawn_faults, given_faults]))
    rest: dict[str, Any] = {
        "faults": faults(random, pools) if faults else NO_FAULTS,
        "seed": int(random.integers(1000)),
        "model": draw(st.sampled_from(["tiny", "tiny", "windowed"])),
        "roofline": draw(st.sampled_from([False, False, True])),
    }
    if not disaggregated:
        return Mix(load, pools, **rest)
    layerwise = draw(st.booleans())
    handover = HandoverSpec("local", groups, layerwise) if groups > 1 else HandoverSpec(layerwise=layerwise)
    switching = SwitchRoles(QueueRatio(2.0, 1.0), 0.05, 0.01)
    trading = groups == 1 and not scaled and draw(st.sampled_from([False, False, True]))
    link = LinkSpec("wire", draw(st.sampled_from([1e6, 1e8])), draw(st.sampled_from([0.0, 1e-4])))
    return Mix(load, pools, link, handover, roles=switching if trading else FIXED_ROLES, **rest)


@st.composite
def loads(draw: st.DrawFn) -> list[Any]:
    longest = draw(st.sampled_from([4, 15, 30]))
    shared, groups = draw(st.sampled_from([0, 6, 12, 24, 48])), draw(st.sampled_from([1, 3]))
    rate = draw(st.sampled_from([2.0, 50.0, 500.0, 2000.0, 1e5]))
    n, seed = draw(st.sampled_from([1, 5, 16, 16])), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)  # not drawn one by one: a case would take ten times as long
    load = []
    for id_, time in enumerate(np.cumsum(random.exponential(1 / rate, n)).tolist()):
        input_, output, kind, group = (
            int(random.integers(low, high)) for low, high in ((1, longest + 1), (1, 31), (0, 3), (0, groups))
        )
        load.append((time, input_, output, KINDS[kind], Conversation(group, id_, shared)))
    return load


def drawn_faults(random: np.random.Generator, _pools: Any) -> DrawnFaults:
    return DrawnFaults(float(random.choice([0.02, 0.1, 1.0])), float(random.choice([0.005, 0.05])), *fate(random))


def given_faults(random: np.random.Generator, pools: dict[str, dict[str, Any]]) -> GivenFaults:
    """Up to three outages of every replica, mostly while there is something to do."""
    outages = {}
    for name, fields in pools.items():
        for replica in range(fields["replicas"]):
            ends = np.cumsum(random.exponential(random.choice([0.003, 0.02, 0.1]), 2 * int(random.integers(0, 4))))
            for number, (down, up) in enumerate(ends.reshape(-1, 2).tolist()):
                outages[f"{name}{replica}.{number}"] = Outage(down, up - down, replica, name)
    return GivenFaults(outages, *fate(random))


def fate(random: np.random.Generator) -> tuple[Any, int]:
    requests = ("migrate", "restart", "lose")[random.integers(3)]
    return requests, 0 if requests == "lose" else int(random.integers(1, 4))


@st.composite
def pool_fields(draw: st.DrawFn, role: str, blocks: int, scaled: bool, replicas: int) -> dict[str, Any]:
    batch, extra = draw(st.sampled_from([1, 3, 15])), draw(st.integers(1, 64))
    kind = draw(
        st.sampled_from(
            ["plain", "plain", "prefixes", "swap", "drafts", "drafts and prefixes", "parallel", "parallel prefixes"]
        )
    )
    fields: dict[str, Any] = {
        "role": role,
        "scheduler": draw(st.sampled_from(SCHEDULERS)),
        "options": draw(st.integers(0, 1000)),
        "router": draw(st.sampled_from(ROUTERS)),
        "replicas": max(draw(st.sampled_from([1, 1, 2, 3])), replicas),
        "kv_blocks": blocks,
    }
    if "prefixes" in kind and role != "decode":
        fields["prefix_caching"] = True
    if kind == "swap":
        fields |= {"preemption": "swap", "swap_space": draw(st.sampled_from([3, 8, 10_000])) * BLOCK_BYTES}
    drafts = draw(st.sampled_from([1, 4])) if "drafts" in kind and role != "prefill" else 0
    if drafts:
        fields["speculation"] = draw(speculations(drafts))
    if "parallel" in kind:
        fields |= draw(st.sampled_from([{"tp": 2}, {"pp": 2}, {"dp": 2}, {"dp": 2, "ep": 2}, {"dp": 2, "pp": 2}]))
    if scaled:
        policy = draw(st.sampled_from(SCALING_POLICIES))
        fewest = draw(st.sampled_from([0, 1])) if isinstance(policy, TargetUtilization | QueueLength) else 1
        fields["autoscaler"] = Autoscale(policy, 0.02, 0.05, draw(st.sampled_from([0.0, 0.2])), fewest, 3)
    fields["limits"] = {"max_running": batch, "token_budget": batch * (drafts + 1) + extra}
    return fields


@st.composite
def speculations(draw: st.DrawFn, tokens: int) -> dict[str, Any]:
    """Fields of a Speculation, and which; the drafter is made beside the model it drafts for."""
    kind = draw(st.sampled_from([NGram, NGram, Head, DraftModel]))
    fields: dict[str, Any] = {"kind": kind, "tokens": tokens}
    if kind is not NGram:
        fields["pass_overhead"] = draw(st.sampled_from([0.0, 1e-4 * 7**0.5]))
    if kind is Head:
        fields["layers"] = draw(st.sampled_from([1, 2]))
    if draw(st.booleans()):
        return fields | {"acceptance": draw(st.sampled_from([0.0, 0.6, 1.0]))}
    return fields | {"accepted": {"0": 0.25, str(tokens): 0.75}}


@pytest.fixture(scope="session")
def specs(make_pool, make_scenario, tiny, linear, sheet):
    """The pools of a mix, checked together; InputError where they are refused."""

    engine = {"block_tokens": BLOCK_TOKENS, "step_overhead": STEP, "request_overhead": TOKEN, "mixed_overhead": TOKEN}
    base = make_pool(model=tiny, engine=engine)
    # slow enough for a tiny model to be bound by arithmetic here and by memory there
    slow = replace(
        base.hardware, host_bandwidth=1e6, memory_bandwidth=3e8, peaks=dict.fromkeys(base.hardware.peaks, 3e9)
    )
    base = replace(base, hardware=slow)
    models = {"tiny": tiny, "windowed": replace(tiny, name="windowed", window_layers=1, window=7)}
    experts = {"experts": 4, "experts_per_token": 2, "expert_intermediate": 64}
    schedulers = {name: build(Scheduler, sheet("scheduler", name)) for name in SCHEDULERS}
    routers = {name: build(Router, sheet("router", name)) for name in ROUTERS}

    def scheduler(name: str, number: int, limits: dict[str, Any]) -> Scheduler:
        random = np.random.default_rng(number)
        sampled = {name: values[random.integers(len(values))] for name, values in OPTIONS.items()}
        own = {field.name for field in fields_of(schedulers[name])}
        options = {name: value for name, value in sampled.items() if name in own}
        return replace(schedulers[name], **limits, **options)

    def spec(fields: dict[str, Any], mix: Mix, mixture: bool) -> PoolSpec:
        fields = dict(fields)
        model = models[mix.model]
        if mixture:
            model = replace(model, name=f"{model.name}-moe", **experts)
        fields["scheduler"] = scheduler(*(fields.pop(name) for name in ("scheduler", "options", "limits")))
        fields["router"] = routers[fields.pop("router")]
        if not mix.roofline:
            fields["perf"] = linear(STEP, TOKEN, CACHED)
        if "speculation" in fields:
            drafts = dict(fields["speculation"])
            kind = drafts.pop("kind")
            drafter = {"model": replace(tiny, name="drafter", layers=1)} if kind is DraftModel else {}
            fields["speculation"] = kind(**drafts, **drafter)
        return replace(base, model=model, **fields)

    def build_all(mix: Mix) -> dict[str, PoolSpec]:
        mixture = any("dp" in fields for fields in mix.pools.values())
        pools = {name: spec(fields, mix, mixture) for name, fields in mix.pools.items()}
        classless = {
            name: replace(pool, scheduler=replace(pool.scheduler, policy="fcfs"))
            if getattr(pool.scheduler, "policy", "") == "priority"
            else pool  # the scenario's workload has no classes, the mix has
            for name, pool in pools.items()
        }
        make_scenario(classless, link=mix.link, handover=mix.handover, faults=mix.faults, roles=mix.roles)
        return pools

    return build_all


@pytest.fixture(scope="session")
def play(one_by_one, plain_prefix_pool):
    """Serve a mix on its pools until nothing is left to do; ``each`` looks at every instant."""

    def run(mix: Mix, pools: dict[str, PoolSpec], *, slow: bool = False, each: Any = None) -> Served:
        kernel = Bounded()
        with pytest.MonkeyPatch.context() as patch:
            if slow:
                patch.setattr(llm, "Decoding", one_by_one)
                patch.setattr(choice, "PrefixPool", plain_prefix_pool)
                pools = {name: replace(pool, perf=Single(pool.perf)) for name, pool in pools.items()}
            options = {"handover": mix.handover, "faults": mix.faults, "roles": mix.roles, "seed": mix.seed}
            served = Served(Cluster(kernel, pools, mix.link, good=within(LIMITS), **options))
            for id_, (time, input_, output, kind, content) in enumerate(mix.load):
                served.requests.append(Request(id_, time, input_, output, kind.priority, content, kind))
                kernel.at(time, served.cluster.arrive, served.requests[-1])
            cluster = served.cluster
            while kernel._facts and (cluster.arrived < len(mix.load) or cluster.in_flight):
                assert kernel.now < END
                kernel.run(until=kernel._facts[0][0])
                if each is not None:
                    each(served)
        return served

    return run


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

    def decode_stretch(self, decodes: int, context: int) -> Any:
        return self.inner.decode_stretch(decodes, context)._replace(steps=1, slope=0.0)


def lanes(client: Any) -> list[LLMClient]:
    return client.lanes if isinstance(client, PipelineClient) else [client]


def conserved(served: Served) -> None:
    cluster, now = served.cluster, served.cluster.kernel.now
    here = [r for r in served.requests if r.arrived <= now]
    states = Counter(
        "refused" if r.refused else "lost" if r.lost else "completed" if r.finished >= 0 else "in_flight" for r in here
    )
    counted = {name: getattr(cluster, name) for name in ("completed", "in_flight", "refused", "lost")}
    assert Counter(counted) == states
    assert cluster.arrived == len(here)
    for pool in cluster.pools.values():
        assert all(count >= 0 for count in pool.outstanding)
        for client in pool.clients:
            assert 0 <= client.kv.used <= client.kv.peak <= client.kv.total
            assert 0 <= client.busy <= now * (1 + 1e-9)
            for lane in lanes(client):
                assert len(lane.running) <= lane.scheduler.max_running
                assert lane.decodes.count <= len(lane.running)
            if isinstance(client.kv, SwapPool):
                assert 0 <= client.kv.host_used <= client.kv.host.blocks
                assert client.kv.blocks_out - client.kv.blocks_in == client.kv.host_used or pool.fleet is not None


def settled(served: Served, mix: Mix) -> None:
    cluster = served.cluster
    assert (cluster.arrived, cluster.in_flight) == (len(mix.load), 0)
    for request in served.requests:
        assert request.retries <= mix.faults.retries
        if request.refused:
            assert request.visits == []
            continue
        assert_in_order(request)
        if request.lost:
            assert request.finished < 0
            continue
        assert (request.left, request.known) == (0, request.input + request.output)
        assert (request.computed, request.blocks, request.table) == (request.known - 1, 0, [])
        assert request.arrived < request.first_token <= request.finished
        if mix.faults is NO_FAULTS:
            plan = ["prefill", *(["handover"] if mix.link else []), "decode"]
            assert [visit.stage for visit in request.visits] == (plan if request.output > 1 else plan[:1])
    for pool in cluster.pools.values():
        assert not any(pool.outstanding)
        for client in pool.clients:
            assert client.kv.used == client.waiting == 0
            assert not client.running
            assert all(lane.decodes.count == lane.decodes.cached == lane.promised == 0 for lane in lanes(client))
            if isinstance(client.kv, SwapPool):
                assert client.kv.host_used == 0
    assert_energy(cluster)


def assert_in_order(request: Request) -> None:
    """One visit after the other, without a gap but for the wait for a replica that is up."""
    assert request.visits[0].queued >= request.arrived
    for visit in request.visits:
        assert visit.queued <= visit.started <= visit.finished
    for before, after in pairwise(request.visits):
        assert before.finished <= after.queued


def assert_energy(cluster: Cluster) -> None:
    """Nobody steps who is not paid for, and a device draws between idle and full power."""
    now = cluster.kernel.now
    for pool in cluster.pools.values():
        rented = now * len(pool.clients) if pool.fleet is None else seconds(pool.fleet.history(now))
        assert sum(client.busy for client in pool.everybody) <= rented * (1 + 1e-9)
        devices, hardware = pool.spec.replica.devices, pool.spec.hardware
        idle, full = (watts * devices * rented for watts in (hardware.idle_power, hardware.power))
        assert idle * (1 - 1e-9) <= pool.joules(now) <= full * (1 + 1e-9)


def equal(fast: Served, slow: Served) -> None:
    """Same decisions, and the same times but for rounding."""
    for mine, theirs in zip(fast.requests, slow.requests, strict=True):
        times = [(r.first_token, r.finished, *(t for v in r.visits for t in v[2:])) for r in (mine, theirs)]
        assert times[0] == pytest.approx(times[1], rel=1e-9, abs=0)
        assert [v[:2] for v in mine.visits] == [v[:2] for v in theirs.visits]
        for name in ("preemptions", "replica", "refused", "lost", "retries"):
            assert getattr(mine, name) == getattr(theirs, name)
    for name, pool in fast.cluster.pools.items():
        twins = slow.cluster.pools[name]
        for client, twin in zip(pool.everybody, twins.everybody, strict=True):
            assert (client.steps, client.preemptions) == (twin.steps, twin.preemptions)
            assert client.busy == pytest.approx(twin.busy, rel=1e-9)
            if isinstance(client.kv, PrefixPool):
                assert client.kv.use() == twin.kv.use()
        now = fast.cluster.kernel.now
        assert pool.joules(now) == pytest.approx(twins.joules(now), rel=1e-9)


@settings(max_examples=CASES)
@given(mix=mixes())
def test_leaping_equals_stepping_and_nothing_is_lost(mix: Mix, specs: Any, play: Any) -> None:
    try:
        pools = specs(mix)
    except InputError:
        return
    fast = play(mix, pools, each=conserved)
    settled(fast, mix)
    slow = play(mix, pools, slow=True)
    settled(slow, mix)
    equal(fast, slow)


def test_the_mixes_are_of_every_scheduler(sheet: Any) -> None:
    for name in SCHEDULERS:
        scheduler = build(Scheduler, sheet("scheduler", name) | {"max_running": 3, "token_budget": 40})
        assert (scheduler.max_running, scheduler.token_budget) == (3, 40)
