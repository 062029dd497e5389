"""Replicas that change between prefill and decode as the load asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mist.errors import InputError
from mist.fleet import Fleet
from mist.kernel import Kernel
from mist.policy import RolePolicy, RoleView
from mist.units import Seconds


class Roles(Protocol):
    """Who prefills and who decodes."""

    def check(self, alike: bool, replicas: Mapping[str, int]) -> None:
        """InputError unless it can be carried out on pools of so many ``replicas`` each, ``alike`` in their devices."""


@dataclass(frozen=True)
class FixedRoles:
    """Every replica keeps its role."""

    def check(self, alike: bool, replicas: Mapping[str, int]) -> None:
        """Any pools will do."""


FIXED_ROLES = FixedRoles()


@dataclass(frozen=True)
class QueueRatio:
    """The role whose queue per replica is more than ``ratio`` times the other's, and at least ``least``, gets one more.

    (TetriInfer, arXiv:2401.11181, instance flip, changes roles by the load of either side.)
    """

    ratio: float
    least: float

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise InputError("ratio", self.ratio, "must exceed 1, or replicas would change to and fro")
        if not self.least > 0:
            raise InputError("least", self.least, "must be positive")

    def towards(self, prefill: RoleView, decode: RoleView) -> str:
        queues = {"prefill": _queue(prefill), "decode": _queue(decode)}
        longer = max(queues, key=queues.__getitem__)
        shorter = min(queues.values())
        return longer if queues[longer] >= self.least and queues[longer] > self.ratio * shorter else ""


def _queue(view: RoleView) -> float:
    return view.waiting / max(view.up, 1)


@dataclass(frozen=True)
class SwitchRoles:
    """Every ``interval`` a policy may move one replica to the other role: it takes no new requests, finishes what
    it has, and is up in its new role ``delay`` later. One at a time.
    """

    policy: RolePolicy
    interval: Seconds
    delay: Seconds
    min_replicas: int = 1  # of either role

    def __post_init__(self) -> None:
        if not self.interval > 0:
            raise InputError("interval", self.interval, "must be positive")
        if self.delay < 0:
            raise InputError("delay", self.delay, "must not be negative")
        if self.min_replicas < 1:
            raise InputError("min_replicas", self.min_replicas, "must be at least 1")

    def check(self, alike: bool, replicas: Mapping[str, int]) -> None:
        if len(replicas) < 2:
            raise InputError("", "switching", "a single pool has one role: it has no effect")
        if not alike:
            why = "the pools must be of the same hardware and layout, and not autoscaled, for replicas to change over"
            raise InputError("", "switching", why)
        if max(replicas.values()) <= self.min_replicas:
            raise InputError("min_replicas", self.min_replicas, "has every replica keep its role: no effect")


class Switcher:
    """Carries out a role policy on the two fleets."""

    def __init__(
        self,
        kernel: Kernel,
        spec: SwitchRoles,
        prefill: Fleet,
        decode: Fleet,
        moved: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """``moved`` is told of every change: to which role, and the index a replica had and will have."""
        self.kernel, self.spec, self.moved = kernel, spec, moved
        self.fleets = {"prefill": prefill, "decode": decode}
        kernel.after(spec.interval, self._tick)

    def _tick(self) -> None:
        self.kernel.decide(self._look)
        self.kernel.after(self.spec.interval, self._tick)

    def _look(self) -> None:
        if any(fleet.count("starting", "draining") for fleet in self.fleets.values()):
            return
        towards = self.spec.policy.towards(*(self._view(fleet) for fleet in self.fleets.values()))
        for role, giver in self.fleets.items():
            if towards and role != towards and len(giver.up) > self.spec.min_replicas:
                self.fleets[towards].joined += 1
                giver.shrink(then=partial(self._change, towards))

    def _change(self, role: str, index: int) -> None:
        """A replica, released from the other role, takes this one."""
        fleet = self.fleets[role]
        if self.moved is not None:
            self.moved(role, index, fleet.vacant)
        fleet.order(self.spec.delay)

    def _view(self, fleet: Fleet) -> RoleView:
        live = [fleet.clients[index] for index in fleet.up]
        waiting = sum(client.waiting + client.expected for client in live) + len(fleet.held) + fleet.fetching()
        return RoleView(len(live), waiting)
