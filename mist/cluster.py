"""Pools of clients, and the way of a request through them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mist.clients.llm import LLMClient
from mist.clients.pipeline import PipelineClient, Stages
from mist.clients.speculative import SpeculativeClient, check_speculation
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.model import ModelSpec
from mist.network import Link, LinkSpec
from mist.node import ISOLATED, NodeSpec
from mist.perf.base import PerfModel, Replica, StepModel
from mist.perf.engine import EngineProfile
from mist.perf.footprint import check_layout, kv_blocks
from mist.perf.power import LINEAR, LinearPower, joules
from mist.perf.stages import hop_time, stages
from mist.policy import Router, Scheduler
from mist.request import Request, Stage, Visit
from mist.speculation import OFF, DraftedSteps, Speculation, drafting_replica

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class PoolSpec:
    """``replicas`` equal engines, each on ``tp * dp * pp`` devices of its own.

    ``tp`` devices share the layers of a stage, ``pp`` stages share the model; ``dp`` copies of attention share
    the experts of a mixture, which lie in ``ep`` groups (see Replica). The scheduler's limits are those of a
    replica, all copies together.

    ``role`` says which stages it serves. ``kv_blocks`` is the engine's own count of KV blocks per replica,
    as its log prints it; None computes it from memory.
    """

    model: ModelSpec
    hardware: HardwareSpec
    engine: EngineProfile
    perf: PerfModel
    scheduler: Scheduler
    router: Router
    tp: int = 1
    replicas: int = 1
    role: Role = "both"
    kv_blocks: int | None = None
    pp: int = 1
    dp: int = 1
    ep: int = 1
    node: NodeSpec = ISOLATED
    power: LinearPower = LINEAR
    speculation: Speculation = OFF

    def __post_init__(self) -> None:
        for field in ("tp", "pp", "dp", "ep", "replicas"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise InputError("kv_blocks", self.kv_blocks, "must be at least 1")
        check_layout(self.replica)
        skew = getattr(self.perf, "expert_skew", 0.0)
        if skew and self.ep == 1:
            raise InputError("perf.expert_skew", skew, "has no effect with ep = 1")
        if self.speculation.tokens:
            for field in ("pp", "dp"):
                if getattr(self, field) > 1:
                    why = (
                        f"speculation ({self.speculation.name}) is modelled on one stage and one copy of attention only"
                    )
                    raise InputError(field, getattr(self, field), why, ["1"])
        check_speculation(self.speculation, self.replica, self.scheduler, self.role != "prefill")

    @property
    def replica(self) -> Replica:
        return Replica(self.model, self.hardware, self.tp, self.engine, self.pp, self.dp, self.ep, self.node)

    @property
    def devices(self) -> int:
        return self.replica.devices * self.replicas

    def blocks(self) -> int:
        """KV blocks of one replica; Infeasible, with the numbers, where the model does not fit."""
        drafts, model = self.speculation, self.model
        rows = self.scheduler.max_running * (1 + drafts.tokens)
        beside = drafts.drafter(model), drafts.weight_bytes(model)
        computed = kv_blocks(self.replica, self.scheduler.token_budget, rows, *beside)
        return computed if self.kv_blocks is None else self.kv_blocks

    def steptimes(self) -> list[StepModel]:
        """Step times of one replica's pipeline stages, its drafter's passes included."""
        targets = [self.perf.of(stage) for stage in stages(self.replica)]
        if not self.speculation.tokens:
            return targets
        (target,) = targets
        drafter = self.speculation.drafter(self.model)
        drafting = self.perf.of(drafting_replica(self.replica, drafter)) if drafter is not None else None
        return [DraftedSteps(target, drafting, self.speculation)]


class Pool:
    """The replicas of a PoolSpec at work."""

    def __init__(self, name: str, spec: PoolSpec) -> None:
        self.name, self.spec = name, spec
        self.stages: list[StepModel] = spec.steptimes()
        efficiency = [getattr(spec.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth")]
        self.loads = [spec.power.of(stage, *efficiency) for stage in stages(spec.replica)]
        self.blocks = spec.blocks()
        self.clients: list[LLMClient | PipelineClient] = []
        self.outstanding = [0] * spec.replicas  # unfinished requests by replica
        self.routed = 0

    def route(self, request: Request) -> LLMClient | PipelineClient:
        index = self.spec.router.choose(self.routed, self.outstanding)
        self.routed += 1
        self.outstanding[index] += 1
        request.replica = index
        return self.clients[index]

    def hop_time(self, tokens: int, stage: int) -> float:
        """Seconds to send the activations of ``tokens`` from a pipeline stage to the next."""
        return hop_time(self.spec.replica, tokens, stage, getattr(self.spec.perf, "link_efficiency", 1.0))

    def joules(self, now: float) -> float:
        """Energy drawn so far."""
        hardware, devices = self.spec.hardware, self.spec.replica.devices
        return sum(joules(hardware, devices, now, client.load, client.busy) for client in self.clients)

    def refusal(self, request: Request) -> str:
        """Why this pool can never serve the request; empty if it can."""
        model, tokens = self.spec.model, request.input + request.output
        if tokens > model.context:
            return f"{tokens} tokens, {model.name} takes {model.context}"
        held = request.input + 1 if self.spec.role == "prefill" else tokens  # prefill hands over after one token
        need = -(-(held + self.spec.speculation.tokens) // self.spec.engine.block_tokens)
        most = self.blocks // self.spec.dp  # a request lives in one copy
        return f"needs {need} KV blocks, a replica of {self.name} has {most}" if need > most else ""


class Cluster:
    """Moves requests from stage to stage: one pool for prefill and decode, or one for each and a link."""

    def __init__(self, kernel: Kernel, pools: Mapping[str, PoolSpec], link: LinkSpec | None, seed: int = 0) -> None:
        self.kernel, self.seed = kernel, seed
        self.pools = {name: Pool(name, spec) for name, spec in pools.items()}
        self.link = Link(kernel, link) if link is not None else None
        self.arrived = self.completed = self.refused = 0
        stages = {pool.spec.role: pool for pool in self.pools.values()}
        self._entry = stages.get("both") or stages["prefill"]
        self._decode = stages.get("decode")
        for pool in self.pools.values():
            for index in range(pool.spec.replicas):
                pool.clients.append(self._client(pool, index))

    def _client(self, pool: Pool, index: int) -> LLMClient | PipelineClient:
        client = self._engine(pool, f"{pool.name}/{index}")
        if pool.spec.role == "prefill":
            client.prefilled = partial(self._hand_over, pool, client)
        return client

    def _engine(self, pool: Pool, name: str) -> LLMClient | PipelineClient:
        scheduler, kv = pool.spec.scheduler, BlockPool(pool.blocks, pool.spec.engine.block_tokens)
        finished = partial(self._finished, pool)
        if pool.spec.pp > 1:
            passage = Stages(self.kernel, pool.stages, pool.hop_time, pool.loads)
            return PipelineClient(self.kernel, name, scheduler=scheduler, stages=passage, kv=kv, finished=finished)
        kind: Callable[..., LLMClient] = LLMClient
        if pool.spec.speculation.tokens:
            kind = partial(SpeculativeClient, speculation=pool.spec.speculation, seed=self.seed)
        client = kind(self.kernel, name, scheduler=scheduler, steptimes=pool.stages[0], kv=kv, finished=finished)
        client.power = pool.loads[0]
        return client

    @property
    def joules(self) -> float:
        """Energy drawn by all pools so far."""
        return sum(pool.joules(self.kernel.now) for pool in self.pools.values())

    @property
    def in_flight(self) -> int:
        """Requests in the system."""
        return self.arrived - self.completed - self.refused

    def arrive(self, request: Request) -> None:
        """A request is here, now."""
        self.arrived += 1
        request.refused = next(filter(None, (pool.refusal(request) for pool in self.pools.values())), "")
        if request.refused:
            self.refused += 1
        else:
            self.kernel.route(self._enter, request)

    def _enter(self, request: Request) -> None:
        self._entry.route(request).submit(request)

    def _finished(self, pool: Pool, request: Request) -> None:
        pool.outstanding[request.replica] -= 1
        self.completed += 1

    def _hand_over(self, pool: Pool, source: LLMClient | PipelineClient, request: Request) -> None:
        """The source keeps the KV until the decode client has fetched it."""
        pool.outstanding[request.replica] -= 1
        blocks, request.blocks = request.blocks, 0
        self.kernel.route(self._expect, source, blocks, request)

    def _expect(self, source: LLMClient | PipelineClient, blocks: int, request: Request) -> None:
        assert self._decode is not None
        client = self._decode.route(request)
        client.expect(request, partial(self._fetch, source, blocks, client))

    def _fetch(
        self, source: LLMClient | PipelineClient, blocks: int, client: LLMClient | PipelineClient, request: Request
    ) -> None:
        assert self.link is not None
        size = request.computed * self._entry.spec.model.kv_bytes_per_token
        self.link.send(size, self._fetched, source, blocks, client, request, self.kernel.now)

    def _fetched(
        self,
        source: LLMClient | PipelineClient,
        blocks: int,
        client: LLMClient | PipelineClient,
        request: Request,
        started: float,
    ) -> None:
        assert self.link is not None
        now = self.kernel.now
        request.visits.append(Visit(Stage.HANDOVER, self.link.spec.name, request.queued, started, now))
        request.queued = now
        source.give_back(blocks)
        client.land(request)


def check_pools(pools: Mapping[str, PoolSpec], link: LinkSpec | None) -> None:
    """Raises InputError unless the pools' roles make one way from prompt to last token."""
    roles = sorted(spec.role for spec in pools.values())
    if roles not in (["both"], ["decode", "prefill"]):
        raise InputError("pools", roles, "roles must be one both, or one prefill and one decode")
    if len(pools) == 1:
        if link is not None:
            raise InputError("link", link.name, "a single pool hands nothing over: a link has no effect")
        return
    if link is None:
        raise InputError("link", "(nothing)", "prefill and decode pools need a link between them")
    by_role = {spec.role: (name, spec) for name, spec in pools.items()}
    (_, source), (name, sink) = by_role["prefill"], by_role["decode"]
    if source.model != sink.model:
        raise InputError(f"pools.{name}.model", sink.model.name, f"cannot decode the KV cache of {source.model.name}")
