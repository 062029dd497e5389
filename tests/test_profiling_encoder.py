"""Laws of mist profile encoder: shares of a sheet's peaks, as a sheet that an encoder takes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mist.build import build
from mist.cli import main
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.perf.encoder import EncoderEngine
from mist.profiling import encoder, encoder_cells

GENOA = Path(__file__).parents[1] / "conf" / "hardware" / "genoa.yaml"


def spec() -> HardwareSpec:
    return build(HardwareSpec, yaml.safe_load(GENOA.read_text()))


@pytest.mark.parametrize(("engine", "dtype"), [("onnx", "fp32"), ("onnx-quantised", "int8"), ("torch", "fp32")])
def test_a_core_that_makes_half_its_peak_has_an_efficiency_of_a_half(engine: str, dtype: str) -> None:
    core = {name: spec().peak(name) / spec().cores for name in ("fp32", "int8")}
    rates = {"matmul": core[dtype] / 2, "attention": core["fp32"] / 4}
    rates |= {"fresh": 2e9} if engine == "torch" else {}
    told = build(EncoderEngine, yaml.safe_load(encoder.as_yaml("mine", engine, spec(), rates, "a test")))
    assert (told.name, told.matmul_efficiency, told.attention_efficiency) == ("mine", 0.5, 0.25)
    assert told.fresh_rate == (2e9 if engine == "torch" else None)
    assert told.activations == ("fp32" if engine == "onnx-quantised" else None)


def test_a_core_above_the_clock_of_its_sheet_is_told_and_no_share_is_written() -> None:
    rates = {"matmul": spec().peak("fp32") / spec().cores * 1.1, "attention": 1e9}
    with pytest.raises(InputError, match=r"--hardware = genoa: a core made .* in fp32: its clock is above"):
        encoder.as_yaml("mine", "onnx", spec(), rates, "a test")


def test_rates_are_operations_over_seconds_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 m n k of a product; both products of attention together."""
    monkeypatch.setattr(encoder_cells, "best", lambda call: call())

    def product(left: np.ndarray, right: np.ndarray, weights: bool):
        flops = 2.0 * left.size * right.shape[-1]
        return lambda: flops / (200e9 if weights else 100e9)

    assert encoder_cells.rates(product) == pytest.approx({"matmul": 200e9, "attention": 100e9})


def test_a_measured_sheet_is_used_and_ones_own_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoder, "measured", lambda _engine: ({"matmul": 6e10, "attention": 5e10}, "a test"))
    command = ["profile", "encoder", "--engine", "onnx", "--hardware", "genoa"]
    assert main(command) == main(command) == 0
    assert "stations.encoder.engine=onnx_cpu" in capsys.readouterr().out
    used = ["simulate", "pipeline=embedding", "cluster=encoder_cpu", "hosts.cpu.price=2", "slo=none", "workload.rate=1"]
    assert main([*used, "stations.encoder.engine=onnx_cpu"]) == 0
    Path("conf/encoder/onnx_cpu.yaml").write_text("name: onnx_cpu\n")
    assert main(command) == 2
    assert "was not measured here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--engine", "onnx", "--hardware", "h100"], "is no CPU"),
        (["--engine", "onnx", "--hardware", "abacus"], "no such choice"),
        (["--engine", "candle", "--hardware", "genoa"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "encoder", *words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_without_its_library_one_line_says_how_to_get_it(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def missing(_name: str) -> SimpleNamespace:
        raise ImportError

    monkeypatch.setattr(encoder_cells, "import_module", missing)
    assert main(["profile", "encoder", "--engine", engine, "--hardware", "genoa"]) == 1
    assert "pip install 'mist-llm[profile-" in capsys.readouterr().err
