"""Stations whose servers come and go: they fail, and there are as many as an autoscaler wants."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

from mist.autoscalers.slo_attainment import SloAttainment
from mist.clients.host import Host
from mist.clients.servers import OnDevices
from mist.clients.station import Station, StationSpec, Task
from mist.errors import InputError
from mist.faults import Faults, GivenFaults, NoFaults
from mist.fleet import Fleet, Scaler
from mist.kernel import Kernel
from mist.outages import Outages
from mist.policy import PoolView
from mist.scaling import FIXED, Autoscale, Scaling
from mist.slo import SLO
from mist.spans import seconds


class Turn(NamedTuple):
    """A batch on a server."""

    batch: list[Task]
    began: float  # s
    end: Callable[[], None]


class Crew(Fleet):
    """The servers of a station; they hold nothing but the batch they run."""

    def empty(self, index: int) -> bool:  # noqa: ARG002
        return True


class CrewedStation(Station):
    """A Station whose servers fail and scale.

    What a server was at when it failed goes back to the head of the queue and is done anew by another, or is lost, as
    the faults say of requests; nothing of a batch survives it. A server that is to go ends its batch first.
    """

    def __init__(  # noqa: PLR0917
        self, kernel: Kernel, name: str, spec: StationSpec, hosts: Mapping[str, Host], faults: Faults, seed: int
    ) -> None:
        super().__init__(kernel, name, spec, hosts)
        servers = spec.servers
        assert servers is not None
        self.faults = faults
        self.turns: dict[int, Turn] = {}  # by server
        self.fleet = Crew(kernel, [None] * servers, [0] * servers, lambda _index: None)
        self.fleet.on_up = self._came_up
        self._outages = Outages(kernel, faults, seed, name, self.fleet, self._fail)
        scaling = autoscaler(spec)
        self.scaler = CrewScaler(kernel, scaling, self) if isinstance(scaling, Autoscale) else None
        if not isinstance(faults, NoFaults):
            for index in range(servers):
                self._outages.expect(index)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        assert self.spec.servers is not None
        return self.server.joules(seconds(self.fleet.history()) / self.spec.servers)

    def _came_up(self, index: int) -> None:
        if not isinstance(self.faults, NoFaults):
            self._outages.expect(index)
        self.recount()
        self._wake()

    def recount(self) -> None:
        """Servers may have come or gone."""
        self.free = sum(1 for index in self.fleet.up if index not in self.turns)

    def _begin(self, batch: list[Task]) -> None:
        index = next(index for index in self.fleet.up if index not in self.turns)
        end = partial(self._ended, index, self.fleet.life(index))
        self.turns[index] = Turn(batch, self._clock_in(), end)
        self.fleet.outstanding[index] = len(batch)
        self.recount()
        self.server.run(batch, end)

    def _ended(self, index: int, life: int) -> None:
        """A batch is done, unless its server has failed since."""
        if self.fleet.life(index) != life:
            return
        turn = self.turns.pop(index)
        self.fleet.outstanding[index] = 0
        self.fleet.settle(index)
        self.recount()
        self._done(turn.batch, turn.began)

    def _fail(self, index: int, down: float) -> None:
        turn = self.turns.pop(index, None)
        if turn is not None:
            self._break_off(index, turn)
        self.fleet.fail(index, down)
        self.recount()
        if self.queue:
            self.kernel.at(max(self.queue[0].queued + self.spec.max_wait, self.kernel.now), self._wake)

    def _break_off(self, index: int, turn: Turn) -> None:
        """A batch ends in the middle; its tasks are begun again, or lost."""
        self._clock_out(turn.began)
        if isinstance(self.server, OnDevices):
            self.server.stop(turn.end)
        again = [task._replace(retries=task.retries + 1) for task in turn.batch if task.retries < self.faults.retries]
        gone = [task for task in turn.batch if task.retries >= self.faults.retries]
        self.queue.extendleft(reversed(again))
        for task in gone:
            if task.lost is not None:
                task.lost(task, f"{self.name}/{index} failed")


class CrewScaler(Scaler):
    """Carries out an autoscaling policy on the servers of a station."""

    def __init__(self, kernel: Kernel, spec: Autoscale, station: CrewedStation) -> None:
        super().__init__(kernel, spec, station.fleet)
        self.station = station

    def _look(self) -> None:
        super()._look()
        self.station.recount()

    def _view(self) -> PoolView:
        station, fleet, now = self.station, self.fleet, self.kernel.now
        live = len(fleet.up)
        busy, before, looked = station.busy_by_now, self._busy, self._looked
        attainment = self.good / self.ended if self.ended else None
        self._busy, self._looked, self.ended, self.good = busy, now, 0, 0
        return PoolView(
            replicas=fleet.count("starting", "up", "failed"),
            up=live,
            waiting=len(station.queue),
            running=sum(len(turn.batch) for turn in station.turns.values()),
            memory=0.0,
            busy=min((busy - before) / ((now - looked) * live), 1.0) if live else 0.0,
            attainment=attainment,
        )


def autoscaler(spec: StationSpec) -> Scaling:
    """How many servers there are; those of a host, and what is drawn, do not scale."""
    scaling: Scaling = getattr(spec, "autoscaler", FIXED)
    return scaling


def fails(spec: StationSpec) -> bool:
    """Whether its servers may fail: those on devices of their own, and outside services of so many at a time."""
    return spec.servers is not None and (spec.devices > 0 or spec.timed)


def check_crews(stations: Mapping[str, StationSpec], pools: Collection[str], faults: Faults, slo: SLO) -> None:
    """InputError where an outage or an autoscaler does not go with these stations."""
    outages = faults.outage.items() if isinstance(faults, GivenFaults) else ()
    for name, outage in outages:
        where = f"faults.outage.{name}.pool"
        if outage.pool in stations and outage.pool in pools:
            raise InputError(where, outage.pool, "is both a pool and a station: give one of them another name")
        if outage.pool in stations and not fails(stations[outage.pool]):
            raise InputError(where, outage.pool, "on a host, or of servers without limit: failures are not modelled")
    for name, spec in stations.items():
        policy = getattr(autoscaler(spec), "policy", None)
        if isinstance(policy, SloAttainment) and not list(slo):
            why = "without a limit in slo every request is within it: no effect"
            raise InputError(f"stations.{name}.autoscaler", "slo_attainment", why)


def servers(stations: Mapping[str, StationSpec], *, fixed: bool) -> dict[str, int]:
    """Servers, to begin with, of the stations that may fail; only those that keep as many if ``fixed``."""
    found = {name: spec.servers for name, spec in stations.items() if fails(spec)}
    scaled = {name for name in found if fixed and isinstance(autoscaler(stations[name]), Autoscale)}
    return {name: count for name, count in found.items() if count is not None and name not in scaled}


def station(  # noqa: PLR0917
    kernel: Kernel, name: str, spec: StationSpec, hosts: Mapping[str, Host], faults: Faults, seed: int
) -> Station:
    """A station, with servers that come and go where they do."""
    failing = fails(spec) and not isinstance(faults, NoFaults)
    if failing or isinstance(autoscaler(spec), Autoscale):
        return CrewedStation(kernel, name, spec, hosts, faults if fails(spec) else NoFaults(), seed)
    return Station(kernel, name, spec, hosts)
