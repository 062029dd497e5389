"""Laws of the ladder: screened cheaply, confirmed at full fidelity, and never the one for the other."""

import pytest
import yaml

from mist.errors import InputError
from mist.report.study import reasons
from mist.sweep.question import sweep
from mist.sweep.ranking import leaders, rank

SCREEN = {"workload.requests": 10}
SHORT = "workload.requests=10"


@pytest.fixture
def screened(ask):
    """The toy sweep, all of its 60 designs screened and four confirmed."""

    def asked(*overrides, **changes):
        confirm = {"leaders": 4, "seeds": 2}
        return ask(*overrides, **{"screen": SCREEN, "budget": {"designs": 60}, "confirm": confirm} | changes)

    return asked


def test_what_the_screen_flatters_is_found_out(screened, lines):
    code, run = screened()
    best = yaml.safe_load((run / "best.yaml").read_text())
    first = max(lines(run, "ok", rung="screen"), key=lambda line: line["record"]["value"])
    assert code == 0 and best["rung"] == "confirm"
    assert (first["design"]["hardware"], best["overrides"]["hardware"]) == ("h100", "a100")


def test_each_rung_records_the_overrides_it_was_judged_with(screened, lines):
    _, run = screened()
    best = yaml.safe_load((run / "best.yaml").read_text())
    assert not lines(run)
    assert len(lines(run, rung="screen")) == 60 and len(lines(run, rung="confirm")) == 8
    assert all(SHORT in line["overrides"] for line in lines(run, rung="screen"))
    assert not any(SHORT in line["overrides"] for line in lines(run, rung="confirm"))
    assert "workload.requests" not in best["overrides"] and SHORT not in str(best["replay"])
    screen, confirm = ({line["identity"] for line in lines(run, rung=rung)} for rung in ("screen", "confirm"))
    assert len(screen) == 60 and len(confirm) == 4 and not screen & confirm


def test_no_screened_design_stands_above_a_confirmed_one(screened, lines, capsys):
    _, run = screened()
    ranked = rank(lines(run, rung="screen") + lines(run, rung="confirm"))
    assert [one.rung for one in ranked[:5]] == ["confirm"] * 4 + ["screen"]
    assert ranked[4].value > min(one.value for one in ranked[:4])  # though it seems better
    values = [one.value for one in ranked[:4]]
    assert values == sorted(values, reverse=True)
    out = capsys.readouterr().out
    assert "screened" in out and SHORT in out


def test_a_leader_that_full_fidelity_refutes_gives_its_place_to_the_next(screened, lines, capsys):
    code, run = screened("strict=3", confirm={"leaders": 3, "seeds": 2})
    assert code == 0
    held = {str(line["design"]) for line in lines(run, "ok", rung="confirm")}
    assert len(held) == 3 and not any("'tp': 1" in design for design in held)
    assert yaml.safe_load((run / "best.yaml").read_text())["overrides"]["tp"] != "1"
    assert "at full fidelity 2 x even when idle, ttft_p99 3 s > 1 s" in capsys.readouterr().out


def test_only_so_many_places_are_given_away(screened, lines):
    _, run = screened("strict=3", "tp=1")  # every leader is refuted
    refuted = {str(line["design"]) for line in lines(run, "infeasible", rung="confirm")}
    assert len(refuted) == 8 and not (run / "best.yaml").exists()
    assert len(leaders(lines(run, rung="screen"), 4)) == 4


def test_when_nothing_is_confirmed_the_screen_is_no_answer(screened, capsys):
    code, run = screened("strict=3", "tp=1")
    assert code == 3 and not (run / "best.yaml").exists()
    assert "mist simulate" not in capsys.readouterr().out


def test_resuming_while_confirming_asks_only_for_what_is_missing(screened, again, lines):
    _, run = screened()
    best, whole = (run / "best.yaml").read_text(), (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    kept = b"".join(whole[:-3])
    (run / "trials.jsonl").write_bytes(kept + whole[-3][:40])
    assert again(run) == 0
    assert (run / "trials.jsonl").read_bytes().startswith(kept)
    asked = [(str(line["design"]), line["seeds"][0]) for line in lines(run, rung="confirm")]
    assert len(asked) == len(set(asked)) == 8
    assert (run / "best.yaml").read_text() == best


def test_without_a_screen_the_search_is_at_full_fidelity(ask, lines):
    _, run = ask()
    assert lines(run, rung="search") and not lines(run, rung="screen")
    judged = {str(line["design"]): line["identity"] for line in lines(run, rung="search")}
    assert all(judged[str(line["design"])] == line["identity"] for line in lines(run, rung="confirm"))


def test_an_override_on_the_command_line_holds_on_every_rung(screened, lines):
    _, run = screened("workload.requests=60", "budget.designs=3", "search.sampler=random")
    trials = lines(run) + lines(run, rung="confirm")
    assert trials and all("workload.requests=60" in line["overrides"] for line in trials)


def test_another_workload_takes_the_options_of_the_old_one_out_of_the_screen():
    from mist.sweep.question import read

    assert "workload.requests" in read("quickstart")[1]["screen"]
    assert not read("quickstart", ["workload=trace"])[1]["screen"]
    assert read("quickstart", ["screen.workload.requests=70"])[1]["screen"] == {"workload.requests": 70}


def test_a_cluster_that_does_not_answer_leaves_no_run_behind(screened, tmp_path):
    with pytest.raises(InputError, match="no Ray cluster answers"):
        screened("workers=ray", "ray.address=127.0.0.1:9")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"screen": {"tp": 1}}, "screen.tp"),
        ({"screen": {"nonsense": 1}}, "nonsense"),
        ({"screen": {"workload.rate": 1}}, "screen.workload.rate"),
        ({"base": {"workload.rate": 1}}, "base.workload.rate"),
        ({"space": {"workload.rate": "choice(1, 2)"}, "when": {}}, "space.workload.rate"),
        ({"base": {"seed": 1}}, "base.seed"),
        ({"confirm": {"leaders": 0}}, "confirm.leaders"),
        ({"screen": {"a": {"b": 1}}}, "screen.a"),
    ],
)
def test_a_wrong_ladder_is_refused_by_its_field(screened, tmp_path, changes, field):
    with pytest.raises(InputError) as caught:
        screened(**changes)
    assert caught.value.field == field and not (tmp_path / "results").exists()


def test_a_changed_screen_is_another_run(screened, again):
    _, run = screened("budget.designs=3", "search.sampler=random")
    text = (run / "sweep.yaml").read_text()
    (run / "sweep.yaml").write_text(text.replace("workload.requests: 10", "workload.requests: 11"))
    with pytest.raises(InputError, match="changed since the run began"):
        again(run)


def test_reasons_that_differ_in_what_was_observed_are_counted_as_one():
    told = ["even when idle, ttft_p99 0.5 s > 0.45 s"] * 2 + ["even when idle, ttft_p99 1.2e+01 s > 0.45 s"]
    told += ["needs 141 GB of weights, 2 x l40s hold 96 GB", "needs 141 GB of weights, 1 x l40s hold 48 GB"]
    told += ["no request can meet it: the fastest takes 0.02 s", "no request can meet it: the fastest takes 0.01 s"]
    assert list(reasons([{"record": {"reason": reason}} for reason in told])) == [
        "3 x even when idle, ttft_p99 0.5 to 1.2e+01 s > 0.45 s",
        "2 x no request can meet it: the fastest takes 0.01 to 0.02 s",
        "1 x needs 141 GB of weights, 2 x l40s hold 96 GB",
        "1 x needs 141 GB of weights, 1 x l40s hold 48 GB",
    ]


def test_the_quickstart_is_a_screened_question_whose_leaders_are_confirmed():
    from mist.sweep.question import read

    quickstart = sweep(read("quickstart")[1])
    assert quickstart.screen and quickstart.budget.designs >= 60 and quickstart.confirm.leaders >= 3
    assert {"hardware", "tp", "replicas", "scheduler"} <= set(quickstart.space)
