"""Options that were typed and change nothing for the deployment they were typed for.

Most such options are refused where they are built. These are not, because whether they matter depends on what a sweep
varies beside them, or because a data sheet carries them for whoever wants them; so what was typed is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.node import ISOLATED
from mist.overrides import Override, parse
from mist.perf.measured import Measured
from mist.perf.profile import Profile
from mist.perf.tables.comm import fuses
from mist.pool import PoolSpec
from mist.scenario import Scenario
from mist.schedulers.guaranteed_no_evict import GuaranteedNoEvict
from mist.tiers.passages import PassageTiers
from mist.tiers.spec import tiers_of
from mist.topology import Topology

# of an engine, in the time of its steps
OVERHEADS = ("step_overhead", "request_overhead", "mixed_overhead", "launch_time", "collective_wait")
TIMED = ("kernels", "captured_tokens", "allreduce")  # of an engine, where its kernels were timed


def refuse_inert(overrides: Sequence[str], config: Mapping[str, Any]) -> None:
    """InputError, with what would make it matter, for the first of ``overrides`` that ``config`` does not depend on."""
    for override, why in _inert(overrides, config):
        raise InputError(override.name, override.raw, f"has no effect: {why}")


def idle(overrides: Sequence[str]) -> dict[str, str]:
    """Those that the deployment they describe together does not depend on, by address, and why."""
    return {override.name: why for override, why in _inert(overrides, None)}


def effective(overrides: Sequence[str]) -> list[str]:
    """Those that matter to the deployment they describe together: what it can be typed with."""
    try:
        idle = {override.text for override, _ in _inert(overrides, None)}
    except InputError:  # told better by whoever builds it
        return list(overrides)
    return [text for text in overrides if text not in idle]


def _inert(overrides: Sequence[str], config: Mapping[str, Any] | None) -> Iterator[tuple[Override, str]]:
    looks = {
        "tiers": _tier, "node": _node, "priority": _priority, "expert_skew": _skew, "hosts": _idle, "link": _link,
        "kernel_factor": _factor, "preemption": _preemption, "swap_space": _preemption,
        "cascade_attention": _cascade, "cascade_overhead": _cascade, "passage_tokens": _passages, "corpus": _passages,
    }  # fmt: skip
    looks |= dict.fromkeys((*OVERHEADS, *TIMED), _engine)
    typed = [(override, looks[key]) for override in map(parse, overrides) for key in looks if key in override.address]
    if not typed:
        return
    scenario = build(Scenario, compose(overrides) if config is None else config)
    for override, look in typed:
        if why := look(override, scenario):
            yield override, why


def _link(override: Override, scenario: Scenario) -> str:
    """Why ``link[.option]`` does not matter; empty if it does."""
    if override.address[0] != "link" or not isinstance(scenario.network, Topology):
        return ""
    return f"network={scenario.network.name} lays out the links between replicas; network=one_link uses it"


def _tier(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]tiers.tiers.<name>.(at|shared_by|link)`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option[:2] != ["tiers", "tiers"] or len(option) < 4:
        return ""
    tiers = [tiers_of(spec.tiers)[option[2]] for spec in pools if option[2] in tiers_of(spec.tiers)]
    places = sorted(tier.at for tier in tiers if tier.at is not None)
    if not isinstance(scenario.network, Topology):
        why = "without a topology shared_by and link say who shares a store and how; network=flat looks at it"
        return why if option[3] == "at" and places else ""
    if option[3] not in {"shared_by", "link"} or not places:
        return ""
    return f"network={scenario.network.name} says who shares a store at={places[0]} and how; at=null uses it"


def _node(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]node[.option]`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option == ["node", "host_speed"] and not any(map(_launches, pools)):
        engine = pools[0].engine
        if engine.collective_wait and not isinstance(pools[0].perf, Profile):
            return "one device waits for no other; tp=2 would use it"
        if engine.launch_time or engine.collective_wait:
            return "a step log (perf=profile) holds what its host took already"
        return f"{engine.name} {engine.version} replays CUDA graphs; engine.launch_time=300us would use it"
    if isinstance(scenario.network, Topology):  # its replicas leave their nodes by the nodes' ports
        return ""
    if option[0] != "node" or all(spec.node == ISOLATED for spec in pools) or any(map(_uses_node, pools)):
        return ""
    spec = pools[0]
    beyond = min(spec.replica.domain, spec.hardware.scale_up_devices)
    layout = f"the replica's {spec.replica.devices} x {spec.hardware.name} lie in one scale-up domain"
    return f"{layout}; a layout of more than {beyond} (tp, dp, pp) would use it"


def _uses_node(spec: PoolSpec) -> bool:
    """Whether the layout's times or its being possible at all depend on the node."""
    devices, node = spec.replica.devices, spec.node
    if _launches(spec) and node.host_speed != 1:
        return True
    if devices == 1:
        return False
    return not node.peer_to_peer or devices > min(spec.replica.domain, spec.hardware.scale_up_devices)


def _launches(spec: PoolSpec) -> bool:
    """Whether the times depend on how fast a host launches kernels."""
    engine = spec.engine
    return bool(engine.launch_time or (engine.collective_wait and spec.tp > 1)) and not isinstance(spec.perf, Profile)


def _priority(override: Override, scenario: Scenario) -> str:
    """Why ``workload.classes.<name>.priority`` does not matter; empty if it does."""
    if override.address[0] != "workload" or override.address[-1] != "priority":
        return ""
    if any(getattr(spec.scheduler, "policy", "") == "priority" for spec in scenario.pools.values()):
        return ""
    return "no scheduler looks at it; scheduler=vllm_v1 scheduler.policy=priority does"


def _cascade(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]engine.cascade_(attention|overhead)`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option == ["engine", "cascade_overhead"]:
        pools = [spec for spec in pools if spec.engine.cascade_attention]
        if not pools:
            return "what requests have in common is read by each of them; engine.cascade_attention=true reads it once"
    elif option != ["engine", "cascade_attention"] or override.raw.lower() == "false":
        return ""
    whys = [spec.no_cascade for spec in pools]
    return whys[0] if whys and all(whys) else ""


def _passages(override: Override, scenario: Scenario) -> str:
    """Why ``workload.passage_tokens`` or a pipeline's ``corpus`` does not matter; empty if it does."""
    drawn = override.address[0] == "workload" and override.address[-1] == "corpus"
    if (
        drawn
        or override.raw in {"null", "endless"}
        or any(isinstance(spec.tiers, PassageTiers) for spec in scenario.pools.values())
    ):
        return ""
    return "nobody looks for passages; tiers=passages does"


def _skew(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]perf.expert_skew`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option != ["perf", "expert_skew"] or any(spec.ep > 1 for spec in pools):
        return ""
    return "experts are spread over devices only with ep > 1"


def _factor(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]engine.kernel_factor`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option != ["engine", "kernel_factor"] or any(isinstance(spec.perf, Measured) for spec in pools):
        return ""
    return "only timed kernels are scaled by it; perf=measured has such"


def _preemption(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]preemption`` or ``[pool.]swap_space`` does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option not in (["preemption"], ["swap_space"]) or override.value == "recompute":
        return ""
    if all(isinstance(spec.scheduler, GuaranteedNoEvict) and spec.role == "both" for spec in pools):
        return "scheduler=guaranteed_no_evict preempts nobody; scheduler=mixed does"
    return ""


def _engine(override: Override, scenario: Scenario) -> str:
    """Why ``[pool.]engine.<option>``, an overhead or about timed kernels, does not matter; empty if it does."""
    pools, option = _spoken_to(override, scenario)
    if option[:1] != ["engine"] or len(option) != 2:
        return ""
    if option[1] in TIMED:
        return _timed(option[1], pools)
    logged = all(isinstance(spec.perf, Profile) for spec in pools)
    if option[1] == "collective_wait" and not logged and all(spec.tp == 1 for spec in pools):
        return "one device waits for no other; tp=2 would use it"
    return "a step log (perf=profile) holds the engine's overheads already" if logged else ""


def _timed(option: str, pools: Sequence[PoolSpec]) -> str:
    """Why an option about timed kernels does not matter to any of these pools; empty if it does."""
    pools = [spec for spec in pools if isinstance(spec.perf, Measured)]
    if not pools:
        return "it is about the kernels of operator tables, which only perf=measured reads"
    if option == "captured_tokens" and all(spec.engine.launch_time for spec in pools):
        return "an engine whose host launches every kernel replays no CUDA graph; engine.launch_time=0s does"
    if option == "allreduce" and not any(fuses(spec.replica) for spec in pools):
        spec = pools[0]
        if spec.tp == 1:
            return "one device has nothing to sum; tp=2 has"
        return f"{spec.tp} x {spec.hardware.name} have no kernel that sums and normalises in one; 4 x h100 have"
    return ""


def _idle(override: Override, scenario: Scenario) -> str:
    """Why ``hosts.<name>.cores`` does not matter; empty if it does."""
    if override.address[0] != "hosts" or override.address[-1] != "cores":
        return ""
    if any(getattr(spec, "host", None) == override.address[1] for spec in scenario.stations.values()):
        return ""
    return "no station runs there"


def _spoken_to(override: Override, scenario: Scenario) -> tuple[list[PoolSpec], list[str]]:
    """The pools an address speaks to, and the rest of it."""
    first, *rest = override.address
    if first in scenario.pools and rest:
        return [scenario.pools[first]], rest
    return list(scenario.pools.values()), [first, *rest]
