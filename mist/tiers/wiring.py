"""The links between the replicas of a pool and the stores of its tiers."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from mist.flows import Flows, Path
from mist.kernel import Kernel
from mist.tiers.spec import StoredTier, Tier


class Wiring:
    """Every transfer crosses the store's device, the replica's own link to the tier, and the host links of its devices.

    All of them are shared max-min fairly; reading and writing are links of their own. ``port`` is the bandwidth of
    a replica's host links together.
    """

    def __init__(self, kernel: Kernel, tiers: Mapping[str, Tier], replicas: int, port: float) -> None:
        self.tiers = tiers
        self._capacities: dict[str, float] = {}
        for replica in range(replicas):
            self._lay(f"port {replica}", port, port)
            for name, tier in tiers.items():
                if tier.link is not None:
                    self._lay(f"{name} link {replica}", tier.link.bandwidth, tier.link.bandwidth)
                write = tier.write_bandwidth if isinstance(tier, StoredTier) else inf
                self._lay(f"{name} store {tier.store(replica)}", tier.read_bandwidth, write)
        self.flows = Flows(kernel, self._capacities)

    def _lay(self, name: str, read: float, write: float) -> None:
        ends = {f"{name} read": read, f"{name} write": write}
        self._capacities |= {end: bandwidth for end, bandwidth in ends.items() if bandwidth < inf}

    def _path(self, *links: str) -> Path:
        return tuple(link for link in links if link in self._capacities)

    def latency(self, tier: str) -> float:
        """Seconds that a transfer takes besides its bytes."""
        spec = self.tiers[tier]
        return spec.latency + (spec.link.latency if spec.link is not None else 0.0)

    def _way(self, tier: str, replica: int, way: str) -> Path:
        store = self.tiers[tier].store(replica)
        return self._path(f"{tier} store {store} {way}", f"{tier} link {replica} {way}", f"port {replica} {way}")

    def read(self, tier: str, replica: int, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have come from a tier to a replica's devices."""
        self.flows.send(self._way(tier, replica, "read"), self.latency(tier), size, call, *args)

    def write(self, tier: str, replica: int, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have gone from a replica's devices to a tier."""
        self.flows.send(self._way(tier, replica, "write"), self.latency(tier), size, call, *args)

    def demote(self, above: str, tier: str, replica: int, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have gone from the store above to that of a tier; the devices see nothing of it."""
        stores = [self.tiers[name].store(replica) for name in (above, tier)]
        ends = f"{above} store {stores[0]} read", f"{tier} store {stores[1]} write"
        path = self._path(*ends, f"{tier} link {replica} write")
        self.flows.send(path, self.latency(tier), size, call, *args)

    def alone(self, tier: str, replica: int, size: float) -> float:
        """Seconds that a read takes with nothing else in flight."""
        slowest = min(self._capacities[link] for link in self._way(tier, replica, "read"))
        return self.latency(tier) + size / slowest

    def expected(self, tier: str, replica: int, size: float) -> float:
        """Seconds that a read begun now takes, if nothing else begins and its tightest link serves all alike."""
        path = self._way(tier, replica, "read")
        busiest = max((size + self.flows.ahead(link, size)) / self._capacities[link] for link in path)
        return self.latency(tier) + busiest
