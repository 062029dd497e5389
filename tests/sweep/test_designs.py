"""Sweeps over the real simulator, small enough for a test."""

import json
import shlex

import pytest
import yaml

from mist.cli import main
from mist.compose import compose
from mist.errors import InputError
from mist.sweep.identity import canonical, design_identity

BASE = {"workload": "poisson_fixed", "workload.requests": 120, "slo": "chat_relaxed"}
SWEEP = {
    "question": "Which of a few?",
    "base": BASE,
    "space": {"hardware": "choice(h100, l40s)", "tp": "choice(1, 2)"},
    "screen": {"workload.requests": 60},
    "confirm": {"leaders": 1, "seeds": 2},
    "workers": "serial",
}
GRID = {"sampler": "grid"}


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """``ask("tp=1", space={...})`` runs the small sweep as the command line does; the exit code."""
    monkeypatch.chdir(tmp_path)

    def asked(*overrides, **changes):
        (tmp_path / "few.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        return main(["sweep", "few.yaml", *overrides])

    return asked


def identity(*overrides):
    return design_identity(canonical(compose(overrides)), "")


def test_one_design_in_two_spellings_is_one_design():
    assert identity("slo.ttft_p99=1 s") == identity("slo.ttft_p99=1000 ms") == identity("slo.ttft_p99=1.0")
    assert identity("slo.ttft_p99=1 s") != identity("slo.ttft_p99=1001 ms")
    assert identity() == identity("tp=1") == identity("pools.llm.tp=1") != identity("tp=2")


def test_stages_in_another_order_are_another_design():
    config = compose(["pipeline=rag", "cluster=rag"])
    stages = config["pipeline"]["stages"]
    turned = config | {"pipeline": config["pipeline"] | {"stages": dict(reversed(stages.items()))}}
    assert len(stages) > 1
    assert len({design_identity(canonical(each), "") for each in (config, turned)}) == 2


def test_a_sweep_ends_in_a_deployment_that_its_commands_replay_exactly(ask, tmp_path, capsys):
    assert ask() == 0
    run = (tmp_path / "results/few/latest").resolve()
    best = yaml.safe_load((run / "best.yaml").read_text())
    capsys.readouterr()
    assert main([*shlex.split(best["replay"]["capacity"])[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["tokens_per_dollar"] == best["tokens_per_dollar"] and again["capacity"] == best["capacity"]
    assert main([*shlex.split(best["replay"]["simulate"])[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "ok"
    assert main(["show", "few"]) == 0 and "h100" in capsys.readouterr().out


def test_a_trial_is_recorded_in_a_few_hundred_words(ask, tmp_path):
    assert (
        ask(base={"workload": "azure_conv", "workload.requests": 200}, screen={}, confirm={"leaders": 0}, search=GRID)
        == 0
    )
    lines = (tmp_path / "results/few/latest/trials.jsonl").read_bytes().splitlines()
    assert len(lines) == 4 and max(map(len, lines)) < 2000  # the table of the workload alone is 24 KB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"tp": "choice(0, 1)"}}, "tp = 0: must be at least 1"),
        ({"space": {"engine.memory_utilization": "interval(0.5, 1.5)"}}, "engine.memory_utilization = 1.5: must lie"),
        (
            {"base": {**BASE, "scheduler.tokn_budget": 3}},
            "scheduler.tokn_budget = 3: ChunkedPrefill has no such option",
        ),
        ({"base": {**BASE, "slo.ttft_p99": "3 kg"}}, "slo.ttft_p99 = 3 kg: 'kg' is not a unit of time"),
        ({"screen": {"workload.requests": 0}}, "workload.requests = 0"),
        (
            {"base": {**BASE, "tp": 2}, "space": {"tp": "choice(1, 2)"}},
            "space.tp = choice(1, 2): has no effect: base fixes tp; take one of them out",
        ),
        ({"base": {**BASE, "budgt.designs": 3}}, "budgt.designs: no such address; did you mean budget?"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_judged(ask, tmp_path, capsys, changes, message):
    assert ask(**changes) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_a_value_that_only_some_combinations_refuse_is_no_mistake(ask, tmp_path):
    space = {"scheduler.token_budget": "choice(64, 512)", "scheduler.max_running": "choice(32, 128)"}
    assert ask(space=space) == 0  # 64 tokens do not hold 128 decodes
    lines = [json.loads(line) for line in (tmp_path / "results/few/latest/trials.jsonl").read_text().splitlines()]
    failed = [line for line in lines if line["state"] == "failed"]
    assert [line["design"] for line in failed] == [{"scheduler.token_budget": 64, "scheduler.max_running": 128}]
    assert failed[0]["error"]["message"].startswith("scheduler.token_budget = 64: must exceed")


def test_a_degree_that_does_not_divide_the_model_is_an_answer(ask, tmp_path):
    assert ask(space={"tp": "choice(1, 3)"}, search=GRID) == 0
    lines = [json.loads(line) for line in (tmp_path / "results/few/latest/trials.jsonl").read_text().splitlines()]
    (refused,) = [line for line in lines if line["state"] == "infeasible"]
    assert refused["record"]["reason"].startswith("tp = 3: llama-3.1-8b has")


def test_limits_that_nobody_can_keep_end_a_sweep_with_the_reasons_counted(ask, capsys):
    assert ask("slo.ttft_p99=1ms") == 3
    out = capsys.readouterr().out
    assert "4 x slo.ttft_p99 = 0.001 s: no request can meet it, even alone" in out
    assert ask("model=llama-3.1-70b", "hardware=l40s") == 3
    out = capsys.readouterr().out
    assert "1 x llama-3.1-70b needs 141 GB of weights" in out and "No design is feasible" in out


@pytest.mark.parametrize("command", ["simulate", "capacity"])
def test_a_limit_that_nobody_can_keep_is_refused_by_name(command, capsys):
    overrides = [f"{key}={value}" for key, value in BASE.items()]
    assert main([command, *overrides, "slo.tpot_p99=1us"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mist: slo.tpot_p99 = 1e-06 s: no request can meet it, even alone on the deployment")


def test_a_limit_that_is_missed_for_load_is_no_mistake(capsys):
    overrides = [f"{key}={value}" for key, value in BASE.items()]
    assert main(["simulate", *overrides, "workload.rate=1000"]) == 0
    assert "unstable" in capsys.readouterr().out


def test_capacity_refuses_what_has_no_effect():
    from mist.sweep.capacity import capacity

    assert main(["capacity", "workload.rate=3"]) == 2
    with pytest.raises(InputError, match="at least one seed"):
        capacity(compose([]), seeds=0)


def test_two_pools_keep_their_names_in_errors(capsys):
    assert main(["simulate", "cluster=disaggregated", "decode.tp=3"]) == 2
    assert capsys.readouterr().err.startswith("mist: decode.tp = 3: ")
