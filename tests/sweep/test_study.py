import json

import pytest
import yaml

from mist.errors import InputError, StaleRun
from mist.sweep.store import Trials


def test_the_best_design_is_found_confirmed_and_can_be_replayed(ask, lines):
    code, run = ask("budget.designs=100")
    best = yaml.safe_load((run / "best.yaml").read_text())
    assert code == 0
    assert best["overrides"] == {"hardware": "a100", "tp": "1", "scheduler": "chunked", "token_budget": "2048"}
    assert best["replay"]["simulate"].startswith(
        "mist simulate hardware=a100 tp=1 scheduler=chunked token_budget=2048 "
    )
    assert best["seeds"] == [1, 2]  # fresh ones
    assert len(lines(run, "ok", "infeasible")) == 3 * 4 * 5
    assert len(lines(run, rung="confirm")) == 2 * 2
    assert (run / "trials.parquet").exists() and (run.parent / "latest").resolve() == run


def test_tpe_finds_the_best_design_with_a_third_of_the_grid(ask):
    _, run = ask()
    assert yaml.safe_load((run / "best.yaml").read_text())["overrides"]["hardware"] == "a100"


def test_identical_designs_are_judged_once_and_not_counted_twice(ask, lines, monkeypatch, tmp_path):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    _, run = ask("confirm.leaders=0", "budget.designs=30", when={})  # a static design ignores its token budget
    judged = lines(run, "ok", "infeasible")
    assert len({line["identity"] for line in judged}) == len(judged) == 30
    assert len((tmp_path / "log").read_text().splitlines()) == 30
    assert lines(run, "repeat")


def test_a_crash_is_recorded_with_overrides_and_traceback_and_the_study_goes_on(ask, lines):
    code, run = ask("space.mode=choice(fine, crash)", "budget.designs=12", "search.sampler=random")
    failed = lines(run, "failed")
    assert code == 0 and failed and len(lines(run, "ok", "infeasible", "failed")) == 12
    for line in failed:
        assert "mode=crash" in line["overrides"] and "misbehave" in line["error"]["traceback"]


def test_nothing_feasible_is_exit_code_3_and_says_why(ask, capsys):
    code, run = ask("hardware=l40s", "tp=1")
    assert code == 3 and not (run / "best.yaml").exists()
    assert "needs 60 GB, has 48 GB" in capsys.readouterr().out


def test_a_key_that_is_overridden_leaves_the_space(ask, lines):
    _, run = ask("hardware=h100", "budget.designs=5")
    assert all("hardware" not in line["design"] and "hardware=h100" in line["overrides"] for line in lines(run))


@pytest.mark.parametrize(
    ("override", "field"),
    [("search.sampler=tpx", "search.sampler"), ("space.tp=choice()", "space.tp"),
     ("budget.designs=0", "budget.designs"),
     ("timeout=3 kg", "timeout"), ("workers=dask", "workers"), ("hardware=h1000", "hardware"), ("nonsense", ""),
     ("space.hardware=choice(h100, b30)", "hardware"), ("search.sampler=grid", "search.sampler"),
     ("confirm.seeds=1", "confirm.seeds"), ("budgt=3", "budgt"), ("ray.cpus=0", "ray.cpus"), ("seeds=two", "seeds")],
)  # fmt: skip
def test_a_mistake_is_refused_by_its_field_before_anything_is_judged(ask, tmp_path, override, field):
    with pytest.raises(InputError) as caught:
        ask(override)
    assert caught.value.field == field
    assert not (tmp_path / "results").exists()


def test_resuming_a_finished_run_judges_nothing(ask, again, lines, monkeypatch, tmp_path):
    code, run = ask()
    before = (run / "trials.jsonl").read_bytes()
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    assert again(run) == code == 0
    assert (run / "trials.jsonl").read_bytes() == before and not (tmp_path / "log").exists()


def test_resuming_goes_on_with_what_was_learnt(ask, again, lines):
    _, whole = ask()
    trials = (whole / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (whole / "trials.jsonl").write_bytes(b"".join(trials[:9]) + trials[9][:25])  # a torn line
    assert again(whole) == 0
    assert (whole / "trials.jsonl").read_bytes().startswith(b"".join(trials[:9]))
    assert len({line["identity"] for line in lines(whole, "ok", "infeasible")}) == 20


def test_a_changed_input_is_refused_by_name(ask, again, monkeypatch, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("one")
    _, run = ask(f"workload.path={trace}", "budget.designs=3")
    trace.write_text("two")
    with pytest.raises(StaleRun, match="workload of the base config"):
        again(run)
    trace.write_text("one")
    monkeypatch.setenv("TOY_PRICES", "new")
    with pytest.raises(StaleRun, match="the prices"):
        again(run)
    monkeypatch.delenv("TOY_PRICES")
    assert again(run) == 0


def test_a_run_has_one_driver_at_a_time(ask, again):
    _, run = ask("budget.designs=3")
    trials = Trials(run)
    with pytest.raises(InputError, match="another process"):
        again(run)
    trials.close()
    assert again(run) == 0


def test_a_line_broken_in_the_middle_is_refused_by_number(ask, again):
    _, run = ask("budget.designs=4")
    trials = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trials.jsonl").write_bytes(trials[0] + b"{torn\n" + b"".join(trials[1:]))
    with pytest.raises(InputError, match=r"trials\.jsonl:2"):
        again(run)


def test_a_folder_that_is_no_run_is_refused(again, tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        again(tmp_path)


def test_restarts_share_the_budget_and_the_memory(ask, lines):
    _, run = ask("search.restarts=2")
    judged = lines(run, "ok", "infeasible")
    assert {line["restart"] for line in judged} == {0, 1} and len(judged) == 20


def test_the_manifest_names_every_input(ask):
    _, run = ask("budget.designs=3")
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"the base config", "the config of hardware=l40s", "the space", "the prices", "the judge", "mist sources",
            "numpy"} <= set(manifest["inputs"])  # fmt: skip
    assert manifest["price_date"] == "2026-11-01" and manifest["command"].startswith("mist sweep ")
