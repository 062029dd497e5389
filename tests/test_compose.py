"""Laws of composition: which file is chosen, whom an address speaks to, what is refused and how."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist import catalog
from mist.compose import compose, groups, sweep_file
from mist.errors import InputError
from mist.overrides import grammar, parse

SHEETS = {
    "model": ("llama-3.1-8b", "qwen3-8b", "phi-4"),
    "hardware": ("h100", "a100", "l40s"),
    "workload": ("azure_conv", "poisson"),
    "slo": ("chat", "code"),
    "price": ("on_demand",),
    "link": ("infiniband_ndr400", "nvlink4"),
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's ./conf with a few data sheets, on top of the packaged one."""
    for group, names in SHEETS.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        for name in names:
            (tmp_path / "conf" / group / f"{name}.yaml").write_text(f"name: {name}\nsize: 3 GB\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf"


def leaves(node: Any, address: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        where = f"{address}.{key}" if address else key
        if isinstance(value, dict):
            assert type(value) is dict
            yield from leaves(value, where)
        else:
            yield where, value


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("conf")
class TestAddresses:
    def test_an_address_without_a_pool_speaks_to_every_pool(self) -> None:
        pools = compose(["cluster=disaggregated", "tp=2", "model=phi-4", "scheduler.token_budget=512"])["pools"]
        assert set(pools) == {"prefill", "decode"}
        for pool in pools.values():
            assert (pool["tp"], pool["model"]["name"], pool["scheduler"]["token_budget"]) == (2, "phi-4", 512)

    def test_an_address_with_a_pool_speaks_to_that_pool_alone(self) -> None:
        pools = compose(["cluster=disaggregated", "decode.hardware=l40s", "prefill.tp=4"])["pools"]
        assert (pools["prefill"]["hardware"]["name"], pools["decode"]["hardware"]["name"]) == ("h100", "l40s")
        assert (pools["prefill"]["tp"], pools["decode"]["tp"]) == (4, 1)

    @pytest.mark.parametrize("turn", [1, -1])
    def test_the_pool_outranks_the_cluster_in_any_order(self, turn: int) -> None:
        overrides = ["cluster=disaggregated", "tp=2", "decode.tp=4", "hardware=a100", "decode.hardware=l40s"]
        pools = compose(overrides[::turn])["pools"]
        assert (pools["prefill"]["tp"], pools["decode"]["tp"]) == (2, 4)
        assert (pools["prefill"]["hardware"]["name"], pools["decode"]["hardware"]["name"]) == ("a100", "l40s")

    def test_values_survive_a_choice_of_their_group_in_any_order(self) -> None:
        for overrides in (["slo=code", "slo.ttft_p99=500ms"], ["slo.ttft_p99=500ms", "slo=code"]):
            assert compose(overrides)["slo"] == {"name": "code", "size": "3 GB", "ttft_p99": "500ms"}

    def test_other_addresses_speak_to_the_root(self) -> None:
        config = compose(["workload.rate=3", "price.hourly.a100-40gb=2.5 $/h", "seed=7", "window.warmup=10 s"])
        assert config["workload"]["rate"] == 3
        assert config["price"]["hourly"] == {"a100-40gb": "2.5 $/h"}
        assert (config["seed"], config["window"]) == (7, {"warmup": "10 s"})

    def test_a_choice_outside_the_pools_is_made_at_its_own_address(self) -> None:
        assert compose(["cluster=disaggregated", "link=nvlink4"])["link"]["name"] == "nvlink4"

    def test_the_full_address_and_the_short_one_are_one_address(self) -> None:
        assert compose(["pools.llm.tp=2"]) == compose(["llm.tp=2"]) == compose(["tp=2"])
        assert "given twice" in refusal("pools.llm.tp=2", "llm.tp=4")

    def test_an_option_that_a_file_does_not_mention_can_be_given(self) -> None:
        assert compose(["hardware.memory=40 GB"])["pools"]["llm"]["hardware"]["memory"] == "40 GB"
        assert compose(["llm.start=cold"])["pools"]["llm"]["start"] == "cold"


@pytest.mark.usefixtures("conf")
class TestData:
    def test_a_config_is_plain_data(self) -> None:
        for address, value in leaves(compose(["cluster=disaggregated"])):
            assert type(value) in (str, int, float, bool, type(None)), address

    def test_the_same_overrides_compose_the_same_config_in_any_order(self) -> None:
        overrides = ["cluster=disaggregated", "slo.ttft_p99=1 s", "decode.tp=2", "model=phi-4"]
        assert compose(overrides) == compose(overrides[::-1])

    def test_what_the_caller_does_to_a_config_touches_no_other(self) -> None:
        before = compose(["window={warmup: 3 s}"])
        after = compose(["window={warmup: 3 s}"])
        after["pools"]["llm"]["tp"] = 64
        after["window"]["warmup"] = after["slo"] = None
        assert compose(["window={warmup: 3 s}"]) == before

    def test_interpolations_resolve_after_the_patch(self, conf: Path) -> None:
        (conf / "slo" / "mine.yaml").write_text("name: mine\nnote: ${seed}\n")
        assert compose(["slo=mine", "seed=5"])["slo"]["note"] == 5
        assert compose(["replicas=${pools.llm.tp}", "tp=4"])["pools"]["llm"]["replicas"] == 4
        assert "nope" in refusal("seed=${nope}")

    def test_a_file_of_the_user_adds_or_replaces_a_choice(self, conf: Path) -> None:
        assert compose(["router=round_robin"])["pools"]["llm"]["router"]["_target_"].endswith("RoundRobin")
        (conf / "router").mkdir()
        (conf / "router" / "round_robin.yaml").write_text("_target_: mist.mine.Better\n")
        (conf / "router" / "dice.yaml").write_text("_target_: mist.mine.Dice\n")
        assert set(groups()["router"]) >= {"round_robin", "least_loaded", "dice"}
        assert compose(["router=round_robin"])["pools"]["llm"]["router"] == {"_target_": "mist.mine.Better"}
        assert compose(["router=dice"])["pools"]["llm"]["router"] == {"_target_": "mist.mine.Dice"}

    def test_a_file_that_changes_is_read_again(self, conf: Path) -> None:
        assert compose(["slo=code"])["slo"]["size"] == "3 GB"
        (conf / "slo" / "code.yaml").write_text("name: code\nsize: 44 GB\n")
        assert compose(["slo=code"])["slo"]["size"] == "44 GB"

    def test_a_directory_with_spaces_and_commas_will_do(self, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        odd = conf.parent / "my conf, copy's {1}"
        odd.mkdir()
        conf.rename(odd / "conf")
        monkeypatch.chdir(odd)
        assert compose(["model=phi-4"])["pools"]["llm"]["model"]["name"] == "phi-4"

    def test_an_option_that_must_be_given_is_asked_for(self, conf: Path) -> None:
        (conf / "workload" / "trace.yaml").write_text("path: ???\n")
        assert "workload.path = (nothing): must be given" in refusal("workload=trace")
        assert compose(["workload=trace", "workload.path=/a b/c.csv"])["workload"]["path"] == "/a b/c.csv"


@pytest.mark.usefixtures("conf")
class TestRefusals:
    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["model=qwen3-9b"], ["model = qwen3-9b: no such choice", "did you mean qwen3-8b?", "(valid: qwen3-8b, "]),
            (["hardware=4"], ["hardware = 4", "no such choice", "l40s"]),
            (["slo={a: 1}"], ["slo = {a: 1}", "chat"]),
            (["cluster=pair"], ["cluster = pair", "one_pool", "disaggregated"]),
            (["llm.hardware=h10"], ["llm.hardware = h10", "(valid: h100, "]),
            (["ttp=2"], ["ttp: no such address", "did you mean tp?"]),
            (["decode.tp=2"], ["decode.tp: no such address", "llm", "replicas"]),
            (["link=nvlink4"], ["link: this cluster has no place for it"]),
            (["llm=2"], ["llm = 2", "option by option", "hardware"]),
            (["tp"], ["tp: an override reads address=value"]),
            (["=2"], ["=2: an address is"]),
            (["a b=2"], ["a b=2: an address is"]),
            (["+tp=2"], ["+tp=2", "not needed"]),
            (["~tp"], ["~tp", "not needed"]),
            (["tp=1,2"], ["tp = 1,2: one value at a time", "sweep"]),
            (["tp=range(1,4)"], ["tp = range(1,4): one value at a time"]),
            (["model@llm.model=phi-4"], ["decode.hardware=h200"]),
            (["workload.path=a(1).csv"], ["workload.path = a(1).csv", "quote it"]),
            (["seed.x=3"], ["seed.x = 3: seed is 0"]),
            (["tp=2", "tp=4"], ["tp = 4: given twice, 'tp=2' and 'tp=4'"]),
            (["tp=2", "llm.tp=4"], ["tp = 2: has no effect", "llm.tp=4"]),
            (["model=phi-4", "llm.model=qwen3-8b"], ["model = phi-4: has no effect", "llm.model=qwen3-8b"]),
            (["window={a: 1}", "window.a=2"], ["window.a = 2: lies inside 'window={a: 1}'"]),
            (["model=lama-3.1-8b"], ["mist list model has all", "did you mean llama-3.1-8b", "more)"]),
            (["hydra.run.dir=x"], ["hydra.run.dir: no such address"]),
        ],
    )
    def test_a_wrong_override_is_refused_in_one_line(self, overrides: list[str], words: list[str]) -> None:
        message = refusal(*overrides)
        for word in words:
            assert word in message

    def test_quoting_makes_any_text_a_value(self) -> None:
        assert compose(["workload.path='a (1), x=2.csv'"])["workload"]["path"] == "a (1), x=2.csv"

    @pytest.mark.parametrize("text", ["a: [1\nb: 2", "a: 1\n\tb: 2", "a: 1\na: 2"])
    def test_broken_yaml_is_named_by_file_and_line(self, conf: Path, text: str) -> None:
        (conf / "slo" / "chat.yaml").write_text(text)
        assert refusal().startswith(f"{Path('conf/slo/chat.yaml')}:2: not valid YAML")

    @pytest.mark.parametrize("text", ["3", "defaults: 3", "defaults: [nope]", "defaults:\n  - /model@m: zz"])
    def test_a_file_that_cannot_be_composed_is_refused_in_one_line(self, conf: Path, text: str) -> None:
        (conf / "slo" / "chat.yaml").write_text(text)
        assert str(conf) in refusal()

    def test_a_root_without_pools_is_refused(self, conf: Path) -> None:
        (conf / "config.yaml").write_text("lr: 0.1\n")
        assert refusal().startswith("pools = None")

    def test_pools_may_not_take_the_name_of_another_address(self, conf: Path) -> None:
        (conf / "cluster").mkdir()
        (conf / "cluster" / "odd.yaml").write_text("# @package _global_\npools:\n  seed: {tp: 1}\n")
        assert "pools.seed" in refusal("cluster=odd")


class TestOverrides:
    plain = st.one_of(
        st.from_regex(r"-?[0-9]{1,6}", fullmatch=True),
        st.from_regex(r"-?[0-9]{1,3}\.[0-9]{0,4}", fullmatch=True),
        st.from_regex(re.compile(r"[a-z_][a-z0-9_-]{0,8}", re.ASCII), fullmatch=True),
        st.sampled_from(
            ["null", "True", "FALSE", "inf", "NaN", "-inf", "1e3", "007", "-0", "0.0", "500ms", "3.35 TB/s"]
        ),
    )

    @given(plain)
    def test_the_short_cut_reads_what_the_grammar_reads(self, raw: str) -> None:
        quick, slow = parse(f"x={raw}").value, grammar("x", raw)
        assert repr(quick) == repr(slow)


def with_pools(group: str) -> list[str]:
    """The choices that bring a pool: others serve texts, and nobody generates."""
    return [choice for choice in groups()[group] if compose([f"{group}={choice}"])["pools"]]


class TestSearchPath:
    @pytest.mark.parametrize(
        ("group", "choice"), [(group, choice) for group, choices in groups().items() for choice in choices]
    )
    def test_every_choice_has_one_line_of_facts(self, group: str, choice: str) -> None:
        assert catalog.facts(group, choice).strip()

    @pytest.mark.usefixtures("conf")
    @pytest.mark.parametrize("cluster", with_pools("cluster"))
    def test_every_packaged_choice_composes(self, cluster: str) -> None:
        """All in a cluster of one pool and in one of two, in the others the first and the last of each group."""
        names = ("engine", "perf", "scheduler", "router")
        choices = {name: groups()[name] for name in names}
        most = max(map(len, choices.values()))
        for turn in range(most) if cluster in ("one_pool", "disaggregated") else (0, -1):
            chosen = [f"{name}={choices[name][turn % len(choices[name])]}" for name in names]
            given = ["perf.path=steps.csv"] if "perf=profile" in chosen else []
            assert compose([f"cluster={cluster}", *chosen, *given])["pools"]

    def test_a_choice_is_known_by_its_group_wherever_it_is_made(self) -> None:
        config = compose(["pipeline=mix", "pipeline.stages.kind.options.chat=rag"])
        options = config["pipeline"]["stages"]["kind"]["options"]
        assert options["chat"]["stages"] == options["rag"]["stages"]
        with pytest.raises(InputError, match=r"options\.chat = rags: no such choice; did you mean rag"):
            compose(["pipeline=mix", "pipeline.stages.kind.options.chat=rags"])

    @pytest.mark.parametrize("pipeline", with_pools("pipeline"))
    def test_a_pipeline_brings_its_cluster_whatever_else_is_chosen(self, pipeline: str) -> None:
        config = compose(["scheduler=vllm_v1", "hardware=h200", f"pipeline={pipeline}"])
        assert {pool["hardware"]["name"] for pool in config["pools"].values()} == {"h200"}
        assert {pool["scheduler"]["_target_"] for pool in config["pools"].values()} == {
            "mist.schedulers.vllm_v1.VllmV1"
        }
        own = compose([f"pipeline={pipeline}", "cluster=one_pool"])
        assert not own.get("stations")

    def test_a_sweep_of_the_user_comes_before_a_packaged_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "sweeps" / "quickstart.yaml").write_text("question: mine\n")
        assert sweep_file("quickstart") == tmp_path / "sweeps" / "quickstart.yaml"
        assert sweep_file("sweeps/quickstart.yaml") == Path("sweeps/quickstart.yaml")
        with pytest.raises(InputError, match=r"sweep = quickstrt: no such sweep; did you mean quickstart\?"):
            sweep_file("quickstrt")
        with pytest.raises(InputError, match="no such file"):
            sweep_file("sweeps/none.yaml")
