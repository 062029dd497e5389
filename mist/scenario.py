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
from mist.pool import PoolSpec, check_pools, services
from mist.price import PriceList
from mist.roles import FIXED_ROLES, FixedRoles, Roles
from mist.routers.prefix_aware import PrefixAware
from mist.scaling import Autoscale, Fixed
from mist.slo import SLO
from mist.station_report import host_dollars, station_dollars
from mist.tiers.passages import PassageTiers
from mist.tiers.spec import NoTiers
from mist.topology import ONE_LINK, Network, Topology
from mist.workload.traffic import Workload, class_names, class_priorities, names_passages


@dataclass(frozen=True)
class Window:
    """What is measured: one cycle of the traffic, after ``warmup`` of a cycle.

    Arrivals go on until the last request of the window has ended, for at most ``patience`` cycles more. With
    ``drain`` nothing arrives after it, and the window lasts until the last answer: what a benchmark client does.
    In a closed loop the window's requests are counted, and it has no need of patience.
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
        for spec in self.pools.values():
            self.price.of(spec.hardware.name)  # told before anything is simulated
        self._check_network()
        passages = names_passages(self.workload) or names_corpus(self.pipeline)
        for name, spec in self.pools.items():
            if isinstance(spec.tiers, PassageTiers) and not passages:
                why = "has no effect: the prompts of this workload do not say which passages they hold"
                raise InputError(
                    f"pools.{name}.tiers",
                    "PassageTiers",
                    f"{why} (workload=rag_prompts and ragpulse do, a corpus does)",
                )
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

    def _check_network(self) -> None:
        if not isinstance(self.network, Topology):
            return
        if len(self.pools) < 2:
            raise InputError("network", self.network.name, "a single pool hands nothing over: it has no effect")
        self.network.check({name: spec.site() for name, spec in self.pools.items()})

    def _check_dynamics(self) -> None:
        for name, spec in self.pools.items():
            if spec.pp > 1 and spec.role == "prefill" and self.handover.layerwise:
                why = "layer-wise hand-over out of a pipeline is not modelled; handover.layerwise=false is"
                raise InputError(f"pools.{name}.pp", spec.pp, why, ["1"])
            if not isinstance(spec.tiers, NoTiers) and not (self.faults == NO_FAULTS and self.roles == FIXED_ROLES):
                why = "are not modelled where replicas fail or switch roles"
                raise InputError(f"pools.{name}.tiers", "(some)", why, ["none"])
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

    @property
    def rate(self) -> float:
        """Offered requests per second."""
        return self.workload.own_rate() if self.workload.rate is None else self.workload.rate

    @property
    def dollars_per_hour(self) -> float:
        parts = {name: 1 / len(place.shares) for place in self.colocated.values() for name in place.shares}
        pools = sum(s.devices * parts.get(n, 1.0) * self.price.of(s.hardware.name) for n, s in self.pools.items())
        stations = sum(station_dollars(spec, self.price) for spec in self.stations.values())
        pools += sum(spec.tier_dollars for spec in self.pools.values())
        return pools + stations + sum(host_dollars(spec, self.price) for spec in self.hosts.values())


@contextmanager
def at(place: str) -> Iterator[None]:
    """What is wrong in here is wrong with an option of ``place``."""
    try:
        yield
    except InputError as error:
        whole = ".".join(part for part in (place, error.field) if part)
        raise type(error)(whole, error.value, error.why, error.choices) from None
