"""Everything a simulation depends on, checked as a whole."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from mist.autoscalers.slo_attainment import SloAttainment
from mist.clients.host import HostSpec
from mist.clients.station import StationSpec
from mist.colocation import Colocation, check_beside, check_colocations, check_fates
from mist.crew import check_crews, servers
from mist.errors import InputError
from mist.faults import NO_FAULTS, Faults, check_faults
from mist.handover import GLOBAL, HandoverSpec, check_handover
from mist.network import LinkSpec
from mist.places import check_pipeline
from mist.plan.stages import CHAT, Pipeline, names_corpus
from mist.pool import PoolSpec
from mist.price import PriceList
from mist.roles import FIXED_ROLES, FixedRoles, Roles
from mist.routers.prefix_aware import PrefixAware
from mist.scaling import Autoscale, Fixed
from mist.slo import SLO
from mist.station_report import host_dollars, station_dollars
from mist.tiers.checks import check_decoded, check_hung
from mist.tiers.passages import PassageTiers
from mist.tiers.prices import tier_dollars
from mist.tiers.spec import DrawnTiers, StoredTiers, tiers_of
from mist.topology import ONE_LINK, Network, Topology
from mist.ways import check_pools, services
from mist.workload.traffic import Workload, class_names, class_priorities, names_passages


@dataclass(frozen=True)
class Window:
    """What is measured: one cycle of the traffic, after a warm-up of at least ``warmup`` of a cycle.

    The warm-up is doubled until as many tokens have left as are inside (``mist.timed``), so that an empty deployment
    is not what is measured; 0 measures it from its first request. Arrivals go on until the last request of the window
    has ended, for at most ``patience`` cycles more, or that many times twice the longest stay so far. With ``drain``
    nothing arrives after it, and the window lasts until the last answer: what a benchmark client does; it and a closed
    loop count requests, warm up for exactly ``warmup`` and have no need of patience.
    """

    warmup: float = 0.05
    patience: float = 1.0
    drain: bool = False

    def __post_init__(self) -> None:
        for field in ("warmup", "patience"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")


@dataclass(frozen=True)
class Scenario:
    """Everything a simulation depends on."""

    pools: Mapping[str, PoolSpec]
    workload: Workload
    slo: SLO
    price: PriceList
    link: LinkSpec | None = None
    window: Window = Window()
    seed: int = 0
    handover: HandoverSpec = GLOBAL
    faults: Faults = NO_FAULTS
    roles: Roles = FIXED_ROLES
    network: Network = ONE_LINK
    pipeline: Pipeline = CHAT
    stations: Mapping[str, StationSpec] = dataclasses.field(default_factory=dict)
    hosts: Mapping[str, HostSpec] = dataclasses.field(default_factory=dict)
    links: Mapping[str, LinkSpec] = dataclasses.field(default_factory=dict)  # that stages of the pipeline use
    colocated: Mapping[str, Colocation] = dataclasses.field(default_factory=dict)  # pools on the same devices

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")
        check_pools(self.pools, self.link)
        self._check_prices()
        self._check_network()
        self._check_tiers()
        names = class_names(self.workload)
        check_pipeline(self.pipeline, services(self.pools), self.stations, self.hosts, self.links, names)
        self._check_dynamics()
        with at("colocated"):
            check_colocations(self.colocated, self.pools)
        check_beside(self.colocated, self.pools, self.handover, self.network)
        check_fates(self.colocated, self.faults)
        if self.colocated and not isinstance(self.roles, FixedRoles):
            raise InputError("roles", "switching", "colocated replicas keep their places and roles", ["fixed"])
        try:
            self.slo.check_classes(names)
        except InputError as error:
            raise InputError(f"slo.{error.field}", error.value, error.why, error.choices) from None
        priorities = class_priorities(self.workload)
        for name, spec in self.pools.items():
            if isinstance(spec.router, PrefixAware) and not spec.prefix_caching:
                why = "has nothing to look at: this pool caches no prefixes (prefix_caching=true, where it prefills)"
                raise InputError(f"pools.{name}.router", "prefix_aware", why)
            if getattr(spec.scheduler, "policy", "") == "priority" and len(priorities) < 2:
                why = "has no effect: all requests of this workload have one priority (workload=two_class has two)"
                raise InputError(f"pools.{name}.scheduler.policy", "priority", why)

    def _check_prices(self) -> None:
        """What has no price is told before anything is simulated."""
        for pool in self.pools.values():
            self.price.of(pool.hardware.name)
        for station in self.stations.values():
            station_dollars(station, self.price)
        for name, host in self.hosts.items():
            try:
                host_dollars(host, self.price)
            except InputError as error:
                why = f"{error.why}, or the host's own: hosts.{name}.price, 0 where it comes with the accelerators"
                raise InputError(error.field, error.value, why, error.choices) from None

    def _check_network(self) -> None:
        if not isinstance(self.network, Topology):
            return
        hung = any(tier.at is not None for spec in self.pools.values() for tier in tiers_of(spec.tiers).values())
        if not any(services(self.pools).values()) and not hung:
            why = "no pool hands anything over, and no tier of KV hangs in it (at): it has no effect"
            raise InputError("network", self.network.name, why)
        self.network.check({name: spec.site() for name, spec in self.pools.items()})

    def _check_tiers(self) -> None:
        sinks = services(self.pools)
        passages = names_passages(self.workload) or names_corpus(self.pipeline)
        for name, spec in self.pools.items():
            with at(f"pools.{name}"):
                if isinstance(spec.tiers, PassageTiers) and not passages:
                    why = "has no effect: the prompts of this workload do not say which passages they hold"
                    why = f"{why} (workload=rag_prompts and ragpulse do, a corpus does)"
                    raise InputError("tiers", "PassageTiers", why)
                check_hung(spec.tiers, self.network, spec.node)
                self._check_ahead(spec, self.pools.get(sinks.get(name) or ""))

    def _check_ahead(self, spec: PoolSpec, sink: PoolSpec | None) -> None:
        """InputError unless a pool's tiers go with the decode pool that it hands over to."""
        if sink is None or not isinstance(spec.tiers, StoredTiers | DrawnTiers):
            return
        if spec.tiers.layerwise and self.handover.layerwise:
            why = "caches that come and go layer by layer are not modelled; one of handover.layerwise and this is"
            raise InputError("tiers.layerwise", "true", why, ["false"])
        if isinstance(spec.tiers, StoredTiers) and spec.tiers.decoded:
            blocks = spec.engine.block_tokens, sink.engine.block_tokens
            check_decoded(spec.tiers, self.network, blocks, bool(sink.hardware.host_bandwidth))

    def _check_dynamics(self) -> None:
        for name, spec in self.pools.items():
            if spec.pp > 1 and spec.role == "prefill" and self.handover.layerwise:
                why = "layer-wise hand-over out of a pipeline is not modelled; handover.layerwise=false is"
                raise InputError(f"pools.{name}.pp", spec.pp, why, ["1"])
        replicas = {name: spec.replicas for name, spec in self.pools.items()}
        paired = self._paired()
        scaled = any(isinstance(spec.autoscaler, Autoscale) for spec in self.pools.values())
        switching = not isinstance(self.roles, FixedRoles)
        layouts = {(s.hardware.name, s.tp, s.pp, s.dp, s.ep) for s in (self.pools[name] for name in paired)}
        alike = len(layouts) == 1 and not scaled
        fixed = {n: r for n, r in replicas.items() if isinstance(self.pools[n].autoscaler, Fixed) and not switching}
        for name, spec in self.pools.items():
            scaling = spec.autoscaler
            if isinstance(scaling, Autoscale) and isinstance(scaling.policy, SloAttainment) and not list(self.slo):
                why = "without a limit in slo every request is within it: no effect"
                raise InputError(f"pools.{name}.autoscaler", "slo_attainment", why)
        with at("roles"):
            if switching and len(paired) > 2:
                raise InputError("", "switching", "is modelled for one prefill and one decode pool only", ["fixed"])
            self.roles.check(alike, paired)
        with at("handover"):
            check_handover(self.handover, paired, not scaled and not switching)
        check_crews(self.stations, self.pools, self.faults, self.slo)
        with at("faults"):
            fixed |= servers(self.stations, fixed=True)
            check_faults(self.faults, fixed, replicas | servers(self.stations, fixed=False))

    def _paired(self) -> dict[str, int]:
        """Replicas of the pools that hand over and take over; of any one pool where there are none."""
        pairs = {name for pair in services(self.pools).items() if pair[1] for name in pair}
        replicas = {name: spec.replicas for name, spec in self.pools.items() if name in pairs}
        return replicas or {name: spec.replicas for name, spec in islice(self.pools.items(), 1)}

    def nodes(self, pool: str, replicas: int) -> dict[int, int]:
        """The nodes of so many replicas of a pool, by number; one for all where the network says nothing of nodes."""
        if not isinstance(self.network, Topology):
            return dict.fromkeys(range(replicas), 0)
        sites = {name: spec.site() for name, spec in self.pools.items()}
        places, kept = self.network.places(sites), sites[pool].replicas
        return {index: places[pool, index % kept] for index in range(replicas)}

    @property
    def rate(self) -> float:
        """Offered requests per second."""
        return self.workload.own_rate() if self.workload.rate is None else self.workload.rate

    @property
    def dollars_per_hour(self) -> float:
        parts = {name: 1 / len(place.shares) for place in self.colocated.values() for name in place.shares}
        pools = sum(s.devices * parts.get(n, 1.0) * self.price.of(s.hardware.name) for n, s in self.pools.items())
        stations = sum(station_dollars(spec, self.price) for spec in self.stations.values())
        nodes = {name: self.nodes(name, spec.replicas) for name, spec in self.pools.items()}
        pools += sum(tier_dollars(spec.tiers, self.network, nodes[name]) for name, spec in self.pools.items())
        return pools + stations + sum(host_dollars(spec, self.price) for spec in self.hosts.values())


@contextmanager
def at(place: str) -> Iterator[None]:
    """What is wrong in here is wrong with an option of ``place``."""
    try:
        yield
    except InputError as error:
        whole = ".".join(part for part in (place, error.field) if part)
        raise type(error)(whole, error.value, error.why, error.choices) from None
