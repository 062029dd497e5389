"""Pools with tiers, and traffic that comes again."""

from dataclasses import dataclass
from functools import partial

import pytest

from mist.fetching.always import Always
from mist.request import Stage
from mist.tiers.spec import DrawnTier, DrawnTiers, StoredTier, StoredTiers
from mist.workload.lengths import Fixed, Uniform
from mist.workload.sessions import ChatSessions

BLOCK = 4  # tokens


@dataclass(frozen=True)
class Same:
    """Prompts of one group begin with the same ``shared`` tokens."""

    group: int
    request: int
    shared: int

    def key(self, block, block_tokens):
        whole = (block + 1) * block_tokens <= self.shared
        return ("group", self.group, block) if whole else ("request", self.request, block)


@pytest.fixture(scope="session")
def chat():
    def make(**changes):
        fields = {"turns": Uniform(1, 6), "messages": Uniform(1, 30), "answers": Uniform(1, 40), "system": 50}
        return ChatSessions(**{"requests": 80, "groups": 3, "apart": 10.0, **fields, **changes})

    return make


@pytest.fixture(scope="session")
def stored():
    """One endless tier, written through, always fetched from."""

    def make(*, fetch=None, layerwise=False, decoded=False, **fields):
        fields = {"read_bandwidth": 1e12, "write_bandwidth": 1e12, "latency": 0.0, "write": "through", **fields}
        tier = StoredTier(**{"capacity": None, **fields})
        return StoredTiers({"store": tier}, fetch or Always(), layerwise, decoded)

    return make


@pytest.fixture(scope="session")
def drawn_hits():
    """One tier in which every prompt begins with ``reusable`` tokens."""

    def make(reusable=80, layerwise=False, **fields):
        tier = DrawnTier(**{"hit": 1.0, "read_bandwidth": 1e12, "latency": 0.0, **fields})
        return DrawnTiers({"store": tier}, Fixed(reusable), Always(), layerwise)

    return make


@pytest.fixture(scope="session")
def tiered(make_pool, tiny, linear):
    """A pool with these tiers, of as few KV blocks as its longest request needs."""

    def make(tiers=None, **fields):
        fields = {"perf": linear(1e-6), "kv_blocks": 200, **fields}
        if tiers is not None:
            fields |= {"tiers": tiers, "prefix_caching": not isinstance(tiers, DrawnTiers)}
        engine = {"block_tokens": BLOCK, **fields.pop("engine", {})}
        return make_pool(model=tiny, engine=engine, **fields)

    return make


@pytest.fixture(scope="session")
def replay(drive):
    """Serve one cycle of some traffic, ``gap`` seconds a request."""

    def run(pools, traffic, gap, link=None, **options):
        columns = (traffic.times * gap, traffic.inputs.tolist(), traffic.outputs.tolist())
        return drive(
            pools, zip(*columns, strict=True), link, contents=partial(traffic.contents.of, 0), **options
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def same():
    """Contents of requests that all begin alike."""
    return lambda shared: lambda number: Same(0, number, shared)


@pytest.fixture(scope="session")
def visit():
    """The first visit of a stage; None if there is none."""
    return lambda request, stage: next((v for v in request.visits if v.stage is Stage(stage)), None)


@pytest.fixture(scope="session")
def fetches():
    """The Fetches of a run's only pool that has some."""
    return lambda run: next(pool.fetches for pool in run.cluster.pools.values() if pool.fetches is not None)
