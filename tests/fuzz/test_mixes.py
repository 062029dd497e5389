"""Random mixes of everything a cluster can be: leaping equals stepping, and nothing is lost or made up.

``make fuzz`` runs many more cases, from a new seed every time.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist import cluster as clusters
from mist.build import build
from mist.clients import llm
from mist.cluster import Cluster
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.network import LinkSpec
from mist.policy import Scheduler
from mist.request import Request

CONF = Path(__file__).parents[2] / "conf"
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
BLOCK_TOKENS = 4
# Seconds with no common measure: where two clients' steps end at one instant but for rounding, either may come first.
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5
CASES = max(2000, settings().max_examples)


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

    load: list[tuple[float, int, int, int, Conversation | None]]  # arrival, input, output, priority, content
    pools: dict[str, dict[str, Any]]
    link: LinkSpec | None
    prefix_caching: bool


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    disaggregated = draw(st.booleans())
    roles = ("prefill", "decode") if disaggregated else ("both",)
    prefix_caching = not disaggregated and draw(st.booleans())
    blocks = draw(st.sampled_from([8, 12, 20, 40, 10_000]))
    longest = draw(st.sampled_from([4, 15, 30]))
    shared = draw(st.sampled_from([0, 6, 12, 24]))
    rate = draw(st.sampled_from([1.0, 50.0, 500.0, 1e5]))
    n, seed = draw(st.sampled_from([1, 5, 16, 16])), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)  # not drawn one by one: a case would take ten times as long
    load = []
    for id_, time in enumerate(np.cumsum(random.exponential(1 / rate, n)).tolist()):
        input_, output, priority, group = (
            int(random.integers(low, high)) for low, high in ((1, longest + 1), (1, 31), (0, 3), (0, 3))
        )
        content = Conversation(group, id_, shared) if prefix_caching else None
        load.append((time, input_, output, priority, content))
    pools = {role: draw(pool_fields(role, blocks)) for role in roles}
    link = LinkSpec("wire", draw(st.sampled_from([1e6, 1e8])), draw(st.sampled_from([0.0, 1e-4])))
    return Mix(load, pools, link if disaggregated else None, prefix_caching)


@st.composite
def pool_fields(draw: st.DrawFn, role: str, blocks: int) -> dict[str, Any]:
    drafts = draw(st.sampled_from([0, 0, 1, 4])) if role != "prefill" else 0
    batch = draw(st.sampled_from([1, 3, 15]))
    fields: dict[str, Any] = {
        "role": role,
        "scheduler": draw(st.sampled_from(SCHEDULERS)),
        "limits": {"max_running": batch, "token_budget": batch * (drafts + 1) + draw(st.integers(1, 64))},
        "router": draw(st.sampled_from(ROUTERS)),
        "replicas": draw(st.sampled_from([1, 1, 2, 3])),
        "kv_blocks": blocks,
    }
    if drafts:
        acceptance = draw(st.sampled_from([0.0, 0.6, 1.0]))
        fields["speculation"] = {"_target_": "mist.speculation.NGram", "tokens": drafts, "acceptance": acceptance}
    return fields


@pytest.fixture(scope="session")
def play(make_pool, tiny, linear, one_by_one):
    """Serve a mix until nothing is left to do; the kernel, the cluster and the requests."""

    built: dict[str, Any] = {}  # pools are values: equal fields, equal pool

    def spec(fields: dict[str, Any]) -> Any:
        key = repr(sorted(fields.items()))
        if key not in built:
            perf = linear(STEP, TOKEN, CACHED)
            built[key] = make_pool(model=tiny, engine={"block_tokens": BLOCK_TOKENS}, perf=perf, **fields)
        return built[key]

    def run(mix: Mix, *, slow: bool, each: Any = None) -> tuple[Kernel, Cluster, list[Request]]:
        specs = {name: spec(fields) for name, fields in mix.pools.items()}
        kernel = Kernel()
        with pytest.MonkeyPatch.context() as patch:
            if mix.prefix_caching:
                patch.setattr(clusters, "make_pool", lambda total, block_tokens, *_: PrefixPool(total, block_tokens))
            if slow:
                patch.setattr(llm, "Decoding", one_by_one)
                specs = {name: replace(pool, perf=Single(pool.perf)) for name, pool in specs.items()}
            cluster, requests = Cluster(kernel, specs, mix.link, seed=1), []
            for id_, (time, *request) in enumerate(mix.load):
                requests.append(Request(id_, time, *request))
                kernel.at(time, cluster.arrive, requests[-1])
            while kernel._facts:
                kernel.run(until=kernel._facts[0][0])
                if each is not None:
                    each(cluster, requests)
        return kernel, cluster, requests

    return run


@dataclass(frozen=True)
class Single:
    """A perf model's own step times, one step at a time."""

    inner: Any

    def of(self, replica: Any) -> "Single":
        return Single(self.inner.of(replica))

    def step_time(self, shape: Any) -> float:
        time: float = self.inner.step_time(shape)
        return time

    def decode_stretch(self, decodes: int, context: int) -> Any:
        return self.inner.decode_stretch(decodes, context)._replace(steps=1, slope=0.0)


def conserved(cluster: Cluster, requests: list[Request]) -> None:
    now = cluster.kernel.now
    here = [r for r in requests if r.arrived <= now]
    states = Counter("refused" if r.refused else "completed" if r.finished >= 0 else "in flight" for r in here)
    counted = {"completed": cluster.completed, "in flight": cluster.in_flight, "refused": cluster.refused}
    assert Counter(counted) == states
    for pool in cluster.pools.values():
        for client in pool.clients:
            assert 0 <= client.kv.used <= client.kv.peak <= client.kv.total
            assert len(client.running) <= pool.spec.scheduler.max_running
            assert client.decodes.count <= len(client.running)
            assert_blocks(client)


def assert_blocks(client: llm.LLMClient) -> None:
    """No two requests hold one block unless its tokens are the same, and a free block is nobody's."""
    if type(client.kv) is not BlockPool:
        tables = [block for request in client.running for block in request.table]
        assert client.kv.used == len(set(tables))


def settled(cluster: Cluster, requests: list[Request]) -> None:
    for request in requests:
        if request.refused:
            assert request.visits == []
            continue
        assert (request.left, request.known) == (0, request.input + request.output)
        assert (request.computed, request.blocks, request.table) == (request.known - 1, 0, [])
        assert request.arrived < request.first_token <= request.finished
    for pool in cluster.pools.values():
        assert not any(pool.outstanding)
        for client in pool.clients:
            assert client.kv.used == client.decodes.count == client.decodes.cached == client.waiting == 0
            assert not client.running


@settings(max_examples=CASES)
@given(mix=mixes())
def test_leaping_equals_stepping_and_nothing_is_lost(mix: Mix, play: Any) -> None:
    _, slow_cluster, slow = play(mix, slow=True)
    _, cluster, fast = play(mix, slow=False, each=conserved)
    settled(cluster, fast)
    settled(slow_cluster, slow)
    for mine, theirs in zip(fast, slow, strict=True):
        times = [(r.first_token, r.finished, *(t for v in r.visits for t in v[2:])) for r in (mine, theirs)]
        assert times[0] == pytest.approx(times[1], rel=1e-9, abs=0)
        assert [v[:2] for v in mine.visits] == [v[:2] for v in theirs.visits]
        assert (mine.preemptions, mine.replica, mine.refused) == (theirs.preemptions, theirs.replica, theirs.refused)
    for name, pool in cluster.pools.items():
        for client, twin in zip(pool.clients, slow_cluster.pools[name].clients, strict=True):
            assert (client.steps, client.preemptions) == (twin.steps, twin.preemptions)
            assert client.leaps <= twin.leaps
            assert client.busy == pytest.approx(twin.busy, rel=1e-9)


def test_the_mixes_are_of_every_scheduler(sheet: Any) -> None:
    for name in SCHEDULERS:
        scheduler = build(Scheduler, sheet("scheduler", name) | {"max_running": 3, "token_budget": 40})
        assert (scheduler.max_running, scheduler.token_budget) == (3, 40)
