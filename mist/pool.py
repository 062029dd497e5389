"""A pool: equal engines on devices of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Literal

from mist.clients.cascading import no_cascade
from mist.clients.hybrid import aligned_block, check_prefix_states, state_blocks
from mist.clients.speculative import check_speculation
from mist.drafting import DraftedLoad, DraftedSteps, drafting_replica
from mist.errors import InputError
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
from mist.perf.measured import Measured
from mist.perf.power import LINEAR, LinearPower, Power
from mist.perf.profile import check_profile
from mist.perf.stages import stages
from mist.policy import Router, Scheduler
from mist.scaling import FIXED, Autoscale, Scaling
from mist.speculation import OFF, Speculation
from mist.tiers.prediction import Layout
from mist.tiers.spec import NO_TIERS, DrawnTiers, NoTiers, StoredTiers, Tiers
from mist.topology import Site
from mist.units import Bytes

Role = Literal["both", "prefill", "decode"]


MOST_REPLICAS = 100_000  # of a pool


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
        if self.replicas > MOST_REPLICAS:
            raise InputError("replicas", self.replicas, f"must be at most {MOST_REPLICAS:,}: more fill the memory")
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
        self._check_states()
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

    def _check_states(self) -> None:
        if not self.model.linear_layers:
            return
        if isinstance(self.tiers, StoredTiers):
            why = f"blocks are stored by content, the states of {self.model.name}'s linear attention are not"
            raise InputError("tiers", type(self.tiers).__name__, why, ["none", "drawn"])
        if self.prefix_caching:
            check_prefix_states(self.replica, self.scheduler, self.speculation.tokens)

    def _check_tiers(self) -> None:
        if isinstance(self.tiers, NoTiers):
            return
        self.tiers.check(self.prefix_caching)
        if self.role == "decode":
            raise InputError("tiers", "(some)", "a decode pool is sent whole caches", ["none"])
        if not self.hardware.host_bandwidth:
            raise InputError("tiers", "(some)", f"{self.hardware.name} has no link to a host", ["none"])
        if self.preemption == "swap":
            why = "swap space is host memory of its own: tiers know neither its room nor what lies in it"
            raise InputError("preemption", "swap", why, ["recompute"])
        if self.pp > 1 and isinstance(self.tiers, StoredTiers | DrawnTiers) and self.tiers.layerwise:
            why = "a layer-wise fetch into a pipeline is not modelled; tiers.layerwise=false is"
            raise InputError("pp", self.pp, why, ["1"])
        if isinstance(self.tiers, StoredTiers) and self.tiers.decoded and self.role == "both":
            raise InputError("tiers.decoded", "true", "has no effect: who prefills and decodes stores all it computes")

    @property
    def port(self) -> float:
        """Bytes per second of one replica's host links together, one direction."""
        return (self.hardware.host_bandwidth or inf) * self.replica.devices

    def layout(self, name: str, stages: Sequence[StepModel], drafts: Speculation) -> Layout:
        """What tiers have to know of it; ``drafts`` is how those who decode draft: the drafter's KV is kept, too."""
        drafter = drafts.drafter(self.model)
        models = [self.model] if drafter is None else [self.model, drafter]
        return Layout(
            name=name,
            block_tokens=self.block_tokens,
            bytes_per_token=sum(model.kv_bytes_per_token for model in models),
            state_bytes=sum(model.state_bytes for model in models),
            layers=sum(model.layers for model in models),
            port=self.port,
            chunk=self.scheduler.token_budget,
            stages=stages,
        )

    @property
    def replica(self) -> Replica:
        whole = Replica(self.model, self.hardware, self.tp, self.engine, self.pp, self.dp, self.ep, self.node)
        if self.prefix_caching and self.model.linear_layers:
            return whole._replace(engine=replace(self.engine, block_tokens=aligned_block(whole)))
        return whole

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block: the engine's own, or what the states of a hybrid model need."""
        return self.replica.engine.block_tokens

    @property
    def state_blocks(self) -> int:
        """Blocks that a prefix cache keeps beside those of tokens for each state; 0 where there are none."""
        return state_blocks(self.replica) if self.prefix_caching and self.model.linear_layers else 0

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
        size, state = block_bytes(self.replica), self.model.state_bytes / self.tp
        space = SWAP_SPACE if self.swap_space is None else self.swap_space
        return HostMemory(int(space // size), size, self.replica.devices, self.hardware.host_bandwidth, state)

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

    @property
    def _rows(self) -> Callable[[int], int]:
        """Tokens computed in a step of so many: CUDA graphs are padded, where step times know of it."""
        if isinstance(self.perf, Measured) and not self.engine.launch_time:
            return partial(self.engine.computed, copies=self.dp)
        return int

    def loads(self, drafts: Speculation | None = None) -> list[Power]:
        """What steps ask of the devices of each pipeline stage, the passes of a drafter included."""
        drafts = drafts or self.speculation
        matmul, bandwidth = (getattr(self.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth"))
        full = partial(self.power.of, matmul=matmul, bandwidth=bandwidth, rows=self._rows)
        targets = [full(stage) for stage in stages(self.replica)]
        drafter = drafts.drafter(self.model)
        if drafter is None:
            return [*targets]
        drafting = full(drafting_replica(self.replica, drafter))
        return [DraftedLoad(targets[0], drafting, drafts)]
