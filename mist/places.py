"""Whether the stages of a pipeline and the places of a cluster find each other."""

from collections.abc import Collection, Mapping

from mist.clients.encoder_station import EncoderStation
from mist.clients.host import HostSpec
from mist.clients.station import StationSpec
from mist.clients.text_station import DeviceEncoder, HostEncoder
from mist.clients.work_station import HostStation
from mist.errors import InputError
from mist.plan.routing import ByClass
from mist.plan.stages import Generate, Pipeline, Serve, Transfer, everything


def check_pipeline(  # noqa: PLR0917
    pipeline: Pipeline,
    pools: Collection[str],
    stations: Mapping[str, StationSpec],
    hosts: Mapping[str, HostSpec],
    links: Collection[str],
    classes: tuple[str, ...],
) -> None:
    """InputError unless every stage has a place to go to, and every place a stage that goes there.

    ``pools`` are those that requests enter, ``classes`` those of the workload. A host may stand idle: it is paid for.
    """
    unused = {f"pools.{name}": name for name in pools}
    unused |= {f"links.{name}": name for name in links}
    unused |= {f"stations.{name}": name for name in stations}
    found: tuple[str, int] | None = None  # where, and how many passages, by the last search
    for address, stage in everything(pipeline.stages):
        where = f"pipeline.{address}"
        if isinstance(stage, Generate):
            unused.pop(f"pools.{_pool_of(stage, where, pools)}", None)
        elif isinstance(stage, Serve):
            _check_visit(stage, where, stations)
            found = _check_passages(stage, where, stations[stage.station], found)
            unused.pop(f"stations.{stage.station}", None)
        elif isinstance(stage, Transfer):
            if stage.link not in links:
                raise InputError(f"{where}.link", stage.link, "no such link in this cluster", sorted(links))
            unused.pop(f"links.{stage.link}", None)
        elif isinstance(stage, ByClass):
            stage.check(where, classes)
    for name, spec in stations.items():
        if isinstance(spec, HostStation | HostEncoder) and spec.host not in hosts:
            raise InputError(f"stations.{name}.host", spec.host, "no such host", sorted(hosts))
    for address, name in unused.items():
        raise InputError(address, name, "has no effect: no stage of the pipeline leads there (mist list pipeline)")


def _check_passages(
    stage: Serve, where: str, spec: StationSpec, found: tuple[str, int] | None
) -> tuple[str, int] | None:
    """The passages there are after this stage; InputError where it takes more of them than there are."""
    if stage.kind == "retrieve":
        k = getattr(getattr(spec, "work", None), "k", None)  # of an index
        if k is not None and stage.piece_tokens is not None and stage.pieces > k:
            raise InputError(f"{where}.pieces", stage.pieces, f"stations.{stage.station} finds {k} (its k)")
        return None if k is None else (f"stations.{stage.station}", k)
    if stage.kind != "rerank":
        return found
    if found is not None and stage.items > found[1]:
        raise InputError(f"{where}.items", stage.items, f"{found[0]} finds {found[1]} (its k)")
    if stage.piece_tokens is not None and stage.pieces > stage.items:
        raise InputError(f"{where}.pieces", stage.pieces, f"only {stage.items} were reranked (items)")
    return where, stage.items


def _pool_of(stage: Generate, where: str, pools: Collection[str]) -> str:
    if not pools:
        raise InputError(where, "generate", "this cluster has no pools")
    if stage.pool is None:
        if len(pools) > 1:
            raise InputError(f"{where}.pool", "(nothing)", "must be named where there are several", sorted(pools))
        return next(iter(pools))
    if stage.pool not in pools:
        raise InputError(f"{where}.pool", stage.pool, "no such pool that requests enter", sorted(pools))
    return stage.pool


def _check_visit(stage: Serve, where: str, stations: Mapping[str, StationSpec]) -> None:
    if stage.station not in stations:
        why = "no such station in this cluster" if stations else "this cluster has no stations"
        raise InputError(f"{where}.station", stage.station, why, sorted(stations))
    spec = stations[stage.station]
    if spec.timed and stage.time is None:
        raise InputError(f"{where}.time", "(nothing)", f"{stage.station} takes as long as its visitors draw")
    if not spec.timed and stage.time is not None:
        raise InputError(f"{where}.time", type(stage.time).__name__, f"has no effect: {stage.station} has a model")
    if stage.tokens is not None and not isinstance(spec, EncoderStation | HostEncoder | DeviceEncoder):
        raise InputError(f"{where}.tokens", type(stage.tokens).__name__, "has no effect: only models read tokens")
    if stage.items > 1 and spec.timed:
        raise InputError(f"{where}.items", stage.items, "has no effect where the time is drawn")
