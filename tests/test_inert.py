"""What was typed has an effect, or is refused with what would give it one."""

import pytest

from mist.compose import compose
from mist.errors import InputError
from mist.inert import effective, refuse_inert
from mist.simulate import simulate


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["node=hgx-h100"],
            r"node = hgx-h100: has no effect: the replica's 1 x h100 lie .* more than 8 \(tp, dp, pp\)",
        ),
        (["node=hgx-h100", "tp=8"], "node = hgx-h100: has no effect: the replica's 8 x h100"),
        (["node=pcie-box"], "node = pcie-box: has no effect"),
        (["llm.node=hgx-h100", "node.latency=1ms"], r"llm\.node = hgx-h100: has no effect"),
        (["cluster=disaggregated", "prefill.node=hgx-h100", "decode.tp=8"], r"prefill\.node = hgx-h100: has no effect"),
        (
            [
                "cluster=disaggregated",
                "network=superpod_h100",
                "prefill.node=hgx-h100",
                "decode.node=hgx-h100",
                "link=nvlink5",
            ],
            r"link = nvlink5: has no effect: network=.* network=one_link uses it",
        ),
        (
            ["tiers=dram_nvme_remote", "prefix_caching=true", "tiers.tiers.remote.at=node"],
            r"at = node: has no effect: without a topology .* network=flat looks at it",
        ),
        (
            ["tiers=drawn", "network=flat", "node=hgx-h100", "tiers.tiers.remote.shared_by=2"],
            r"shared_by = 2: has no effect: network=flat says who shares a store at=datacenter",
        ),
        (["engine.cascade_overhead=1ms"], "has no effect: .* engine.cascade_attention=true reads it once"),
        (
            ["engine.cascade_attention=true", "engine.cascade_overhead=1ms", "prefix_caching=true", "pp=2"],
            "has no effect: .* one pipeline stage",
        ),
        (
            ["perf=measured", "engine.captured_tokens=256", "engine.launch_time=300us"],
            r"captured_tokens = 256: has no effect: .* replays no CUDA graph; engine\.launch_time=0s does",
        ),
        (["perf=measured", "engine.allreduce=apart"], "apart: has no effect: one device has nothing to sum; tp=2 has"),
        (
            ["perf=measured", "engine.allreduce=apart", "hardware=a100", "tp=4"],
            "apart: has no effect: 4 x a100 have no kernel that sums and normalises in one; 4 x h100 have",
        ),
        (["engine.collective_wait=9us"], "9us: has no effect: one device waits for no other; tp=2 would use it"),
        (
            ["engine=trtllm_0_17", "node.host_speed=0.5"],
            r"host_speed = 0\.5: has no effect: one device waits for no other; tp=2 would use it",
        ),
        (["perf=roofline", "perf.expert_skew=0.5"], r"perf\.expert_skew = 0\.5: has no effect: .* ep > 1"),
        (
            ["scheduler=guaranteed_no_evict", "preemption=swap"],
            r"preemption = swap: has no effect: .* preempts nobody; scheduler=mixed does",
        ),
        (
            ["workload=two_class", "workload.classes.batch.priority=5"],
            r"workload\.classes\.batch\.priority = 5: has no effect: .* scheduler\.policy=priority does",
        ),
    ],
)
def test_what_changes_nothing_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        refuse_inert(overrides, compose(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["node=isolated"],
        ["engine.cascade_attention=true", "engine.cascade_overhead=1ms", "prefix_caching=true"],
        ["perf=measured", "engine.captured_tokens=256"],
        ["perf=measured", "engine.allreduce=apart", "tp=4"],
        ["node=hgx-h100", "tp=8", "pp=2", "model=llama-3.1-70b"],
        ["node=pcie-box", "tp=2", "hardware=l40s"],
        ["node=nvl72", "tp=16", "model=llama-3.1-70b"],  # one domain, but wider than the sheet's
        ["cluster=disaggregated", "node=pcie-box", "decode.tp=2"],  # one of the two pools uses it
        ["perf=roofline", "perf.expert_skew=0.5", "model=mixtral-8x7b", "tp=2", "ep=2"],
        ["cluster=disaggregated", "link=nvlink5"],
        ["cluster=disaggregated", "network=superpod_h100", "node=hgx-h100"],  # the way out of a node
        ["scheduler=mixed", "preemption=swap", "swap_space=8 GiB"],
        ["tiers=drawn", "network=flat", "node=hgx-h100", "tiers.tiers.dram.shared_by=2"],  # it hangs nowhere
        ["tiers=drawn", "tiers.tiers.remote.shared_by=2"],
        ["workload=two_class"],  # its file's priorities were not typed
        ["workload=two_class", "workload.classes.batch.priority=5", "scheduler=vllm_v1", "scheduler.policy=priority"],
    ],
)
def test_what_changes_something_or_was_not_typed_is_accepted(overrides):
    refuse_inert(overrides, compose(overrides))
    assert effective(overrides) == overrides


@pytest.fixture
def log(tmp_path):
    """Of steps: one to eight decodes of 500 to 4,000 tokens each, prompts of up to 2,048."""
    rows = ["decodes,context,tokens,chunks,past,ms"]
    rows += [f"{n},{n * length},0,0,0,{5 + n + length / 1000}" for n in (1, 8) for length in (500, 4000)]
    rows += [f"0,0,{tokens},1,0,{5 + tokens / 100}" for tokens in (1, 512, 2048)]
    (tmp_path / "steps.csv").write_text("\n".join(rows) + "\n")
    return [f"perf.path='{tmp_path / 'steps.csv'}'", "perf=profile"]


@pytest.mark.parametrize("scalar", ["step_overhead", "request_overhead", "mixed_overhead"])
def test_overheads_beside_a_step_log_are_refused(log, scalar):
    for address in (f"engine.{scalar}", f"llm.engine.{scalar}"):
        overrides = [*log, f"{address}=3ms"]
        with pytest.raises(InputError, match=rf"{address} = 3ms: has no effect: .* holds the engine's overheads"):
            refuse_inert(overrides, compose(overrides))
    for kept in ("engine.front_end=3ms", "engine.memory_utilization=0.8", "engine=vllm_0_10"):
        refuse_inert([*log, kept], compose([*log, kept]))


def test_a_hosts_speed_is_refused_beside_a_step_log(log):
    overrides = [*log, "engine=vllm_0_2", "node.host_speed=0.5"]
    with pytest.raises(InputError, match=r"host_speed = 0\.5: has no effect: .* holds what its host took already"):
        refuse_inert(overrides, compose(overrides))


def test_overheads_are_accepted_where_one_pool_of_several_has_no_log(log):
    path, choice = (word.replace("perf", "prefill.perf", 1) for word in log)
    overrides = ["cluster=disaggregated", path, choice, "engine.step_overhead=3ms"]
    refuse_inert(overrides, compose(overrides))
    with pytest.raises(InputError, match=r"prefill\.engine\.step_overhead = 1ms: has no effect"):
        refuse_inert(
            [*overrides, "prefill.engine.step_overhead=1ms"], compose([*overrides, "prefill.engine.step_overhead=1ms"])
        )


def test_kernels_are_refused_where_no_operator_tables_are_read():
    for perf in ("perf=roofline", "hardware=mi300x"):
        with pytest.raises(InputError, match=r"engine\.kernels = sglang: has no effect: .* only perf=measured"):
            refuse_inert([perf, "engine.kernels=sglang"], compose([perf, "engine.kernels=sglang"]))
    refuse_inert(["perf=measured", "engine.kernels=sglang"], compose(["perf=measured", "engine.kernels=sglang"]))


def test_what_is_called_inert_changes_no_figure():
    load = ["workload.requests=60", "workload.rate=3"]
    for typed in (["node=hgx-h100", "tp=2"], ["node=pcie-box"]):
        kept = effective([*typed, *load])
        assert kept == [*typed[1:], *load]
        one, other = (simulate(compose(overrides)).to_json() for overrides in ([*typed, *load], kept))
        for figures in (one, other):
            for pool in figures["pools"].values():
                pool.pop("node")
        assert one == other
