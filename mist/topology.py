"""Where replicas stand, and which links lie between two of them: node, rack, pod, data centre."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Literal, NamedTuple, Protocol

from mist.errors import InputError
from mist.flows import Flows, Path, Way
from mist.kernel import Kernel
from mist.network import LinkSpec

Level = Literal["node", "rack", "pod", "datacenter"]
LEVELS: tuple[Level, ...] = ("node", "rack", "pod", "datacenter")
WAYS = ("up", "down")


class Site(NamedTuple):
    """What a pool's replicas bring to a network; bandwidths are of one device, one direction."""

    devices: int  # of a replica
    replicas: int  # places kept for it
    node_devices: int
    inside: LinkSpec  # to devices of its own node
    outside: LinkSpec | None  # to other nodes

    @property
    def spans(self) -> int:
        """Nodes of one replica."""
        return -(-self.devices // self.node_devices)


class Network(Protocol):
    """What lies between the pools of a cluster."""

    def check(self, sites: Mapping[str, Site]) -> None:
        """InputError, by address from the root, unless these pools can be placed in it."""


@dataclass(frozen=True)
class OneLink:
    """All pairs of replicas share one link, wherever they stand: the ``link`` of the cluster."""

    def check(self, sites: Mapping[str, Site]) -> None:
        """Any pools will do."""


ONE_LINK = OneLink()


@dataclass(frozen=True)
class Tier:
    """``holds`` of the places below behind one ``uplink``, which is the way out of it, the same in either direction."""

    holds: int
    uplink: LinkSpec

    def __post_init__(self) -> None:
        if self.holds < 1:
            raise InputError("holds", self.holds, "must be at least 1")


@dataclass(frozen=True)
class Topology:
    """A tree of nodes in racks in pods in a data centre; switches are not bottlenecks, links are.

    The links inside a node and out of it are those of the pools' ``hardware`` and ``node``, as many as a replica has
    devices, since every device sends its own share of a KV cache. Racks hold nodes and pods hold racks; without
    ``rack`` all nodes are on one switch, without ``pod`` all racks are. A transfer crosses every uplink between
    its ends, and the latencies of all levels it rises through add up. A replica larger than a node stands on nodes of
    its own: its caches leave by the ports of all its devices, and by the uplinks of its first node.
    """

    name: str
    rack: Tier | None = None
    pod: Tier | None = None

    def __post_init__(self) -> None:
        if self.pod is not None and self.rack is None:
            raise InputError("pod", self.pod.holds, "holds racks, and there are none (rack)")

    def check(self, sites: Mapping[str, Site]) -> None:
        if self._nodes(sites) > 1:
            for name, site in sites.items():
                if site.outside is None:
                    why = "replicas stand on several nodes, and this one has no way out of it: name a node that has"
                    raise InputError(f"pools.{name}.node", "isolated", why)

    def places(self, sites: Mapping[str, Site]) -> dict[tuple[str, int], int]:
        """The first node of every replica: pool by pool, each from a new node on, one replica after another.

        None shares a node with another that is larger than a node.
        """
        nodes: dict[tuple[str, int], int] = {}
        first = 0
        for name, site in sites.items():
            each = max(site.node_devices // site.devices, 1)  # of a node
            nodes |= {(name, index): first + index // each * site.spans for index in range(site.replicas)}
            first += -(-site.replicas // each) * site.spans
        return nodes

    def _nodes(self, sites: Mapping[str, Site]) -> int:
        return max(node + sites[pool].spans for (pool, _), node in self.places(sites).items())

    def tiers(self, node: int) -> list[tuple[str, Tier]]:
        """The named rack and pod a node is in, and what they are, from below."""
        found, place = [], node
        for kind, tier in (("rack", self.rack), ("pod", self.pod)):
            if tier is not None:
                place //= tier.holds
                found.append((f"{kind} {place}", tier))
        return found

    def check_level(self, level: Level) -> None:
        """InputError unless there is such a place to hang something at."""
        there = {"node": True, "rack": self.rack is not None, "pod": self.pod is not None, "datacenter": True}
        if not there[level]:
            why = f"network={self.name} has no such level"
            raise InputError("at", level, why, [name for name in LEVELS if there[name]])

    def switch(self, node: int, level: Level) -> str:
        """The place of a level that a node is in, by name."""
        above = {"node": f"node {node}", "datacenter": "datacenter"}
        return above.get(level) or next(name for name, _ in self.tiers(node) if name.startswith(level))

    def crossed(self, level: Level) -> int:
        """Uplinks of racks and pods below a level."""
        levels: dict[Level, int] = {"node": 0, "rack": 0, "pod": 1}
        return levels.get(level, sum(tier is not None for tier in (self.rack, self.pod)))


class Wires:
    """The links of a topology with these pools in it, and the ways over them."""

    def __init__(self, kernel: Kernel, topology: Topology, sites: Mapping[str, Site]) -> None:
        self.kernel, self.topology, self.sites = kernel, topology, sites
        self.nodes = topology.places(sites)
        self.flows = Flows(kernel, self._capacities())
        self._ways: dict[tuple[tuple[str, int], tuple[str, int]], Way] = {}
        # since when a replica stands in whose place, of those that changed their role
        self._moves: defaultdict[tuple[str, int], list[tuple[float, tuple[str, int]]]] = defaultdict(list)

    def move(self, old: tuple[str, int], new: tuple[str, int]) -> None:
        """The replica that was one, (pool, index), is another now, and stands where it stood."""
        self._moves[new].append((self.kernel.now, self._stands(old)))

    def _stands(self, place: tuple[str, int], time: float = inf) -> tuple[str, int]:
        return next((home for since, home in reversed(self._moves.get(place, ())) if since <= time), place)

    def node(self, place: tuple[str, int], time: float = inf) -> int:
        """The first node of a replica, (pool, index): now, or of the one that was at its index at a ``time``.

        One that begins while another drains may be one more than there are places for: it stands where the one does
        that it follows in turn, with ports of its own.
        """
        pool, index = self._stands(place, time)
        return self.nodes[pool, index % self.sites[pool].replicas]

    def way(self, source: tuple[str, int], sink: tuple[str, int]) -> Way:
        """From one replica, (pool, index), to another."""
        source, sink = self._stands(source), self._stands(sink)
        known = self._ways.get((source, sink))
        if known is None:
            known = self._ways[source, sink] = self._lay(source, sink)
        return known

    def _lay(self, source: tuple[str, int], sink: tuple[str, int]) -> Way:
        nodes = self.node(source), self.node(sink)
        self.flows.lay(self._ports(source) | self._ports(sink))
        ends = self.sites[source[0]], self.sites[sink[0]]
        if nodes[0] == nodes[1]:
            path: Path = (_port(source, "inside", "up"), _port(sink, "inside", "down"))
            return Way(self.flows, path, max(end.inside.latency for end in ends), "node")
        rising, falling = (self.topology.tiers(node) for node in nodes)
        crossed = [(up, down) for up, down in zip(rising, falling, strict=True) if up[0] != down[0]]
        outside = [end.outside for end in ends if end.outside is not None]
        latency = max(link.latency for link in outside) + sum(tier.uplink.latency for (_, tier), _ in crossed)
        uplinks = ((f"{up[0]} up", f"{down[0]} down") for up, down in crossed)
        path = (_port(source, "outside", "up"), *chain.from_iterable(uplinks), _port(sink, "outside", "down"))
        turn = ("rack", "pod", "datacenter")[len(crossed)] if self.topology.rack else "network"
        return Way(self.flows, path, latency, turn)

    def climb(self, place: tuple[str, int], high: Level, low: Level = "node") -> tuple[Path, float]:
        """The links from a replica's node up to what hangs at a level, and their latencies together, seconds.

        With ``low``, from the place of that level, without the replica's port. The way down has the same latency and
        the links of the other direction.
        """
        place = self._stands(place)
        start, end = self.topology.crossed(low), self.topology.crossed(high)
        between = self.topology.tiers(self.node(place))[start:end]
        path: Path = tuple(f"{name} up" for name, _ in between)
        latency = sum(tier.uplink.latency for _, tier in between)
        outside = self.sites[place[0]].outside
        if low == "node" != high and outside is not None:
            self.flows.lay(self._ports(place))
            return (_port(place, "outside", "up"), *path), outside.latency + latency
        return path, latency

    def _capacities(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for place, node in self.nodes.items():
            found |= self._ports(place)
            for name, tier in self.topology.tiers(node):
                found |= {f"{name} {way}": tier.uplink.bandwidth for way in ("up", "down")}
        return found

    def _ports(self, place: tuple[str, int]) -> dict[str, float]:
        """The links of a replica's own devices, bytes per second."""
        site = self.sites[place[0]]
        links = [(reach, link) for reach, link in (("inside", site.inside), ("outside", site.outside)) if link]
        return {_port(place, reach, way): link.bandwidth * site.devices for reach, link in links for way in WAYS}


def _port(place: tuple[str, int], reach: str, way: str) -> str:
    return f"{place[0]}/{place[1]} {reach} {way}"
