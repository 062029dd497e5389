"""The links between replicas and the stores of their tiers."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from mist.flows import Flows, Path
from mist.kernel import Kernel
from mist.tiers.spec import StoredTier, Tier, store
from mist.topology import LEVELS, Level, Topology, Wires

Place = tuple[str, int]  # pool and replica
Way = tuple[Path, float]  # links, and the seconds that a transfer takes besides its bytes


class Wiring:
    """Every transfer crosses the store's device, what lies between it and a replica, and its devices' host links.

    Between them is the replica's own link to the tier; in a topology, for a tier that hangs somewhere in it (``at``),
    the topology's links, which it shares with everybody's transfers. All of them are shared max-min fairly; reading
    and writing are links of their own. ``name`` is the pool's that has the tiers.
    """

    def __init__(self, kernel: Kernel, name: str, tiers: Mapping[str, Tier], wires: Wires | None) -> None:
        self.kernel, self.name, self.tiers, self._wires = kernel, name, tiers, wires
        self.flows = Flows(kernel, {}) if wires is None else wires.flows
        self._stores: dict[tuple[str, Place], str] = {}
        self._ways: dict[tuple[str, Place, str], Way] = {}

    def lay(self, place: Place, port: float) -> None:
        """A replica is new; ``port`` is the bandwidth of its host links together, bytes per second."""
        self._stores = {key: store for key, store in self._stores.items() if key[1] != place}
        self._ways = {key: way for key, way in self._ways.items() if key[1] != place}
        links = {_port(place, way): port for way in ("read", "write")}
        for name, tier in self.tiers.items():
            own = tier.link.bandwidth if tier.link is not None else inf
            links |= {self._link(name, place, way): own for way in ("read", "write")}
            write = tier.write_bandwidth if isinstance(tier, StoredTier) else inf
            links |= {self._device(name, place, "read"): tier.read_bandwidth, self._device(name, place, "write"): write}
        self.flows.lay({link: bandwidth for link, bandwidth in links.items() if bandwidth < inf})

    def store(self, tier: str, place: Place) -> str:
        """The store of a tier that a replica uses, by name."""
        known = self._stores.get((tier, place))
        if known is None:
            node = 0 if self._wires is None else self._wires.node(place)
            known = self._stores[tier, place] = store(self.tiers[tier], place[1], self.network, node)
        return known

    @property
    def network(self) -> Topology | None:
        """The topology that some tiers may hang in."""
        return None if self._wires is None else self._wires.topology

    def private(self, tier: str) -> bool:
        """Whether a tier's stores go with their replicas."""
        return self._level(tier) is None and self.tiers[tier].shared_by == 1

    def _level(self, tier: str) -> Level | None:
        """Where in the topology a tier hangs; None where there is none, or it has links of its own."""
        return None if self._wires is None else self.tiers[tier].at

    def _device(self, tier: str, place: Place, way: str) -> str:
        return f"{self.name} {tier} {self.store(tier, place)} {way}"

    def _link(self, tier: str, place: Place, way: str) -> str:
        return f"{self.name} {tier} link of {place[0]}/{place[1]} {way}"

    def _between(self, tier: str, place: Place, way: str, above: str | None = None) -> Way:
        """From a tier's store to a replica's host links, or between it and the store of the tier above."""
        level, spec = self._level(tier), self.tiers[tier]
        if level is None or self._wires is None:
            return (self._link(tier, place, way),), spec.link.latency if spec.link is not None else 0.0
        low: Level = (self._level(above) if above is not None else None) or "node"
        rising = LEVELS.index(low) <= LEVELS.index(level)
        path, latency = self._wires.climb(place, *((level, low) if rising else (low, level)))
        if rising == (way == "write"):
            return path, latency
        return tuple(f"{link.removesuffix('up')}down" for link in reversed(path)), latency

    def _way(self, tier: str, place: Place, way: str) -> Way:
        known = self._ways.get((tier, place, way))
        if known is None:
            path, latency = self._between(tier, place, way)
            path = (self._device(tier, place, way), *path, _port(place, way))
            known = self._ways[tier, place, way] = self._finite(path), self.tiers[tier].latency + latency
        return known

    def _finite(self, path: Path) -> Path:
        return tuple(link for link in path if link in self.flows.capacities)

    def _send(self, way: Way, size: float, call: Callable[..., None], *args: Any) -> int:
        path, latency = way
        if not path:  # endlessly wide
            self.kernel.after(latency, call, *args)
            return 0
        flow = self.flows.next_flow
        self.flows.send(path, latency, size, call, *args)
        return flow

    def read(self, tier: str, place: Place, size: float, call: Callable[..., None], *args: Any) -> int:
        """Call once ``size`` bytes have come from a tier to a replica's devices; the transfer's number."""
        return self._send(self._way(tier, place, "read"), size, call, *args)

    def write(self, tier: str, place: Place, size: float, call: Callable[..., None], *args: Any) -> int:
        """Call once ``size`` bytes have gone from a replica's devices to a tier; the transfer's number."""
        return self._send(self._way(tier, place, "write"), size, call, *args)

    def demote(self, above: str, tier: str, place: Place, size: float, call: Callable[..., None], *args: Any) -> int:
        """Call once ``size`` bytes have gone from the store above to that of a tier; the devices see nothing of it."""
        path, latency = self._between(tier, place, "write", above)
        ends = self._device(above, place, "read"), self._device(tier, place, "write")
        return self._send((self._finite((*ends, *path)), self.tiers[tier].latency + latency), size, call, *args)

    def cancel(self, flow: int) -> None:
        """Stop a transfer, if its last byte is not sent yet."""
        self.flows.cancel(flow)

    def alone(self, tier: str, place: Place, size: float) -> float:
        """Seconds that a read takes with nothing else in flight."""
        path, latency = self._way(tier, place, "read")
        return latency + size / min((self.flows.capacities[link] for link in path), default=inf)

    def expected(self, tier: str, place: Place, size: float) -> float:
        """Seconds that a read begun now takes, if nothing else begins and its tightest link serves all alike."""
        path, latency = self._way(tier, place, "read")
        capacities, ahead = self.flows.capacities, self.flows.ahead
        return latency + max(((size + ahead(link, size)) / capacities[link] for link in path), default=0.0)


def _port(place: Place, way: str) -> str:
    return f"{place[0]}/{place[1]} host {way}"
