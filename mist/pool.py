"""A pool: equal engines on devices of their own."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

from mist.clients.cascading import no_cascade
from mist.clients.llm import LLMClient
from mist.clients.speculative import check_speculation
from mist.drafting import DraftedLoad, DraftedSteps, check_prompt_drafting, drafting_replica
from mist.errors import InputError
from mist.fleet import Fleet, seconds
from mist.hardware import HardwareSpec
from mist.memory.choice import SWAP_SPACE, Preemption, check_memory
from mist.memory.swap import HostMemory
from mist.model import ModelSpec
from mist.network import LinkSpec
from mist.node import ISOLATED, NodeSpec
from mist.perf.base import PerfModel, Replica, StepModel
from mist.perf.collective import fabric
from mist.perf.engine import EngineProfile
from mist.perf.footprint import block_bytes, check_layout, kv_blocks
from mist.perf.power import LINEAR, LinearPower, Power, joules
from mist.perf.profile import check_profile
from mist.perf.stages import hop_time, stages
from mist.policy import Router, Scheduler
from mist.request import Request
from mist.routing import Candidates
from mist.scaling import FIXED, Autoscale, Scaling
from mist.speculation import OFF, Speculation
from mist.streams import stream
from mist.tiers.fetches import Fetches, Layout
from mist.tiers.spec import NO_TIERS, NoTiers, Tiers, tier_dollars
from mist.topology import Site
from mist.units import Bytes

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class PoolSpec:
    """``replicas`` equal engines, each on ``tp * dp * pp`` devices of its own.

    ``tp`` devices share the layers of a stage, ``pp`` stages share the model; ``dp`` copies of attention share
    the experts of a mixture, which lie in ``ep`` groups (see Replica). The scheduler's limits are those of a
    replica, all copies together.

    ``role`` says which stages it serves. ``kv_blocks`` is the engine's own count of KV blocks per replica,
    as its log prints it, those it keeps for itself included; None computes it from memory. ``prefix_caching``
    finds full KV blocks again by their content. A preempted request is computed again or, with
    ``preemption=swap``, waits in ``swap_space`` bytes of host memory per device (None is 4 GiB).

    ``tiers`` of memory behind the devices keep KV blocks that are fetched instead of computed again.
    ``hands_to`` names the decode pool that a prefill pool hands over to; None is the only one.
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
    autoscaler: Scaling = FIXED
    prefix_caching: bool = False
    preemption: Preemption = "recompute"
    swap_space: Bytes | None = None
    hands_to: str | None = None
    tiers: Tiers = NO_TIERS

    def __post_init__(self) -> None:
        for field in ("tp", "pp", "dp", "ep", "replicas"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        reserved = self.engine.reserved_blocks
        if self.kv_blocks is not None and self.kv_blocks <= reserved:
            beside = f" beside the {reserved} that {self.engine.name} keeps for itself" if reserved else ""
            raise InputError("kv_blocks", self.kv_blocks, f"must be at least 1{beside}")
        check_memory(self.prefix_caching, self.preemption, self.swap_space, self.role)
        if self.preemption == "swap" and not self.hardware.host_bandwidth:
            raise InputError("preemption", "swap", f"{self.hardware.name} has no link to a host")
        self.autoscaler.check(self.replicas)
        if self.pp > 1 and self.preemption == "swap":
            raise InputError("pp", self.pp, "preemption by swap is not modelled for pipelines", ["1"])
        if self.preemption == "swap" and (self.dp > 1 or self.speculation.tokens):
            raise InputError("preemption", "swap", "is not modelled with dp > 1 or with speculation", ["recompute"])
        self._check_tiers()
        check_layout(self.replica)
        if self.speculation.tokens:
            for field in ("pp", "dp"):
                if getattr(self, field) > 1:
                    why = (
                        f"speculation ({self.speculation.name}) is modelled on one stage and one copy of attention only"
                    )
                    raise InputError(field, getattr(self, field), why, ["1"])
        check_speculation(self.speculation, self.replica, self.scheduler, self.role != "prefill")
        check_profile(self.perf, self.replica, self.speculation.name if self.speculation.tokens else "")
        self.steptimes()  # what a perf model lacks for them is an error of the input, told before anything runs

    def _check_tiers(self) -> None:
        if isinstance(self.tiers, NoTiers):
            return
        self.tiers.check(self.prefix_caching)
        if self.role == "decode":
            raise InputError("tiers", "(some)", "a decode pool is sent whole caches", ["none"])
        if not self.hardware.host_bandwidth:
            raise InputError("tiers", "(some)", f"{self.hardware.name} has no link to a host", ["none"])
        elastic = isinstance(self.autoscaler, Autoscale)
        if self.pp > 1 or self.speculation.tokens or self.preemption == "swap" or elastic:
            why = "are not modelled together with pp > 1, speculation, preemption=swap or an autoscaler"
            raise InputError("tiers", "(some)", why, ["none"])

    @property
    def tier_dollars(self) -> float:
        """Dollars per hour of the stores behind its replicas."""
        return tier_dollars(self.tiers, self.replicas)

    def layout(self, name: str, stages: Sequence[StepModel]) -> Layout:
        """What tiers have to know of it."""
        return Layout(
            name=name,
            replicas=self.replicas,
            block_tokens=self.engine.block_tokens,
            bytes_per_token=self.model.kv_bytes_per_token,
            layers=self.model.layers,
            port=(self.hardware.host_bandwidth or inf) * self.replica.devices,
            chunk=self.scheduler.token_budget,
            stages=stages,
        )

    @property
    def replica(self) -> Replica:
        return Replica(self.model, self.hardware, self.tp, self.engine, self.pp, self.dp, self.ep, self.node)

    @property
    def devices(self) -> int:
        return self.replica.devices * self.replicas

    def blocks(self, drafts: Speculation | None = None) -> int:
        """KV blocks that requests can use in one replica; Infeasible, with the numbers, where the model does not fit.

        The engine's own, such as the null block of vLLM V1, are taken off, and so is the room of ``drafts``.
        """
        drafts, model = drafts or self.speculation, self.model
        rows = self.scheduler.max_running * (1 + drafts.tokens)
        beside = drafts.drafter(model), drafts.weight_bytes(model)
        computed = kv_blocks(self.replica, self.scheduler.token_budget, rows, *beside)
        return (computed if self.kv_blocks is None else self.kv_blocks) - self.engine.reserved_blocks

    @property
    def no_cascade(self) -> str:
        """Why it reads no common prefix once where its engine would; empty if it does."""
        drafts = self.speculation.tokens
        return no_cascade(self.replica, self.perf, prefix_caching=self.prefix_caching, role=self.role, drafts=drafts)

    def host(self) -> HostMemory | None:
        """Where preempted requests wait; None where they are computed again."""
        if self.preemption == "recompute":
            return None
        size = block_bytes(self.replica)
        space = SWAP_SPACE if self.swap_space is None else self.swap_space
        return HostMemory(int(space // size), size, self.replica.devices, self.hardware.host_bandwidth)

    def site(self) -> Site:
        """What its replicas bring to a network, with places for all there may ever be."""
        links = fabric(self.replica, 1.0)
        inside = LinkSpec(self.hardware.name, links.bandwidth, links.latency)
        out = self.node.bandwidth
        outside = None if out is None else LinkSpec(self.node.name, out, self.node.latency)
        most = self.autoscaler.max_replicas if isinstance(self.autoscaler, Autoscale) else self.replicas
        return Site(self.replica.devices, most, links.devices, inside, outside)

    def steptimes(self, drafts: Speculation | None = None) -> list[StepModel]:
        """Step times of one replica's pipeline stages, the passes of a drafter included."""
        drafts, targets = drafts or self.speculation, [self.perf.of(stage) for stage in stages(self.replica)]
        if not drafts.tokens:
            return targets
        (target,) = targets
        drafter = drafts.drafter(self.model)
        drafting = self.perf.of(drafting_replica(self.replica, drafter)) if drafter is not None else None
        return [DraftedSteps(target, drafting, drafts)]

    def loads(self, drafts: Speculation | None = None) -> list[Power]:
        """What steps ask of the devices of each pipeline stage, the passes of a drafter included."""
        drafts = drafts or self.speculation
        efficiency = [getattr(self.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth")]
        targets = [self.power.of(stage, *efficiency) for stage in stages(self.replica)]
        drafter = drafts.drafter(self.model)
        if drafter is None:
            return [*targets]
        drafting = self.power.of(drafting_replica(self.replica, drafter), *efficiency)
        return [DraftedLoad(targets[0], drafting, drafts)]


class Pool:
    """The replicas of a PoolSpec at work; ``drafts`` is how those who decode draft: prompts pass their drafter too."""

    def __init__(self, name: str, spec: PoolSpec, drafts: Speculation, seed: int = 0) -> None:
        self.name, self.spec = name, spec
        if drafts.drafter(spec.model) is None:  # nothing to prefill for
            drafts = spec.speculation
        self.stages = spec.steptimes(drafts)
        self.loads = spec.loads(drafts)
        self.blocks = spec.blocks(drafts)
        self._longest: float = getattr(spec.scheduler, "longest", inf)
        self.clients: list[LLMClient] = []
        self.outstanding = [0] * spec.replicas  # unfinished requests by replica
        self._fixed: Sequence[int] = range(spec.replicas)  # where none comes or goes
        self.groups = 1  # of affinity
        self.part = 1.0  # of its devices that it pays for; others share those of colocated pools
        self.turns: defaultdict[int | None, int] = defaultdict(int)  # requests routed, by group
        self.fetches: Fetches | None = None  # of a pool with tiers
        self.fleet: Fleet | None = None  # of a pool whose replicas come and go
        self.members: dict[int, dict[int, Request]] | None = None  # by replica, where one may fail
        chunk = spec.scheduler.token_budget
        self._view = Candidates(self.clients, self.stages, chunk, partial(stream, seed, f"router/{name}"))

    def route(self, request: Request, group: int | None = None) -> int | None:
        """The replica the request goes to, of its affinity group if one is given; None while none is up."""
        among, outstanding = self._fixed, self.outstanding
        if self.fleet is not None or group is not None:
            up = self.fleet.up if self.fleet is not None else self._fixed
            among = [index for index in up if group is None or index % self.groups == group]
            outstanding = [outstanding[index] for index in among]
        if not outstanding:
            return None
        view = self._view
        view.turn, view.request, view.replicas, view.outstanding = self.turns[group], request, among, outstanding
        index = among[self.spec.router.choose(view)]
        self.turns[group] += 1
        self.outstanding[index] += 1
        return index

    def join(self, request: Request, index: int) -> None:
        request.replica = index
        if self.members is not None:
            self.members[index][request.id] = request

    def leave(self, request: Request) -> None:
        self.outstanding[request.replica] -= 1
        if self.members is not None:
            del self.members[request.replica][request.id]

    def settle(self, index: int) -> None:
        """Something may have left this replica for good."""
        if self.fleet is not None:
            self.fleet.settle(index)

    @property
    def everybody(self) -> list[LLMClient]:
        """Every client there has been."""
        return self.clients if self.fleet is None else self.fleet.everybody()

    def hop_time(self, tokens: int, stage: int) -> float:
        """Seconds to send the activations of ``tokens`` from a pipeline stage to the next."""
        return hop_time(self.spec.replica, tokens, stage, getattr(self.spec.perf, "link_efficiency", 1.0))

    def joules(self, now: float) -> float:
        """Energy drawn so far, what was spent of the steps under way included."""
        hardware, devices = self.spec.hardware, self.spec.replica.devices
        rented = now * len(self.clients) if self.fleet is None else seconds(self.fleet.history(now))
        stepping = sum(joules(hardware, devices, 0.0, *client.worked()) for client in self.everybody)
        return joules(hardware, devices, rented * self.part, 0.0, 0.0) + stepping

    def refusal(self, request: Request) -> str:
        """Why this pool can never serve the request; empty if it can."""
        model, tokens = self.spec.model, request.input + request.output
        if tokens > model.context:
            return f"{tokens} tokens, {model.name} takes {model.context}"
        if tokens > self._longest:
            return f"{tokens} tokens, without chunked prefill the engine takes at most token_budget, {self._longest}"
        held = request.input + 1 if self.spec.role == "prefill" else tokens  # prefill hands over after one token
        need = -(-(held + self.spec.speculation.tokens) // self.spec.engine.block_tokens)
        # A request lives in one copy, and pipeline lanes that each held one of more than their share would preempt
        # each other for ever.
        most = self.blocks // (self.spec.dp * self.spec.pp)
        return f"needs {need} KV blocks, a replica of {self.name} has {most}" if need > most else ""


def services(pools: Mapping[str, PoolSpec]) -> dict[str, str | None]:
    """Pools that requests enter, each with the decode pool behind it; None where it decodes itself. There may be none.

    Raises InputError unless every prefill pool has a decode pool of its own, and every decode pool a prefill pool.
    """
    roles = sorted(spec.role for spec in pools.values())
    decodes = [name for name, spec in pools.items() if spec.role == "decode"]
    prefills = {name: spec.hands_to for name, spec in pools.items() if spec.role == "prefill"}
    if len(prefills) != len(decodes):
        why = "every prefill pool needs a decode pool of its own; the other pools do both"
        raise InputError("pools", roles, why)
    for name, spec in pools.items():
        if spec.hands_to is not None and spec.role != "prefill":
            raise InputError(f"pools.{name}.hands_to", spec.hands_to, f"has no effect with role {spec.role}")
    if list(prefills.values()) == [None]:
        prefills = dict.fromkeys(prefills, decodes[0])
    for name, sink in prefills.items():
        if sink not in decodes or list(prefills.values()).count(sink) > 1:
            raise InputError(f"pools.{name}.hands_to", sink, "must name a decode pool of its own", decodes)
    return {name: prefills.get(name) for name, spec in pools.items() if spec.role != "decode"}


def check_pools(pools: Mapping[str, PoolSpec], link: LinkSpec | None) -> None:
    """Raises InputError unless the pools' roles make ways from prompt to last token."""
    pairs = {name: sink for name, sink in services(pools).items() if sink is not None}
    if not pairs:
        if link is not None:
            raise InputError("link", link.name, "no pool hands anything over: a link has no effect")
        return
    if link is None:
        raise InputError("link", "(nothing)", "prefill and decode pools need a link between them")
    for source, sink in pairs.items():
        if pools[source].model != pools[sink].model:
            why = f"cannot decode the KV cache of {pools[source].model.name}"
            raise InputError(f"pools.{sink}.model", pools[sink].model.name, why)
        try:
            check_prompt_drafting(pools[source].replica, pools[source].preemption, pools[sink].speculation)
        except InputError as error:
            raise type(error)(f"pools.{source}.{error.field}", error.value, error.why, error.choices) from None
