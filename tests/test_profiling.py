"""Laws of mist profile ops: its plan, its tables and its sheet; torch is not needed to examine them."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mist.build import build
from mist.cli import main
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.profiling import plan, sheet
from mist.profiling.ops import _spread
from mist.profiling.plan import Attention, Gemm, shapes
from mist.profiling.sheet import Measured
from mist.profiling.tables import KEYS, Tables, described

ONE = Gemm(16, 1024, 4096, "bfloat16")
FOUND = Measured(
    name="mine", title="A Device", version="2.9.0", gpu=True, vendor="nvidia",
    peaks={"bf16": (7e14, "8192 x 8192 x 8192")},
    memory=85_520_809_984, memory_bandwidth=3e12, host_bandwidth=5e10, bus_bandwidth=4e11, bus_latency=5e-6, devices=8,
    power=700.0, idle_power=74.0,
)  # fmt: skip


def test_without_torch_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["profile", "ops"]) == 2
    assert "pip install 'mist-llm[profile-ops]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "word"),
    [(["ops", "--minutes", "0"], "--minutes"), (["ops", "--name", "a/b"], "--name"), (["steps", "no.csv"], "no.csv"),
     (["ops", "--minute", "3"], "did you mean --minutes?"), (["ops", "now"], "now: profile ops takes no argument")],
)  # fmt: skip
def test_bad_input_of_profile_is_one_line(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *argv]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_every_level_is_a_whole_grid_and_no_shape_comes_twice() -> None:
    seen: set[plan.Shape] = set()
    for level in range(plan.LEVELS):
        fresh = list(shapes(level, ("bfloat16",)))
        assert len(set(fresh)) == len(fresh) and not seen & set(fresh)
        seen |= set(fresh)
        matrices = [shape for shape in seen if isinstance(shape, Gemm)]
        axes = [{getattr(shape, axis) for shape in matrices} for axis in ("m", "n", "k")]
        assert len(matrices) == len(axes[0]) * len(axes[1]) * len(axes[2])


def test_all_operators_get_their_share_of_whatever_time_there_is() -> None:
    order = list(_spread(list(shapes(1, ("bfloat16",)))))
    kinds = [described(shape)[0] for shape in order]
    for kind in set(kinds):
        assert kinds[: len(kinds) // 4].count(kind) == pytest.approx(kinds.count(kind) / 4, abs=2)


def test_tables_are_laid_out_as_the_packaged_ones_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "data" / "mine", "2.9.0", "A Device")
    generation = Attention("generation", 8, 1024, 32, 8, 128)
    for shape in (ONE, generation, Attention("context", 1, 256, 32, 8, 128)):
        table, row = described(shape)
        tables.add(table, "kernel", 2e-3, row)
    row = {"allreduce_dtype": "bfloat16", "num_gpus": 2, "message_size": 128, "backend": "torch"}
    tables.add("custom_allreduce_perf", "NCCL", 5e-6, row)
    tables.save()
    again = Tables(tmp_path / "data" / "mine", "2.9.0", "A Device")
    assert again.seconds(ONE) == pytest.approx(2e-3)
    assert again.seconds(Gemm(1, 1, 1, "bfloat16")) is None
    assert Tables(tmp_path / "data" / "mine", "2.9.0", "Another").seconds(ONE) is None
    found = pd.read_parquet(tmp_path / "data/mine/attention/torch/2.9.0/generation_attention_perf.parquet").iloc[0]
    assert (found["isl"] + found["step"], found["latency"], found["op_name"]) == (1024, 2.0, "generation_attention")


@pytest.mark.skipif(importlib.util.find_spec("aiconfigurator_core") is None, reason="no packaged tables here")
@pytest.mark.parametrize(
    "name", ["gemm_perf", "context_attention_perf", "generation_attention_perf", "custom_allreduce_perf"]
)
def test_the_columns_are_those_of_the_packaged_tables(name: str, tmp_path: Path) -> None:
    import aiconfigurator_core  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    root = Path(next(iter(aiconfigurator_core.__path__))) / "systems/data/h100_sxm"
    packaged = set(pq.read_schema(next(iter(sorted(root.glob(f"*/vllm/*/{name}.parquet"))))).names)
    tables = Tables(tmp_path, "2.9.0", "A Device")
    shape = {"gemm_perf": ONE}.get(name) or Attention(name.split("_", maxsplit=1)[0], 1, 16, 8, 1, 64)
    table, row = described(shape)
    if name == "custom_allreduce_perf":
        table, row = name, {"allreduce_dtype": "bfloat16", "num_gpus": 2, "message_size": 128, "backend": "torch"}
    tables.add(table, "kernel", 1e-3, row)
    (written,) = tables.rows[name].values()
    assert set(written) == packaged
    assert set(KEYS[name]) <= packaged


def test_the_sheet_of_a_device_can_be_used_at_once(tmp_path: Path) -> None:
    device = build(HardwareSpec, yaml.safe_load(sheet.hardware_yaml(FOUND, Path("profiles/data/mine"))))
    assert (device.name, device.peak("bf16"), device.scale_up_devices) == ("mine", 7e14, 8)
    assert device.memory == FOUND.memory
    assert device.tables == "profiles/data/mine"
    assert yaml.safe_load(sheet.system_yaml(FOUND))["data_dir"] == "data/mine"


def test_a_sheet_that_somebody_wrote_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# my own\n")
    with pytest.raises(InputError, match="was not measured here"):
        sheet.write(path, sheet.hardware_yaml(FOUND, Path("profiles/data/mine")))
    path.write_text(sheet.hardware_yaml(FOUND, Path("profiles/data/mine")))
    sheet.write(path, sheet.hardware_yaml(FOUND, Path("profiles/data/mine")))
