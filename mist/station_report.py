"""What stations and hosts did, and what they cost."""

from dataclasses import dataclass

from mist.clients.host import Host, HostSpec
from mist.clients.station import Station, StationSpec
from mist.crew import CrewedStation
from mist.fleet_report import FleetReport, fleet_report
from mist.price import PriceList


@dataclass(frozen=True)
class StationReport:
    """What one station is and how busy it was, over the whole run."""

    service: str  # the model, or how service times come about
    place: str  # "2 x l4", the host, or nothing
    servers: int | None
    devices: int
    tasks: int
    batches: int
    mean_batch: float  # tasks
    utilization: float | None  # share of time a server was busy; None of servers without limit
    busy_servers: float  # on average over time
    joules: float  # drawn by devices of its own
    dollars_per_hour: float
    items_per_second: float = 0.0  # texts, queries
    tokens_per_second: float | None = None  # that an encoder read; None of others
    recall: float | None = None  # of an index, by the user's table
    fleet: FleetReport | None = None  # of servers that come and go


@dataclass(frozen=True)
class HostReport:
    """What one host is and how busy it was, over the whole run."""

    hardware: str
    cores: int
    core_utilization: float
    bandwidth_utilization: float
    joules: float
    dollars_per_hour: float


def station_report(station: Station, price: PriceList, elapsed: float, window: tuple[float, float]) -> StationReport:
    """``elapsed`` seconds of the run; dollars are those of its ``window``."""
    fleet = fleet_report(station.fleet, *window) if isinstance(station, CrewedStation) else None
    paid = 1.0 if fleet is None else fleet.mean_replicas / (station.spec.servers or 1)
    spec, busy = station.spec, station.busy_by_now / elapsed if elapsed else 0.0
    read = station.tokens if hasattr(spec, "model") else None
    return StationReport(
        service=spec.service,
        place=f"{spec.devices} x {spec.place}" if spec.devices else spec.place,
        servers=spec.servers,
        devices=spec.devices,
        tasks=station.tasks,
        batches=station.batches,
        mean_batch=station.tasks / station.batches if station.batches else 0.0,
        utilization=None if spec.servers is None else busy / spec.servers if fleet is None else _share(station, fleet),
        busy_servers=busy,
        joules=station.joules(elapsed),
        dollars_per_hour=station_dollars(spec, price) * paid,
        fleet=fleet,
        items_per_second=station.items / elapsed if elapsed else 0.0,
        tokens_per_second=None if read is None else read / elapsed if elapsed else 0.0,
        recall=getattr(getattr(spec, "work", None), "recall", None),
    )


def _share(station: Station, fleet: FleetReport) -> float:
    """Of the time that servers were up, what they worked."""
    return station.busy_by_now / fleet.up_seconds if fleet.up_seconds else 0.0


def host_report(host: Host, price: PriceList, elapsed: float) -> HostReport:
    """``elapsed`` seconds of the run."""
    spec = host.spec
    return HostReport(
        hardware=spec.hardware.name,
        cores=spec.cores,
        core_utilization=host.cores.used / (spec.cores * elapsed) if elapsed else 0.0,
        bandwidth_utilization=host.memory.used / (spec.hardware.memory_bandwidth * elapsed) if elapsed else 0.0,
        joules=host.joules(elapsed),
        dollars_per_hour=host_dollars(spec, price),
    )


def station_dollars(spec: StationSpec, price: PriceList) -> float:
    """Per hour, of devices of its own."""
    return spec.devices * price.of(spec.place) if spec.devices else 0.0


def host_dollars(spec: HostSpec, price: PriceList) -> float:
    """Per hour."""
    return price.of(spec.hardware.name) if spec.price is None else spec.price
