"""What the pools of engines did in a run, and what they cost."""

from collections.abc import Sequence

from mist.clients.cascading import CascadeUse, CascadingClient
from mist.clients.speculative import SpeculativeClient
from mist.cluster import Cluster
from mist.fleet_report import fleet_report
from mist.memory.choice import prefix_use, swap_use
from mist.metrics import PoolReport, SpeculationReport
from mist.perf.provenance import shares, typical
from mist.policy import Scheduler
from mist.replicas import Pool
from mist.request import Request
from mist.scenario import Scenario
from mist.spans import Span
from mist.tiers.prices import mean_tier_dollars, tier_dollars


def pool_report(
    scenario: Scenario, cluster: Cluster, name: str, window: tuple[float, float], requests: Sequence[Request]
) -> PoolReport:
    """What pool ``name`` did in a run of these requests; its fleet's counts and its price are means over the window."""
    pool, elapsed = cluster.pools[name], cluster.kernel.now
    spec, clients, drawn = pool.spec, pool.everybody, pool.joules(elapsed)
    degrees = {"tp": spec.tp, "pp": spec.pp, "dp": spec.dp, "ep": spec.ep}
    fleet = None if pool.fleet is None else fleet_report(pool.fleet, *window)
    replicas = spec.replicas if fleet is None else fleet.mean_replicas
    up_seconds = spec.replicas * elapsed if fleet is None else fleet.up_seconds
    rented = spec.devices * elapsed if fleet is None else spec.replica.devices * fleet.replica_seconds
    return PoolReport(
        model=spec.model.name,
        hardware=spec.hardware.name,
        role=spec.role,
        tp=spec.tp,
        replicas=spec.replicas,
        devices=spec.devices,
        perf=type(spec.perf).__name__.lower(),
        engine=f"{spec.engine.name} {spec.engine.version}",
        kv_blocks=pool.blocks,
        kv_tokens=pool.blocks * pool.block_tokens,
        kv_peak=max(client.kv.peak for client in clients) / pool.blocks,
        utilization=sum(client.busy_by_now for client in clients) / up_seconds if up_seconds else 0.0,
        preemptions=sum(client.preemptions for client in clients),
        steps=sum(client.steps for client in clients),
        dollars_per_hour=spec.replica.devices * replicas * pool.part * scenario.price.of(spec.hardware.name)
        + _tiers(scenario, cluster, pool, window),
        scheduler=_named(spec.scheduler),
        layout=" x ".join(f"{kind} {degree}" for kind, degree in degrees.items() if degree > 1),
        node=spec.node.name,
        joules=drawn,
        watts=drawn / rented if rented else 0.0,
        speculation=_speculation(pool),
        fleet=fleet,
        prefix=prefix_use([client.kv for client in clients]),
        swap=swap_use([client.kv for client in clients]),
        cascade=_cascade(pool),
        tiers=pool.fetches.use() if pool.fetches is not None else None,
        step_time_sources=_sources(pool, requests),
    )


def _tiers(scenario: Scenario, cluster: Cluster, pool: Pool, window: tuple[float, float]) -> float:
    """Dollars per hour of the stores behind a pool, on average over the window."""
    tiers, fleet, wires = pool.spec.tiers, pool.fleet, cluster.wires
    if fleet is None:
        return tier_dollars(tiers, scenario.network, scenario.nodes(pool.name, pool.spec.replicas))

    def node(span: Span) -> int:
        return 0 if wires is None else wires.node((pool.name, span.replica), span.since)

    spans = fleet.history(max(fleet.kernel.now, window[1]))
    return mean_tier_dollars(tiers, scenario.network, node, spans, *window)


def _sources(pool: Pool, requests: Sequence[Request]) -> dict[str, float]:
    """How the pool's step times are known, at its mean steps."""
    done = [request for request in requests if request.finished >= 0]
    if not done:
        return {}
    prompt, answer = (sum(getattr(r, name) for r in done) / len(done) for name in ("input", "output"))
    steps = sum(client.steps for client in pool.everybody)
    each = typical(len(done), prompt, answer, steps, pool.spec.scheduler.token_budget, pool.spec.role)
    return shares(pool.stages, each)


def _speculation(pool: Pool) -> SpeculationReport | None:
    drafts = pool.spec.speculation
    if not drafts.tokens:
        return None
    counts = [client.acceptance for client in pool.everybody if isinstance(client, SpeculativeClient)]
    verifications, drafted, accepted = (
        sum(getattr(count, name) for count in counts) for name in ("verifications", "drafted", "accepted")
    )
    return SpeculationReport(
        drafts.name, drafts.tokens, drafted, accepted, accepted / max(drafted, 1), 1 + accepted / max(verifications, 1)
    )


def _cascade(pool: Pool) -> CascadeUse | None:
    uses = [client.cascade for client in pool.everybody if isinstance(client, CascadingClient)]
    return CascadeUse(sum(u.steps for u in uses), sum(u.spared_tokens for u in uses)) if uses else None


def _named(scheduler: Scheduler) -> str:
    """A policy is known by its file, and by the order of its line where that is an option."""
    name = type(scheduler).__module__.rpartition(".")[2]
    order = getattr(scheduler, "policy", "fcfs")
    return name if order == "fcfs" else f"{name} {order}"
