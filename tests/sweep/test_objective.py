"""What a sweep maximises is named in the question, and refused where it would be nothing for every design."""

import pytest
import yaml

from mist.cli import main
from mist.compose import compose
from mist.sweep.capacity import judge
from mist.sweep.inputs import Workloads

ENCODER = {
    "question": "Which encoder?",
    "base": {"pipeline": "embedding", "workload.requests": 300, "slo.e2e_p99": "2 s"},
    "space": {"stations.encoder.servers": "choice(1, 2)"},
    "search": {"sampler": "grid"},
    "confirm": {"leaders": 1, "seeds": 2},
    "workers": "serial",
}


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """``ask(objective=...)`` sweeps over encoders as the command line does; the exit code."""
    monkeypatch.chdir(tmp_path)

    def asked(**changes):
        (tmp_path / "few.yaml").write_text(yaml.safe_dump(ENCODER | changes, sort_keys=False))
        return main(["sweep", "few.yaml"])

    return asked


def test_output_tokens_of_what_writes_none_are_refused_with_what_there_is(ask, capsys):
    assert ask() == 2
    err = capsys.readouterr().err
    assert err.startswith("mist: objective = tokens_per_dollar: nothing here writes tokens")
    assert "requests_per_dollar, input_tokens_per_dollar" in err
    assert ask(objective="tokens") == 2
    assert "input_tokens_per_dollar" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["requests_per_dollar", "input_tokens_per_dollar"])
def test_encoders_are_ranked_by_what_they_take_in(ask, tmp_path, capsys, objective):
    assert ask(objective=objective) == 0
    best = yaml.safe_load((tmp_path / "results/few/latest/best.yaml").read_text())
    assert best[objective] > 0 and "tokens_per_dollar" not in best
    out = " ".join(capsys.readouterr().out.split())
    assert {"requests_per_dollar": "requests capacity", "input_tokens_per_dollar": "input tokens"}[objective] in out
    assert main(["show", "few", "--write", str(tmp_path / "page.md")]) == 0
    words = {"requests_per_dollar": "requests/$", "input_tokens_per_dollar": "input tokens/$"}[objective]
    assert f"| # | design | {words} |" in (tmp_path / "page.md").read_text()


def test_the_three_objectives_of_one_deployment_agree():
    config = compose(["workload=poisson_fixed", "workload.requests=1500", "slo=chat_relaxed"])
    answer = judge(config, Workloads().traffic(config, [0]))
    traffic, metrics = Workloads().traffic(config, [0])[0], answer["metrics"]
    requests = metrics["requests_per_dollar"]
    assert metrics["input_tokens_per_dollar"] == pytest.approx(requests * traffic.inputs[0])
    assert answer["value"] == pytest.approx(requests * traffic.outputs[0])
    assert requests == pytest.approx(answer["capacity"] * 3600 / metrics["dollars_per_hour"], rel=0.1)
