"""Random configs through the whole path: build, simulate, Result. What a config means is the same every time.

A mix that is refused is refused by an InputError; every other has a Result whose counts add up, whose shares are shares
and whose watts are those of its devices, and which comes out again to the last bit.
"""

import json
from copy import deepcopy
from functools import cache
from io import StringIO
from math import isfinite
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mist.build import build, plain
from mist.compose import compose
from mist.errors import InputError
from mist.metrics import Counts, Result
from mist.report.text import simulation
from mist.scenario import Scenario
from mist.simulate import simulate

CASES = max(80, settings().max_examples // 20)
SHEETS = ("scheduler", "router", "speculation", "autoscaler", "faults", "slo", "link", "network", "node", "tiers")
# One of each line, by chance; most leave things as they are. Several settings of one choice are joined by spaces.
PLAIN = {
    "load": ("workload.requests=30", "workload.requests=7", "workload.requests=1"),
    "rate": ("workload.rate=2", "workload.rate=20", "workload.rate=200"),
    "scheduler": tuple(
        f"scheduler={name}"
        for name in ("chunked_prefill", "continuous", "mixed", "static", "shortest_first", "slo_aware", "vllm_v1")
    ),
    "limits": ("", "", "scheduler.max_running=4 scheduler.token_budget=700"),
    "router": (
        "router=round_robin", "router=least_loaded", "router=power_of_two", "router=session_sticky",
        "router=least_tokens", "router=slo_aware", "router=heavy_light router.threshold=200",
    ),
    "front end": ("", "", "engine.front_end=5ms"),
    "cascade": ("", "", "engine.cascade_attention=true"),
    "drain": ("", "", "window.drain=true"),
    "replicas": ("", "replicas=2", "replicas=3"),
    "memory": ("", "", "kv_blocks=400", "kv_blocks=400 preemption=swap", "kv_blocks=150", "kv_blocks=9000"),
    "tiers": (
        "", "", "",
        "tiers=host_dram prefix_caching=true",
        "tiers=drawn tiers.layerwise=true",
        "tiers=mist_rack prefix_caching=true tiers.tiers.ssd.shared_by=null tiers.decoded=true",
        "tiers=drawn network=flat node=pcie-box",
    ),
    "layout": ("", "", "", "", "tp=2", "pp=2", "tp=2 pp=2"),
    "slo": ("slo=none", "slo=chat", "slo=chat_relaxed", "slo=batch"),
    "speculation": ("", "", "", "speculation=ngram", "speculation=eagle", "speculation=draft_model"),
    "scaling": (
        "", "", "",
        "autoscaler=target_utilization autoscaler.policy.share=busy",
        "autoscaler=queue_length autoscaler.min_replicas=0",
        "autoscaler=slo_attainment",
    ),
    "faults": (
        "", "", "",
        "faults=drawn faults.mtbf=2s faults.mttr=300ms",
        "faults=drawn faults.mtbf=500ms faults.mttr=1s faults.requests=lose faults.retries=0",
        "faults=given faults.outage.first.at=700ms faults.outage.first.lasting=2s",
    ),
    "seed": ("seed=0", "seed=1", "seed=2"),
}  # fmt: skip
SOON = "autoscaler.startup=500ms autoscaler.interval=200ms autoscaler.stabilization=1s"
SHORT = "workload.inputs.mean=300 workload.outputs.mean=40"
WORKLOADS = {
    "poisson_geometric": SHORT,
    "gamma_lognormal": SHORT,
    "chat_sessions": "workload.apart=3 workload.system=200 prefix_caching=true",
    "two_class": "slo=two_class",
    "rag_prompts": "workload.corpus=12 workload.pieces=3 workload.piece_tokens=100 workload.system=64",
    "closed_loop": "workload.concurrency=3 workload.inputs.low=100 workload.inputs.high=400 workload.outputs.low=1",
}
NETWORKS = ("network=flat node=pcie-box", "network=roce_llama3 node=hgx-h100 handover.layerwise=true")
HANDOVERS = (
    "",
    "link=ethernet_25g handover.layerwise=true",
    "replicas=3 handover.reach=local handover.groups=3",
    *NETWORKS,
)


@cache
def base(cluster: str, workload: str) -> dict[str, Any]:
    chosen = [f"cluster={cluster}", f"workload={workload}", "model=llama-3.2-1b", "hardware=l4", "window.patience=20"]
    if workload == "rag_prompts":
        first = "llm" if cluster == "one_pool" else "prefill"
        chosen += [f"{first}.prefix_caching=true", f"{first}.tiers=passages"]
    return compose(chosen)


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, str, str]:
    """Cluster, workload, and the settings to make in that order."""
    chosen = {name: draw(st.sampled_from(choices)) for name, choices in PLAIN.items()}
    workload = draw(st.sampled_from(sorted(WORKLOADS)))
    if workload == "two_class":
        chosen["slo"] = ""
        chosen["load"] = chosen["load"].replace("requests=1", "requests=9")
    if workload == "closed_loop":
        chosen["rate"] = ""
        chosen["load"] = chosen["load"].replace("requests=1", "requests=9")
    if chosen["scaling"]:
        chosen["scaling"] += f" {SOON}"
    cluster = draw(st.sampled_from(["one_pool", "one_pool", "disaggregated"]))
    handover = draw(st.sampled_from(HANDOVERS)) if cluster == "disaggregated" else ""
    if "local" in handover:
        chosen["replicas"] = chosen["scaling"] = ""
    if cluster == "disaggregated" and "faults=given" in chosen["faults"]:
        chosen["faults"] += " faults.outage.first.pool=decode"
    return cluster, workload, " ".join([WORKLOADS[workload], handover, *chosen.values()])


def patched(config: dict[str, Any], settings_: str, sheet: Any) -> dict[str, Any]:
    """The config with these settings: at its root, or in every pool that has such a field."""
    config = deepcopy(config)
    for setting in settings_.split():
        address, _, value = setting.partition("=")
        first, *rest = address.split(".")
        for place in [config] if first in config else config["pools"].values():
            if first not in place:
                continue
            found = place
            for step in [first, *rest][:-1]:
                found = found[step]
            found[address.split(".")[-1]] = chosen_sheet(first, value, sheet) if not rest else yaml.safe_load(value)
    return config


def chosen_sheet(noun: str, value: str, sheet: Any) -> Any:
    if noun not in SHEETS:
        return yaml.safe_load(value)
    data = {name: field for name, field in sheet(noun, value).items() if name != "defaults"}
    if noun == "tiers":
        return data | {"fetch": sheet("fetch", "always")}
    return data | {"model": sheet("model", "llama-3.2-1b")} if value == "draft_model" else data


def added_up(counts: Counts) -> bool:
    return counts.arrived == counts.completed + counts.in_flight + counts.refused + counts.lost


def examined(result: Result, config: dict[str, Any]) -> None:
    scenario = build(Scenario, config)
    assert result.counts is not None and result.window is not None and result.pools is not None
    assert added_up(result.counts) and added_up(result.window.requests)
    assert result.window.requests.arrived <= scenario.workload.traffic(scenario.seed).times.size
    assert result.counts.arrived == len(result.requests)
    assert 0 <= result.attainment <= 1
    assert 0 <= result.goodput_tokens_per_second <= result.output_tokens_per_second * (1 + 1e-12)
    for latency in (result.latency or {}).values():
        assert latency.p50 <= latency.p90 <= latency.p99
    if result.classes is not None:
        members = [report.requests for report in result.classes.values()]
        assert sum(count.arrived for count in members) == result.window.requests.arrived
    for name, pool in result.pools.items():
        hardware = scenario.pools[name].hardware
        assert 0 <= pool.utilization <= 1 + 1e-9
        assert 0 <= pool.kv_peak <= 1
        if pool.watts or pool.fleet is None:
            assert hardware.idle_power * (1 - 1e-9) <= pool.watts <= hardware.power * (1 + 1e-9)
        if pool.prefix is not None:
            assert 0 <= pool.prefix.hit_tokens <= pool.prefix.looked_up_tokens
        if pool.tiers is not None:
            assert pool.tiers.fetched <= pool.tiers.found <= pool.tiers.requests
            assert pool.tiers.wasted_tokens + pool.tiers.lost_tokens <= pool.tiers.fetched_tokens
        if pool.speculation is not None:
            assert 0 <= pool.speculation.accepted <= pool.speculation.drafted
    assert all(isfinite(request.finished) for request in result.requests)


@settings(max_examples=CASES)
@given(drawn=configs())
def test_a_config_is_refused_or_served_and_always_the_same(drawn: tuple[str, str, str], sheet: Any) -> None:
    cluster, workload, chosen = drawn
    config = patched(base(cluster, workload), chosen, sheet)
    try:
        result = simulate(config)
    except InputError as error:
        assert error.field
        return
    same_as(result, simulate(yaml.safe_load(yaml.safe_dump(config, sort_keys=False))))
    if result.verdict == "infeasible":
        assert result.reason
        return
    examined(result, config)
    Console(file=StringIO(), width=120).print(simulation(result))
    same_as(result, simulate(plain(build(Scenario, config))))


def same_as(result: Result, again: Result) -> None:
    assert json.dumps(result.to_json(), allow_nan=False) == json.dumps(again.to_json(), allow_nan=False)
    assert result.requests_frame().equals(again.requests_frame())
