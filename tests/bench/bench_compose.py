"""How many designs a second can be composed and told apart."""

from pathlib import Path
from time import perf_counter, process_time

import pytest

from mist.compose import compose
from mist.sweep.identity import canonical, design_identity

DESIGNS = 500


def test_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("model/m", "hardware/h", "workload/w", "slo/s", "price/p", "link/l"):
        file = tmp_path / "conf" / f"{address}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"option_{i}: {i} GB\n" for i in range(16)))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "conf" / "config.yaml").read_text()
    for old, new in (("azure_conv", "w"), ("slo: chat", "slo: s"), ("on_demand", "p")):
        text = text.replace(old, new)
    (tmp_path / "conf" / "config.yaml").write_text(text)
    root = Path(__file__).parents[2] / "conf" / "cluster" / "disaggregated.yaml"
    laid_out = root.read_text().replace("llama-3.1-8b", "m").replace("h100", "h").replace("infiniband_ndr400", "l")
    (tmp_path / "conf" / "cluster").mkdir()
    (tmp_path / "conf" / "cluster" / "one_pool.yaml").write_text(laid_out)
    fixed = ["tp=2", "decode.tp=4", "scheduler=chunked_prefill", "scheduler.token_budget=512", "slo.ttft_p99=500ms"]
    began = perf_counter()
    compose(fixed)
    first = perf_counter() - began
    began = perf_counter()
    for i in range(DESIGNS):
        compose([*fixed, f"workload.rate={i}.5", f"engine.memory_utilization=0.{i + 100}"])
    each = (perf_counter() - began) / DESIGNS
    with capsys.disabled():
        print(f"\ncompose: {first * 1e3:.0f} ms the first time, then {each * 1e3:.2f} ms a design")
    assert each < 1e-3


def test_the_identity_of_a_design_costs_less_than_two_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    config, took = compose([]), list[float]()
    for _ in range(21):
        began = process_time()
        design_identity(canonical(config), "")
        took.append(process_time() - began)
    with capsys.disabled():
        print(f"\nidentity of a design: {min(took[1:]) * 1e3:.2f} ms of CPU")
    assert min(took[1:]) < 2e-3
