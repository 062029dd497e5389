"""Pools of different models on the same devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError
from mist.faults import Faults, GivenFaults
from mist.handover import HandoverSpec
from mist.perf.footprint import block_bytes, device_weights
from mist.pool import PoolSpec
from mist.scaling import Fixed
from mist.topology import Network, Topology


@dataclass(frozen=True)
class Colocation:
    """Pools that run on the same devices: replica i of one beside replica i of the others.

    Memory: each engine takes what its own ``engine.memory_utilization`` says, as vLLM processes on one GPU do, or
    its weights and its ``kv_blocks``; together no more than there is. Time: ``shares`` says whose step
    goes on at which part of the device while the others are in a step too; with ``turns=priority`` those with the
    largest share go first and the others wait (see mist.clients.colocated). The devices are paid for once, each pool
    an equal part. They fail with all that is on them: outages are those of the first pool.
    """

    shares: Mapping[str, float]
    turns: Literal["sharing", "priority"] = "sharing"

    def __post_init__(self) -> None:
        if len(self.shares) < 2:
            raise InputError("shares", ", ".join(self.shares) or "(nothing)", "colocation takes two pools or more")
        for name, share in self.shares.items():
            if not share > 0:
                raise InputError(f"shares.{name}", share, "must be positive")
        if self.turns == "priority" and len(set(self.shares.values())) == 1:
            raise InputError("turns", "priority", "has no effect: all shares are equal")


def check_beside(
    colocated: Mapping[str, Colocation], pools: Mapping[str, PoolSpec], handover: HandoverSpec, network: Network
) -> None:
    """InputError where colocated pools hand over in a way that does not go with shared devices."""
    paired = {name for at in colocated.values() for name in at.shares if pools[name].role != "both"}
    if paired and handover.layerwise:
        why = "colocated pools hand over whole caches: how far a step is that shares its device is known at its end"
        raise InputError("handover.layerwise", "true", why, ["false"])
    if colocated and isinstance(network, Topology):
        told = ", ".join(name for at in colocated.values() for name in at.shares)
        why = f"colocated pools ({told}) have one place, not one each"
        raise InputError("network", network.name, why, ["one_link"])


def check_fates(colocated: Mapping[str, Colocation], faults: Faults) -> None:
    """InputError for an outage of devices by another name than that of the first pool on them."""
    for name, outage in faults.outage.items() if isinstance(faults, GivenFaults) else ():
        for at in colocated.values():
            first = next(iter(at.shares))
            if outage.pool in at.shares and outage.pool != first:
                why = f"stands on the devices of {first}, which fail with all that is on them: name that"
                raise InputError(f"faults.outage.{name}.pool", outage.pool, why, [first])


def check_colocations(colocated: Mapping[str, Colocation], pools: Mapping[str, PoolSpec]) -> None:
    """InputError unless the pools of every colocation can stand on the same devices, and each in one place."""
    seen: dict[str, str] = {}
    for place, colocation in colocated.items():
        for name in colocation.shares:
            where = f"{place}.shares.{name}"
            if name not in pools:
                raise InputError(where, colocation.shares[name], "no such pool", sorted(pools))
            if name in seen:
                raise InputError(where, colocation.shares[name], f"the pool is colocated in {seen[name]} already")
            seen[name] = place
            _check_kind(where, pools[name])
        members = {name: pools[name] for name in colocation.shares}
        _check_alike(place, members)
        _check_memory(place, members)


def _check_kind(where: str, spec: PoolSpec) -> None:
    """Only engines whose steps follow each other, as many as there are devices for."""
    if spec.pp > 1:
        raise InputError(where, f"pp={spec.pp}", "is not modelled for colocated pools: stages would share one by one")
    if not isinstance(spec.autoscaler, Fixed):
        why = "is not modelled for colocated pools: one's replicas would come and go without the others'"
        raise InputError(where, f"autoscaler={type(spec.autoscaler).__name__.lower()}", why)


def _check_alike(place: str, members: Mapping[str, PoolSpec]) -> None:
    layouts = {name: (s.hardware.name, s.replica.devices, s.replicas) for name, s in members.items()}
    if len(set(layouts.values())) > 1:
        told = ", ".join(f"{n} {replicas} x {devices} {device}" for n, (device, devices, replicas) in layouts.items())
        raise InputError(f"{place}.shares", told, "colocated pools have the same hardware, devices and replicas")


def _check_memory(place: str, members: Mapping[str, PoolSpec]) -> None:
    taken = {name: memory_share(spec) for name, spec in members.items()}
    if sum(taken.values()) > 1 + 1e-9:
        told = ", ".join(f"{name} {share:.0%}" for name, share in taken.items())
        why = "takes more memory than there is: lower engine.memory_utilization, or kv_blocks"
        raise InputError(f"{place}.shares", told, why)


def memory_share(spec: PoolSpec) -> float:
    """Share of each device's memory that the pool's engine takes."""
    if spec.kv_blocks is None:
        return spec.engine.memory_utilization
    held = device_weights(spec.replica) + spec.kv_blocks / spec.dp * block_bytes(spec.replica) + spec.engine.reserve
    return held / spec.hardware.memory
