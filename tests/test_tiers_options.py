"""Every choice of KV tiers is one override away, is in the summary, and is refused where it has no effect."""

from pathlib import Path

import pytest
from rich.console import Console

from mist.build import build, plain
from mist.compose import compose
from mist.errors import InputError
from mist.report.text import simulation
from mist.scenario import Scenario
from mist.simulate import simulate
from mist.sweep import question

CONF = Path(__file__).parents[1] / "conf"
LOAD = ["workload=reused_contexts", "workload.tokens=1024", "workload.contexts=40", "workload.rate=4", "slo=none"]
SHORT = [*LOAD, "workload.requests=120", "kv_blocks=1500", "replicas=2"]
NAMES = [path.stem for path in sorted((CONF / "tiers").glob("*.yaml")) if path.stem != "none"]


def chosen(name):
    return [f"tiers={name}"] if "drawn" in name else [f"tiers={name}", "prefix_caching=true"]


def short(name):
    passages = ["workload=rag_prompts", "workload.rate=4", "slo=none", *SHORT[len(LOAD) :]]
    return passages if name == "passages" else SHORT


def text(result):
    console = Console(width=250)
    with console.capture() as capture:
        console.print(simulation(result))
    return capture.get()


@pytest.mark.parametrize("name", NAMES)
def test_one_override_turns_it_on_and_the_summary_says_so(name):
    result = simulate(compose([*short(name), *chosen(name), "tiers.fetch=always", "engine.front_end=0s"]))
    use = result.pools["llm"].tiers
    assert use.requests == result.counts.arrived
    assert use.found == use.fetched
    assert "found KV in tiers" in text(result)
    for tier in use.tiers:
        assert f"  {tier}: " in text(result)


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_survives_the_way_to_plain_data_and_back(name):
    scenario = build(Scenario, compose([*short(name), *chosen(name)]))
    assert build(Scenario, plain(scenario)) == scenario


def test_off_the_summary_is_silent():
    result = simulate(compose(SHORT))
    assert result.pools["llm"].tiers is None
    assert "tiers" not in text(result)


@pytest.mark.parametrize("pipeline", ["kv_reuse", "rag_kv"])
def test_the_pipelines_fetch(pipeline):
    few = ["workload.requests=100", "workload.rate=1", "kv_blocks=1500", "slo=none"]
    result = simulate(compose([f"pipeline={pipeline}", *few]))
    assert result.pools["llm"].tiers.fetched > 0
    if pipeline == "rag_kv":
        assert {"fetch_kv", "retrieve", "prefill"} <= set(result.stages)


def test_a_store_is_paid_for():
    price = ["tiers.tiers.ssd.price=3", "tiers.tiers.ssd.shared_by=1"]
    free, paid = (simulate(compose([*SHORT, *chosen("mist_rack"), *rest])) for rest in ([], price))
    assert paid.dollars_per_hour == pytest.approx(free.dollars_per_hour + 2 * 3)


BESIDE = {
    "roles": ["cluster=disaggregated", "prefill.tiers=dram_nvme_remote", "prefill.prefix_caching=true",
              "tiers.decoded=true"],
    "failures": [*chosen("host_dram"), "faults=drawn", "faults.mtbf=20s", "faults.mttr=2s"],
    "an autoscaler": [*chosen("dram_nvme_remote"), "autoscaler=queue_length"],
    "speculation": [*chosen("host_dram"), "speculation=ngram"],
    "a pipeline": [*chosen("host_dram"), "pp=2"],
    "roles that switch": ["cluster=disaggregated", "prefill.tiers=host_dram", "prefill.prefix_caching=true",
                          "roles=queue_ratio"],
    "a network": ["tiers=dram_nvme_remote", "prefix_caching=true", "network=superpod_h100", "node=hgx-h100"],
    "roles in a network": ["cluster=disaggregated", "prefill.tiers=mist_rack", "prefill.prefix_caching=true",
                           "network=superpod_h100", "node=hgx-h100", "tiers.decoded=true"],
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
def test_tiers_work_beside(what):
    chosen_ = BESIDE[what]
    few = [override for override in SHORT if not override.startswith("kv_blocks")]
    blocks = "prefill.kv_blocks=800" if "cluster=disaggregated" in chosen_ else "kv_blocks=800"
    result = simulate(compose([*few, blocks, *chosen_]))
    use = next(pool.tiers for pool in result.pools.values() if pool.tiers is not None)
    assert use.fetched > 0
    assert use.fetched_tokens >= use.wasted_tokens + use.lost_tokens
    assert result.counts.lost == 0
    assert result.counts.completed > 100
    assert "found KV in tiers" in text(result)


def test_contexts_come_again_and_questions_do_not():
    scenario = build(Scenario, compose(SHORT))
    traffic = scenario.workload.traffic(0)
    one, other = (traffic.contents.of(cycle, 3) for cycle in (0, 1))
    assert [one.key(i, 16) == other.key(i, 16) for i in (0, 63, 64, 70)] == [True, True, False, False]
    assert one.conversation == other.conversation
    assert len({traffic.contents.of(0, i).conversation for i in range(len(traffic))}) > 10
    assert (traffic.inputs > 1024).all()


def test_the_sweep_of_storage_is_a_question():
    _, data = question.read(str(CONF.parent / "sweeps" / "kv_storage.yaml"))
    assert question.sweep(data).exhaustive


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tiers=host_dram"], "prefix_caching=true"),
        (["tiers=drawn", "prefix_caching=true"], "hits of this pool are drawn"),
        (["tiers.fetch=always"], "NoTiers has no such option"),
        (["tiers=drawn", "preemption=swap"], "swap space is host memory of its own"),
        ([*chosen("host_dram"), "tiers.decoded=true"], "stores all it computes"),
        ([*chosen("host_dram"), "tiers.tiers.dram.ttl='5 s'"], "no effect with eviction=lru"),
        ([*chosen("host_dram"), "tiers.tiers.dram.write_bandwidth='0 B/s'"], "must be positive"),
        (["tiers=drawn", "tiers.tiers.dram.hit=1.5"], "between 0 and 1"),
        (["workload.contexts=1", "workload.zipf=1"], "there is one context"),
    ],
)
def test_what_has_no_effect_is_refused(overrides, message):
    replaced = {override.partition("=")[0] for override in overrides}
    base = [override for override in SHORT if override.partition("=")[0] not in replaced]
    with pytest.raises(InputError) as caught:
        simulate(compose([*base, *overrides]))
    assert message in str(caught.value)
