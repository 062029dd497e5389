"""Tiers of memory behind the devices of a pool that keep KV blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from mist.errors import InputError
from mist.memory.shelf import Eviction
from mist.network import LinkSpec
from mist.policy import FetchPolicy
from mist.topology import LEVELS, Level, Network, Topology
from mist.units import Bytes, BytesPerSecond, DollarsPerHour, Seconds
from mist.workload.lengths import Lengths


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Stores that ``shared_by`` replicas share, one after another as they are numbered; None is all of them.

    A store reads at ``read_bandwidth``, all its readers together, after ``latency`` of looking up; each replica
    reaches it over a ``link`` of its own, which is as wide in either direction; None is no bottleneck.
    ``price`` is that of one store, 0 where it comes with the accelerators' instances.

    ``at`` says where stores hang in a topology: one for each node, rack or pod that has replicas, behind its switch, or
    one in the data centre; who shares them and which links lead there then follow from the ``network``, in place of
    ``shared_by`` and ``link``. None keeps these in a topology, too.
    """

    read_bandwidth: BytesPerSecond
    latency: Seconds
    shared_by: int | None = 1
    link: LinkSpec | None = None
    price: DollarsPerHour = 0.0
    at: Level | None = None

    def __post_init__(self) -> None:
        if self.at is not None and self.at not in LEVELS:
            raise InputError("at", self.at, "is no level of a topology; null is none", LEVELS)
        if not self.read_bandwidth > 0:
            raise InputError("read_bandwidth", self.read_bandwidth, "must be positive")
        if self.latency < 0:
            raise InputError("latency", self.latency, "must not be negative")
        if self.shared_by is not None and self.shared_by < 1:
            raise InputError("shared_by", self.shared_by, "must be at least 1, or null for all replicas")
        if self.price < 0:
            raise InputError("price", self.price, "must not be negative")

    def store(self, replica: int) -> int:
        """The store that a replica uses."""
        return 0 if self.shared_by is None else replica // self.shared_by


@dataclass(frozen=True, kw_only=True)
class StoredTier(Tier):
    """A tier whose stores keep ``capacity`` bytes each (None is endless), known by the content of the prefix they end.

    ``write``: *through*, a request's full blocks when it gives them up; *evicted*, what leaves the level above (the
    first tier's is the device). When full, ``eviction`` says who goes; ``ttl`` is the time after the last use of *ttl*.
    """

    capacity: Bytes | None
    write_bandwidth: BytesPerSecond
    write: Literal["through", "evicted"] = "evicted"
    eviction: Eviction = "lru"
    ttl: Seconds | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity is not None and self.capacity < 0:
            raise InputError("capacity", self.capacity, "must not be negative; null is endless")
        if not self.write_bandwidth > 0:
            raise InputError("write_bandwidth", self.write_bandwidth, "must be positive")
        if self.eviction == "ttl" and not (self.ttl or 0) > 0:
            raise InputError("ttl", self.ttl, "eviction=ttl needs a positive time")
        if self.eviction != "ttl" and self.ttl is not None:
            raise InputError("ttl", self.ttl, f"has no effect with eviction={self.eviction}", ["ttl"])

    def blocks(self, block_bytes: float) -> float:
        """What one store holds."""
        return inf if self.capacity is None else self.capacity // block_bytes


@dataclass(frozen=True, kw_only=True)
class DrawnTier(Tier):
    """A tier where a request that missed those before it finds its context with probability ``hit``."""

    hit: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hit <= 1:
            raise InputError("hit", self.hit, "a probability is between 0 and 1")


class Tiers(Protocol):
    """What lies behind the devices of a pool."""

    def check(self, prefix_caching: bool) -> None:
        """InputError unless it goes with a pool that caches prefixes, or does not."""


@dataclass(frozen=True)
class NoTiers:
    """Nothing: what leaves the device is computed again."""

    def check(self, prefix_caching: bool) -> None:
        """Any pool will do."""


NO_TIERS = NoTiers()


@dataclass(frozen=True)
class StoredTiers:
    """``tiers`` from the nearest on, holding blocks that ``fetch`` decides upon, request by request.

    ``layerwise`` computes a layer as soon as its cache is here, instead of all of them when everything is. Of a prefill
    pool, ``decoded`` has its decode pool write what it computes, too, to the stores that both reach.
    """

    tiers: Mapping[str, StoredTier]
    fetch: FetchPolicy
    layerwise: bool = False
    decoded: bool = False

    def __post_init__(self) -> None:
        _some(self.tiers)

    def check(self, prefix_caching: bool) -> None:
        if not prefix_caching:
            why = "tiers keep what the prefix cache knows by content: prefix_caching=true, or tiers=drawn"
            raise InputError("tiers", "StoredTiers", why)


@dataclass(frozen=True)
class DrawnTiers:
    """Hits that are drawn for each request, for workloads that do not say what their tokens are.

    A request finds ``reusable`` tokens, whole blocks of them and never its last token, in the first tier that hits.
    """

    tiers: Mapping[str, DrawnTier]
    reusable: Lengths
    fetch: FetchPolicy
    layerwise: bool = False

    def __post_init__(self) -> None:
        _some(self.tiers)

    def check(self, prefix_caching: bool) -> None:
        if prefix_caching:
            raise InputError("prefix_caching", "true", "hits of this pool are drawn (tiers), not looked up")


def _some(tiers: Mapping[str, Tier]) -> None:
    if not tiers:
        raise InputError("tiers", "{}", "needs at least one tier; tiers=none is none")


def tiers_of(tiers: Tiers) -> Mapping[str, Tier]:
    """By name, from the nearest on."""
    return tiers.tiers if isinstance(tiers, StoredTiers | DrawnTiers) else {}


def store(tier: Tier, replica: int, network: Network | None, node: int) -> str:
    """The store of a tier that a replica on this node of the network uses, by name."""
    if tier.at is None or not isinstance(network, Topology):
        return f"store {tier.store(replica)}"
    return network.switch(node, tier.at)


def reached_by_all(tier: Tier, network: Network | None) -> bool:
    """Whether replicas of other pools reach its stores."""
    if tier.at is None or not isinstance(network, Topology):
        return tier.shared_by is None
    return tier.at != "node"
