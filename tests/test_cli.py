"""Laws of the command line: what is printed where, with which exit code, and what is not even loaded."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mist.cli import main
from mist.errors import Infeasible, InputError, MistError

GROUPS = ("model/llama-3.1-8b", "hardware/h100", "workload/azure_conv", "slo/chat", "price/on_demand")


class Answer:
    """What simulate and capacity return, as far as the command line knows it."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def to_json(self) -> dict[str, Any]:
        return self.facts

    def requests_frame(self) -> Any:
        return SimpleNamespace(to_parquet=lambda path: Path(path).write_text("parquet"))


class Stage:
    """The modules behind the command line, played by fakes; ``calls`` is what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.raises: BaseException | None = None
        self.code = 0
        self._monkeypatch = monkeypatch
        self._play("mist.simulate", simulate=lambda config: self._answer("simulate", config))
        self._play("mist.sweep.capacity", capacity=lambda config, seeds: self._answer("capacity", config, seeds))
        shows = {"show": self._exit("show"), "show_all": self._exit("show_all")}
        self._play("mist.sweep.study", run=self._exit("run"), resume=self._exit("resume"))
        self._play("mist.sweep.runs", **shows)
        self._play("mist.report.text", simulation=lambda result: f"simulated {sorted(result.facts)}")
        self._play("mist.report.capacity", capacity=lambda answer: f"capacity {sorted(answer.facts)}")

    def _play(self, name: str, **functions: Any) -> None:
        module = ModuleType(name)
        vars(module).update(functions)
        self._monkeypatch.setitem(sys.modules, name, module)

    def _answer(self, *call: Any) -> Answer:
        self.calls.append(call)
        if self.raises:
            raise self.raises
        return Answer(tokens_per_dollar=1.5)

    def _exit(self, name: str) -> Any:
        def act(*call: Any) -> int:
            self.calls.append((name, *call))
            return self.code

        return act


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    for name in GROUPS:
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"name: {file.stem}\n")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text("question: Which of two?\n")
    monkeypatch.chdir(tmp_path)
    return Stage(monkeypatch)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mist: ")
    assert err.count("\n") == 1
    return err.removeprefix("mist: ").rstrip()


def test_simulate_composes_and_prints(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "tp=2", "seed=3"]) == 0
    ((name, config),) = stage.calls
    assert (name, config["pools"]["llm"]["tp"], config["seed"]) == ("simulate", 2, 3)
    assert capsys.readouterr().out == "simulated ['tokens_per_dollar']\n"


def test_options_may_stand_between_overrides(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "tp=2", "--json", "seed=3"]) == 0
    assert (stage.calls[0][1]["pools"]["llm"]["tp"], stage.calls[0][1]["seed"]) == (2, 3)
    assert json.loads(capsys.readouterr().out) == {"tokens_per_dollar": 1.5}


def test_requests_are_written_where_asked(stage: Stage, tmp_path: Path) -> None:
    assert main(["simulate", "--requests", "rows.parquet"]) == 0
    assert (tmp_path / "rows.parquet").read_text() == "parquet"


@pytest.mark.parametrize("file", ["rows.csv", "nowhere/rows.parquet", "folder.parquet", "/dev/full/rows.parquet"])
def test_an_unwritable_file_is_refused_before_anything_runs(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    assert main(["simulate", "--requests", file]) == 2
    assert file in complaint(capsys)
    assert not (tmp_path / "rows.csv").exists()
    assert stage.calls == []


def test_capacity_is_repeated_over_seeds(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "tp=4", "--seeds", "5"]) == 0
    assert stage.calls[0][2] == 5
    assert "capacity" in capsys.readouterr().out


def test_a_sweep_passes_its_overrides_and_its_exit_code(stage: Stage) -> None:
    stage.code = 3
    assert main(["sweep", "mine", "budget.designs=9", "tp=2"]) == 3
    assert stage.calls == [("run", "mine", ["budget.designs=9", "tp=2"])]


def test_a_run_is_found_by_path_by_name_and_by_sweep(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "results" / "mine" / "2026-11-21_101500-abcdef12"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    (run.parent / "latest").symlink_to(run.name)
    for name in (str(run), f"mine/{run.name}", "mine", "results/mine"):
        assert main(["resume", name]) == 0
        assert main(["show", name]) == 0
    assert stage.calls == [("resume", run), ("show", run)] * 4
    assert main(["show"]) == 0 and stage.calls[-1] == ("show_all", Path("results"))
    assert main(["resume", "yours"]) == 2
    assert complaint(capsys) == f"yours: no run is kept there (valid: results/mine/{run.name})"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["simulat"], ["simulat: no such command", "did you mean simulate?"]),
        (["simulate", "--jsn"], ["--jsn: no such option", "did you mean --json?"]),
        (["simulate", "tp=2", "--request=a.parquet"], ["--request", "did you mean --requests?"]),
        (["--versoin"], ["did you mean --version?"]),
        (["capacity", "--seeds", "many"], ["--seeds", "many"]),
        (["capacity", "--seeds", "0"], ["--seeds = 0", "at least one"]),
        (["simulate", "tp"], ["tp: an override reads address=value"]),
        (["simulate", "model=lama"], ["model = lama", "llama-3.1-8b"]),
        (["sweep"], ["sweep: ", "NAME"]),
        (["sweep", "mien"], ["sweep = mien: no such sweep", "did you mean mine?"]),
        (["show", "a", "b"], ["b: show takes one argument"]),
        (["list", "modl"], ["modl: no such group", "did you mean model?"]),
        (["show", "--write", "page.md"], ["--write: has no effect without a RUN"]),
        (["show", "--beside", "mine"], ["--beside: has no effect without a RUN"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    stage: Stage, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    assert main(argv) == 2
    message = complaint(capsys)
    for word in words:
        assert word in message
    assert stage.calls == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("pools.decode.tp", 3, "must divide 8"), 2, "decode.tp = 3: must divide 8"),
        (Infeasible("needs 141 GB, has 96 GB"), 3, "needs 141 GB, has 96 GB"),
        (MistError("lost"), 1, "lost"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("310 GiB"), 1, "not enough memory: 310 GiB"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
    ],
)
def test_every_error_has_its_exit_code(
    stage: Stage, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    stage.raises = error
    assert main(["simulate"]) == code
    assert complaint(capsys) == words


def test_a_bug_keeps_its_traceback(stage: Stage) -> None:
    stage.raises = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["simulate"])


def test_list_names_every_group_and_choice(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("scheduler") and "chunked_prefill" in line for line in lines)
    assert any(line.startswith("sweeps") and "mine" in line for line in lines)
    assert main(["list", "scheduler"]) == 0
    assert "Sarathi-Serve" in capsys.readouterr().out
    assert main(["list", "sweeps"]) == 0
    assert "Which of two?" in capsys.readouterr().out


def test_no_arguments_and_help_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out == text
    for word in ("simulate", "capacity", "sweep", "resume", "show", "list", "exit codes"):
        assert word in text


def test_help_and_version_load_nothing_heavy() -> None:
    heavy = ["ray", "optuna", "pandas", "numpy", "pyarrow", "hydra", "omegaconf", "yaml", "rich"]
    for option in ("--help", "--version"):
        code = (
            "import sys; from mist.cli import main\n"
            f"try: main(['{option}'])\nexcept SystemExit: pass\n"
            f"print('loaded', [m for m in {heavy} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "mist", "simulat"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mist: simulat: no such command")
