"""Random mixes of everything a cluster can be, as data: load, pools, what joins them, what breaks."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from mist.autoscalers.queue_length import QueueLength
from mist.autoscalers.slo_attainment import SloAttainment
from mist.autoscalers.target_utilization import TargetUtilization
from mist.faults import NO_FAULTS, DrawnFaults, Faults, GivenFaults, Outage
from mist.fetching.always import Always
from mist.fetching.faster import Faster
from mist.fetching.never import Never
from mist.handover import GLOBAL, HandoverSpec
from mist.network import LinkSpec
from mist.node import ISOLATED, NodeSpec
from mist.request import RequestClass
from mist.roles import FIXED_ROLES, QueueRatio, Roles, SwitchRoles
from mist.scaling import Autoscale
from mist.speculation import DraftModel, Head, NGram
from mist.tiers.spec import DrawnTier, DrawnTiers, StoredTier, StoredTiers
from mist.topology import ONE_LINK, Network, Tier, Topology
from mist.workload.lengths import Uniform
from mist.workload.traffic import Loop

CONF = Path(__file__).parents[3] / "conf"
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
ROUTERS = sorted(path.stem for path in (CONF / "router").glob("*.yaml"))
BLOCK_BYTES = 4 * 2 * 2 * 2 * 16 * 2.0  # of 4 tokens of the tiny model: layers, keys and values, heads of 16, 16 bits
KINDS = (RequestClass("urgent", 0, 0.02, 0.003), RequestClass("plain", 1), RequestClass("batch", 2, 1.0, 0.1))
LAYOUTS: tuple[dict[str, int], ...] = (
    {"tp": 2}, {"pp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}, {"dp": 2}, {"dp": 2, "ep": 2}, {"dp": 2, "pp": 2}
)  # fmt: skip
SCALING_POLICIES = (
    QueueLength(2.0, 4.0),
    TargetUtilization("memory", 0.4, 0.1),
    TargetUtilization("busy", 0.5, 0.1),
    SloAttainment(0.9, 0.7),
)


@dataclass(frozen=True)
class Conversation:
    """Tokens below ``shared`` are the same for all requests of a group."""

    conversation: int
    request: int
    shared: int

    def key(self, block: int, block_tokens: int) -> tuple[Any, ...]:
        whole = (block + 1) * block_tokens <= self.shared
        return ("group", self.conversation, block) if whole else ("request", self.request, block)


@dataclass(frozen=True)
class Mix:
    """What is served by what."""

    load: list[tuple[float, int, int, RequestClass, Conversation]]  # arrival, input, output, class, content
    pools: dict[str, dict[str, Any]]
    link: LinkSpec | None = None
    handover: HandoverSpec = GLOBAL
    faults: Faults = NO_FAULTS
    roles: Roles = FIXED_ROLES
    network: Network = ONE_LINK
    node: NodeSpec = ISOLATED
    loop: Loop | None = None  # its clients begin as the first requests of the load arrive
    seed: int = 0
    model: str = "tiny"
    front_end: float = 0.0
    cascade: bool = False  # the engines have cascade attention
    roofline: bool = False  # else steps take a time linear in their tokens
    uneven: bool = False  # which then is that of a batch in which all are as long as the longest
    launch: float = 0.0  # s, the engines' launch_time beside a roofline


@st.composite
def any_mix(draw: st.DrawFn, tiered: bool = False) -> Mix:
    """Any mix; ``tiered``, of prompts that come again, with stores behind a device that is too small for them."""
    disaggregated, scaled = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    blocks = draw(st.sampled_from([8, 12, 20, 20, 30, 10_000]))
    load = draw(loads(tiered))
    if tiered:
        blocks = draw(st.sampled_from([12, 20, 30]))
    groups = draw(st.sampled_from([1, 1, 2, 3, 4])) if disaggregated and not scaled else 1
    roles = ("prefill", "decode") if disaggregated else ("both",)
    pools = {
        "llm" if role == "both" else role: draw(pool_fields(role, blocks, scaled, groups, tiered)) for role in roles
    }
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    faults = draw(st.sampled_from([None, None, drawn_faults, given_faults]))
    rest: dict[str, Any] = {
        "faults": faults(random, pools) if faults else NO_FAULTS,
        "seed": int(random.integers(1000)),
        "model": draw(st.sampled_from(["tiny", "tiny", "windowed"])),
        "roofline": draw(st.sampled_from([False, False, True])),
        "uneven": draw(st.booleans()),
        "launch": draw(st.sampled_from([0.0, 1e-4 * 17**0.5, 1e-4 * 18**0.5])),
        "cascade": draw(st.booleans()),
        "front_end": draw(st.sampled_from([0.0, 0.0, 1e-4 * 11**0.5])),
        "loop": draw(st.sampled_from([None, None, Loop(2, 1e-3 * 13**0.5), Loop(7, 0.0)])),
    }
    if not disaggregated:
        hung = any(tier.at for fields in pools.values() if "tiers" in fields for tier in fields["tiers"].tiers.values())
        return Mix(load, pools, **rest, **(draw(places()) if hung else {}))
    layerwise = draw(st.booleans())
    handover = HandoverSpec("local", groups, layerwise) if groups > 1 else HandoverSpec(layerwise=layerwise)
    switching = SwitchRoles(QueueRatio(2.0, 1.0), 0.05, 0.01)
    trading = groups == 1 and not scaled and draw(st.sampled_from([False, False, True]))
    link = LinkSpec("wire", draw(st.sampled_from([1e6, 1e8])), draw(st.sampled_from([0.0, 1e-4])))
    if draw(st.booleans()):
        rest |= draw(places())
    return Mix(load, pools, link, handover, roles=switching if trading else FIXED_ROLES, **rest)


@st.composite
def places(draw: st.DrawFn) -> dict[str, Any]:
    """A network of small nodes, and what they are."""
    bandwidth = draw(st.sampled_from([1e6, 1e7, 1e8]))
    rack = draw(
        st.sampled_from([None, Tier(1, LinkSpec("rack", bandwidth, 0.0)), Tier(2, LinkSpec("rack", 3e6, 1e-4))])
    )
    pod = draw(st.sampled_from([None, Tier(2, LinkSpec("pod", 2e6, 1e-4))])) if rack is not None else None
    node = NodeSpec("small", draw(st.sampled_from([2, 4])), bandwidth, draw(st.sampled_from([0.0, 1e-4])))
    return {"network": Topology("net", rack, pod), "node": node}


@st.composite
def loads(draw: st.DrawFn, alike: bool = False) -> list[Any]:
    longest = draw(st.sampled_from([15, 30] if alike else [4, 15, 30]))
    shared = draw(st.sampled_from([12, 24, 48] if alike else [0, 6, 12, 24, 48]))
    groups = draw(st.sampled_from([3, 8] if alike else [1, 3]))
    rate = draw(st.sampled_from([2.0, 50.0, 500.0, 2000.0, 1e5]))
    n, seed = draw(st.sampled_from([16, 40] if alike else [1, 5, 16, 16])), draw(st.integers(0, 2**32 - 1))
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
def pool_fields(draw: st.DrawFn, role: str, blocks: int, scaled: bool, replicas: int, tiered: bool) -> dict[str, Any]:
    batch, extra = draw(st.sampled_from([1, 3, 15])), draw(st.integers(1, 64))
    kinds = ["plain", "plain", "prefixes", "swap", "drafts", "drafts and prefixes", "parallel", "parallel prefixes"]
    kind = draw(st.sampled_from([kind for kind in kinds if "prefixes" in kind] if tiered else kinds))
    caching = "prefixes" in kind and role != "decode"
    fields: dict[str, Any] = {
        "role": role,
        "scheduler": draw(st.sampled_from(SCHEDULERS)),
        "options": draw(st.integers(0, 1000)),
        "router": draw(st.sampled_from(ROUTERS if caching else [name for name in ROUTERS if name != "prefix_aware"])),
        "replicas": max(draw(st.sampled_from([1, 1, 2, 3])), replicas),
        "kv_blocks": blocks,
    }
    if caching:
        fields["prefix_caching"] = True
    if kind == "swap":
        fields |= {"preemption": "swap", "swap_space": draw(st.sampled_from([3, 8, 10_000])) * BLOCK_BYTES}
    if role != "decode" and kind != "swap" and (tiered or draw(st.booleans())):
        fields["tiers"] = draw(stored() if caching else drawn_hits())
    drafts = draw(st.sampled_from([1, 4])) if "drafts" in kind and role != "prefill" else 0
    if drafts:
        fields["speculation"] = draw(speculations(drafts))
    if "parallel" in kind:
        fields |= draw(st.sampled_from(LAYOUTS))
    if scaled:
        policy = draw(st.sampled_from(SCALING_POLICIES))
        fewest = draw(st.sampled_from([0, 1])) if isinstance(policy, TargetUtilization | QueueLength) else 1
        fields["autoscaler"] = Autoscale(policy, 0.02, 0.05, draw(st.sampled_from([0.0, 0.2])), fewest, 3)
    fields["limits"] = {"max_running": batch, "token_budget": batch * (drafts + 1) + extra}
    return fields


@st.composite
def tier_fields(draw: st.DrawFn) -> dict[str, Any]:
    """What a stored and a drawn tier have in common; seconds and bytes per second with no common measure."""
    link = LinkSpec("store", draw(st.sampled_from([10**5.3, 10**7.3])), 1e-4 * 17**0.5)
    return {
        "read_bandwidth": draw(st.sampled_from([10**5.1, 10**6.1, 10**8.1, inf])),
        "latency": draw(st.sampled_from([0.0, 1e-4 * 19**0.5])),
        "shared_by": draw(st.sampled_from([1, 2, None, None])),
        "at": draw(st.sampled_from([None, None, None, "node", "rack", "datacenter"])),
        "link": draw(st.sampled_from([None, link])),
    }


@st.composite
def stored(draw: st.DrawFn) -> StoredTiers:
    tiers, sizes = {}, [0.0, 3 * BLOCK_BYTES, 20 * BLOCK_BYTES, None, None]
    for name in ("near", "far")[: draw(st.sampled_from([1, 1, 2]))]:
        eviction = draw(st.sampled_from(["lru", "lfu", "ttl"]))
        tiers[name] = StoredTier(
            **draw(tier_fields()),
            capacity=draw(st.sampled_from(sizes)),
            write_bandwidth=draw(st.sampled_from([10**5.2, 10**7.2, inf])),
            write=draw(st.sampled_from(["through", "evicted"])),
            eviction=eviction,
            ttl=3e-2 * 23**0.5 if eviction == "ttl" else None,
        )
    fetch = draw(st.sampled_from([Always(), Always(), Faster(), Never()]))
    return StoredTiers(tiers, fetch, draw(st.booleans()), draw(st.sampled_from([False, False, True])))


@st.composite
def drawn_hits(draw: st.DrawFn) -> DrawnTiers:
    tiers = {name: DrawnTier(**draw(tier_fields()), hit=draw(st.sampled_from([0.3, 1.0]))) for name in ("near", "far")}
    return DrawnTiers(tiers, Uniform(1, 40), draw(st.sampled_from([Always(), Faster()])), draw(st.booleans()))


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
def mixes() -> st.SearchStrategy[Mix]:
    """Any mix."""
    return any_mix()


@pytest.fixture(scope="session")
def tiered_mixes() -> st.SearchStrategy[Mix]:
    """Those with stores behind small devices."""
    return any_mix(tiered=True)
