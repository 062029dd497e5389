"""Pools of clients, and the way of a request through them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mist.clients.llm import LLMClient
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.memory.choice import SWAP_SPACE, Preemption, check_memory, make_pool
from mist.memory.swap import HostMemory
from mist.model import ModelSpec
from mist.network import Link, LinkSpec
from mist.perf.base import PerfModel, Replica, StepModel
from mist.perf.engine import EngineProfile
from mist.perf.footprint import block_bytes, check_layout, kv_blocks
from mist.policy import Router, Scheduler
from mist.request import Request, Stage, Visit
from mist.units import Bytes

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class PoolSpec:
    """``replicas`` equal engines, each on ``tp`` devices of its own.

    ``role`` says which stages it serves. ``kv_blocks`` is the engine's own count of KV blocks per replica,
    as its log prints it, those it keeps for itself included; None computes it from memory. ``prefix_caching``
    finds full KV blocks again by their content. A preempted request is computed again or, with
    ``preemption=swap``, waits in ``swap_space`` bytes of host memory per device (None is 4 GiB).
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
    prefix_caching: bool = False
    preemption: Preemption = "recompute"
    swap_space: Bytes | None = None

    def __post_init__(self) -> None:
        for field in ("tp", "replicas"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        reserved = self.engine.reserved_blocks
        if self.kv_blocks is not None and self.kv_blocks <= reserved:
            beside = f" beside the {reserved} that {self.engine.name} keeps for itself" if reserved else ""
            raise InputError("kv_blocks", self.kv_blocks, f"must be at least 1{beside}")
        check_memory(self.prefix_caching, self.preemption, self.swap_space, self.role)
        if self.preemption == "swap" and not self.hardware.host_bandwidth:
            raise InputError("preemption", "swap", f"{self.hardware.name} has no link to a host")
        check_layout(self.replica)

    @property
    def replica(self) -> Replica:
        return Replica(self.model, self.hardware, self.tp, self.engine)

    @property
    def devices(self) -> int:
        return self.tp * self.replicas

    def blocks(self) -> int:
        """KV blocks that requests can use in one replica; Infeasible, with the numbers, where the model does not fit.

        The engine's own, such as the null block of vLLM V1, are taken off.
        """
        computed = kv_blocks(self.replica, self.scheduler.token_budget, self.scheduler.max_running)
        return (computed if self.kv_blocks is None else self.kv_blocks) - self.engine.reserved_blocks

    def host(self) -> HostMemory | None:
        """Where preempted requests wait; None where they are computed again."""
        if self.preemption == "recompute":
            return None
        size = block_bytes(self.replica)
        space = SWAP_SPACE if self.swap_space is None else self.swap_space
        return HostMemory(int(space // size), size, self.tp, self.hardware.host_bandwidth)


class Pool:
    """The replicas of a PoolSpec at work."""

    def __init__(self, name: str, spec: PoolSpec) -> None:
        self.name, self.spec = name, spec
        self.steptimes: StepModel = spec.perf.of(spec.replica)
        self.blocks = spec.blocks()
        self.clients: list[LLMClient] = []
        self.outstanding = [0] * spec.replicas  # unfinished requests by replica
        self.routed = 0

    def route(self, request: Request) -> LLMClient:
        index = self.spec.router.choose(self.routed, self.outstanding)
        self.routed += 1
        self.outstanding[index] += 1
        request.replica = index
        return self.clients[index]

    def refusal(self, request: Request) -> str:
        """Why this pool can never serve the request; empty if it can."""
        model, tokens = self.spec.model, request.input + request.output
        if tokens > model.context:
            return f"{tokens} tokens, {model.name} takes {model.context}"
        block_tokens = self.spec.engine.block_tokens
        need = -(-tokens // block_tokens)
        return f"needs {need} KV blocks, a replica of {self.name} has {self.blocks}" if need > self.blocks else ""


class Cluster:
    """Moves requests from stage to stage: one pool for prefill and decode, or one for each and a link."""

    def __init__(self, kernel: Kernel, pools: Mapping[str, PoolSpec], link: LinkSpec | None) -> None:
        self.kernel = kernel
        self.pools = {name: Pool(name, spec) for name, spec in pools.items()}
        self.link = Link(kernel, link) if link is not None else None
        self.arrived = self.completed = self.refused = 0
        stages = {pool.spec.role: pool for pool in self.pools.values()}
        self._entry = stages.get("both") or stages["prefill"]
        self._decode = stages.get("decode")
        for pool in self.pools.values():
            for index in range(pool.spec.replicas):
                pool.clients.append(self._client(pool, index))

    def _client(self, pool: Pool, index: int) -> LLMClient:
        name = f"{pool.name}/{index}"
        client = LLMClient(
            self.kernel,
            name,
            scheduler=pool.spec.scheduler,
            steptimes=pool.steptimes,
            kv=make_pool(pool.blocks, pool.spec.engine.block_tokens, pool.spec.prefix_caching, pool.spec.host()),
            finished=partial(self._finished, pool),
        )
        if pool.spec.role == "prefill":
            client.prefilled = partial(self._hand_over, pool, client)
        return client

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

    def _hand_over(self, pool: Pool, source: LLMClient, request: Request) -> None:
        """The source keeps the KV until the decode client has fetched it."""
        pool.outstanding[request.replica] -= 1
        self.kernel.route(self._expect, source, source.kv.detach(request), request)

    def _expect(self, source: LLMClient, held: Any, request: Request) -> None:
        assert self._decode is not None
        client = self._decode.route(request)
        client.expect(request, partial(self._fetch, source, held, client))

    def _fetch(self, source: LLMClient, held: Any, client: LLMClient, request: Request) -> None:
        assert self.link is not None
        size = request.computed * self._entry.spec.model.kv_bytes_per_token
        self.link.send(size, self._fetched, source, held, client, request, self.kernel.now)

    def _fetched(self, source: LLMClient, held: Any, client: LLMClient, request: Request, started: float) -> None:
        assert self.link is not None
        now = self.kernel.now
        request.visits.append(Visit(Stage.HANDOVER, self.link.spec.name, request.queued, started, now))
        request.queued = now
        source.give_back(held)
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
