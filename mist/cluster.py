"""Everything that serves: pools of engines by model, stations, hosts, and the way of a request through them."""

from collections.abc import Callable, Mapping
from functools import partial

from mist.clients.colocated import SharedDevice
from mist.clients.host import Host, HostSpec
from mist.clients.station import StationSpec
from mist.colocation import Colocation
from mist.crew import CrewedStation, station
from mist.faults import NO_FAULTS, Faults
from mist.handover import GLOBAL, HandoverSpec
from mist.kernel import Kernel
from mist.network import Link, LinkSpec
from mist.plan.draws import Draws
from mist.plan.query import Generation, Query
from mist.plan.stages import CHAT, Generate, Pipeline
from mist.pool import PoolSpec
from mist.replicas import Pool
from mist.request import Request
from mist.roles import FIXED_ROLES, Roles
from mist.service import Service
from mist.topology import ONE_LINK, Network, Topology, Wires
from mist.walk import Walk
from mist.ways import services


class Cluster:
    """Serves requests as ``pipeline`` says; those of the plain one are engines' requests as they are.

    ``good`` tells an autoscaler whether a finished request kept its SLO; ``seed`` is of faults and plans, whose
    draws repeat every ``cycle`` requests.
    """

    def __init__(
        self,
        kernel: Kernel,
        pools: Mapping[str, PoolSpec],
        link: LinkSpec | None,
        *,
        handover: HandoverSpec = GLOBAL,
        faults: Faults = NO_FAULTS,
        roles: Roles = FIXED_ROLES,
        network: Network = ONE_LINK,
        good: Callable[[Request], bool] = bool,
        seed: int = 0,
        pipeline: Pipeline = CHAT,
        stations: Mapping[str, StationSpec] | None = None,
        hosts: Mapping[str, HostSpec] | None = None,
        links: Mapping[str, LinkSpec] | None = None,
        cycle: int = 1,
        colocated: Mapping[str, Colocation] | None = None,
    ) -> None:
        self.kernel = kernel
        ways = services(pools) if pools else {}
        self.pools = _pools(pools, ways, colocated or {}, seed)
        sites = {name: spec.site() for name, spec in pools.items()}
        self.wires = Wires(kernel, network, sites) if isinstance(network, Topology) else None
        self.hosts = {name: Host(kernel, name, spec) for name, spec in (hosts or {}).items()}
        self.stations = {
            name: station(kernel, name, spec, self.hosts, faults, seed) for name, spec in (stations or {}).items()
        }
        crews = [at.scaler for at in self.stations.values() if isinstance(at, CrewedStation)]
        self._scalers, self._good = [scaler for scaler in crews if scaler is not None], good
        self.links = {name: Link(kernel, spec) for name, spec in (links or {}).items()}
        devices = _devices(kernel, pools, colocated or {})
        stands = {name: next(iter(at.shares)) for at in (colocated or {}).values() for name in at.shares}
        self.arrived = self.completed = self.refused = self.lost = 0
        self.ended: Callable[[Request], None] | None = None  # told of every request answered, refused or lost
        serving = partial(Service, kernel, wires=self.wires, ended=self._ended, handover=handover, faults=faults)
        serving = partial(serving, roles=roles, good=good, seed=seed, stands=stands)
        serving = partial(serving, device=lambda pool, index: devices.get((pool, index)))
        self.services = {
            name: serving(self.pools[name]) if sink is None else serving(self.pools[name], self.pools[sink], link)
            for name, sink in ways.items()
        }
        self._direct = self._service(pipeline)
        places = self.services, self.stations, self.links
        self._walk = Walk(kernel, pipeline, Draws(seed, cycle), *places, self._answered)

    def _service(self, pipeline: Pipeline) -> Service | None:
        """The service of a plain pipeline's requests; None for any other pipeline."""
        if not pipeline.plain:
            return None
        (stage,) = pipeline.stages.values()
        assert isinstance(stage, Generate)
        return self.services[stage.pool or next(iter(self.services))]

    @property
    def joules(self) -> float:
        """Energy drawn by everything so far."""
        now = self.kernel.now
        drawn = sum(pool.joules(now) for pool in self.pools.values())
        for at in self.stations.values():
            drawn += at.joules(now)
        for host in self.hosts.values():
            drawn += host.joules(now)
        return drawn

    @property
    def in_flight(self) -> int:
        """Requests in the system."""
        return self.arrived - self.completed - self.refused - self.lost

    @property
    def line(self) -> int:
        """Requests no engine has admitted, hand-overs without room included, and tasks no station has begun."""
        lines = [pool.waiting for pool in self.pools.values()]
        return sum(lines) + sum(len(station.queue) for station in self.stations.values())

    def arrive(self, request: Request) -> None:
        """A request is here, now; a Query, unless the pipeline is plain."""
        self.arrived += 1
        if self._direct is None:
            assert isinstance(request, Query)
            self._walk.begin(request)
            return
        request.refused = self._direct.refusal(request)
        if request.refused:
            self.refused += 1
            self._tell(request)
            return
        self._direct.submit(request)

    def _tell(self, request: Request) -> None:
        if self.ended is not None:
            self.ended(request)

    def _ended(self, service: Service, request: Request) -> None:
        """An engine has finished with a request, or lost it."""
        if type(request) is Generation:
            self._walk.generated(request)
            return
        if request.lost:
            self.lost += 1
        else:
            self.completed += 1
        if service.scalers:
            service.judge(request)
        if self.ended is not None:
            self.ended(request)

    def _answered(self, query: Query) -> None:
        """A query is finished, refused or lost."""
        if query.refused:
            self.refused += 1
            self._tell(query)
            return
        if query.lost:
            self.lost += 1
        else:
            self.completed += 1
        for service in self.services.values():
            service.judge(query)
        for scaler in self._scalers:
            scaler.ended += 1
            scaler.good += not query.lost and self._good(query)
        self._tell(query)


def _pools(
    pools: Mapping[str, PoolSpec], ways: Mapping[str, str | None], colocated: Mapping[str, Colocation], seed: int
) -> dict[str, Pool]:
    """At work, each paying for its part of its devices."""
    drafts = {name: pools[sink or name].speculation for name, sink in ways.items()}
    working = {name: Pool(name, spec, drafts.get(name, spec.speculation), seed) for name, spec in pools.items()}
    for colocation in colocated.values():
        for name in colocation.shares:
            working[name].part = 1 / len(colocation.shares)
    return working


def _devices(
    kernel: Kernel, pools: Mapping[str, PoolSpec], colocated: Mapping[str, Colocation]
) -> dict[tuple[str, int], SharedDevice]:
    """What replicas share, by pool and number."""
    found: dict[tuple[str, int], SharedDevice] = {}
    for colocation in colocated.values():
        for index in range(pools[next(iter(colocation.shares))].replicas):
            device = SharedDevice(kernel, colocation.shares, colocation.turns == "priority")
            found |= {(name, index): device for name in colocation.shares}
    return found
