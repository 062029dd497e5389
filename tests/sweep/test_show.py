"""A run is shown as it is on disk, finished or not, and nothing is judged for it."""

from pathlib import Path

import pytest

from mist.cli import main
from mist.sweep.runs import show, show_all


@pytest.fixture
def run(ask, capsys):
    _, folder = ask("budget.designs=10", "search.sampler=random")
    return folder, capsys.readouterr().out


def test_a_finished_run_is_shown_as_it_was_answered(run, capsys):
    folder, told = run
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert show(folder) == 0
    shown = capsys.readouterr().out
    table = told[told.index("TTFT") : told.index("designs judged")]
    assert table in shown and "mist resume" not in shown
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_an_unfinished_run_is_shown_as_far_as_it_has_come_and_how_to_go_on(run, again, capsys):
    folder, _ = run
    trials = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "trials.jsonl").write_bytes(b"".join(trials[:6]) + trials[6][:20])
    (folder / "trials.parquet").unlink()
    assert show(folder) == 0
    out = capsys.readouterr().out
    assert "6 designs judged" in out and f"mist resume {folder}" in out and "No design is feasible" not in out
    assert again(folder) == 0
    capsys.readouterr()
    assert show(folder) == 0 and "mist resume" not in capsys.readouterr().out


def test_a_run_that_has_only_begun_is_shown_too(run, capsys):
    folder, _ = run
    (folder / "trials.jsonl").write_bytes(b"")
    (folder / "trials.parquet").unlink()
    assert show(folder) == 0
    assert "0 designs judged" in capsys.readouterr().out


def test_all_runs_are_listed_one_a_line(run, tmp_path, capsys):
    folder, _ = run
    assert show_all(tmp_path / "results") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if folder.name in line]
    assert line.startswith(f"toy/{folder.name}") and "done" in line and "10 of 10" in line and "h100 tp=2" in line


def test_a_run_of_another_version_is_listed_and_refused_by_name(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    (folder / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert show_all(Path("results")) == 0 and "unreadable" in capsys.readouterr().out
    assert main(["show", "toy"]) == 2
    assert "another version of MIST" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["sweep.yaml", "manifest.json", "trials.jsonl"])
@pytest.mark.parametrize("text", ["", "{", "[1, 2]\n{}\n"])
def test_a_damaged_run_is_told_by_its_file(run, capsys, file, text):
    folder, _ = run
    (folder / file).write_text(text)
    code = main(["show", str(folder)])
    err = capsys.readouterr().err
    torn = file == "trials.jsonl" and "\n" not in text  # what a crash leaves: the whole lines count
    assert (code, err) == (0, "") if torn else (code == 2 and file in err and err.count("\n") == 1)


def test_no_runs_and_wrong_paths_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show"]) == 0 and "no runs in" in capsys.readouterr().out
    assert main(["show", "nowhere"]) == 2
    assert capsys.readouterr().err == "mist: nowhere: no run is kept there\n"
