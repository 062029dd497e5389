"""Laws of the data sheets: every YAML under conf/ is examined, so a newcomer is too."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from mist.build import build, plain
from mist.cli import main
from mist.compose import compose
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.network import LinkSpec
from mist.node import NodeSpec
from mist.perf.collective import allreduce_time
from mist.price import PriceList
from mist.scenario import Scenario
from mist.slo import SLO

CONF = Path(__file__).parents[2] / "conf"
KINDS = {"model": ModelSpec, "hardware": HardwareSpec, "price": PriceList, "link": LinkSpec, "slo": SLO}
KINDS["node"] = NodeSpec
SHEETS = [path for noun in KINDS for path in sorted((CONF / noun).glob("*.yaml"))]
MODELS, HARDWARE, PRICES = (sorted((CONF / noun).glob("*.yaml")) for noun in ("model", "hardware", "price"))
NAMED = (
    "a100-40gb", "a100", "h100", "h100-pcie", "h100-nvl", "h200", "b200", "b300", "gb200", "gb300", "l4", "l40s",
    "rtx-pro-6000", "rtx-4090", "mi250", "mi300x", "mi325x", "mi350x", "mi355x", "tpu-v5e", "tpu-v5p", "tpu-v6e",
    "tpu-v7", "gaudi-2", "gaudi-3", "trainium-2", "groq-like", "etched-like", "grace", "sapphire-rapids", "genoa",
)  # fmt: skip
NUMBER = re.compile(r":\s*[\"']?[-+]?\d")
COMMENT = re.compile(r"#\s*\S.{3,}")


def address(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@cache
def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


def model(name: str) -> ModelSpec:
    return build(ModelSpec, read(CONF / "model" / f"{name}.yaml"))


def hardware(name: str) -> HardwareSpec:
    return build(HardwareSpec, read(CONF / "hardware" / f"{name}.yaml"))


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_a_sheet_builds_and_is_named_after_its_file(path: Path) -> None:
    assert build(KINDS[path.parent.name], read(path)).name == path.stem


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_a_sheet_survives_the_way_to_plain_data_and_back(path: Path) -> None:
    sheet = build(KINDS[path.parent.name], read(path))
    assert build(KINDS[path.parent.name], plain(sheet)) == sheet


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_a_sheet_holds_maps_and_no_lists(path: Path) -> None:
    def leaves(node: object) -> list[object]:
        return [leaf for value in node.values() for leaf in leaves(value)] if isinstance(node, dict) else [node]

    assert not [leaf for leaf in leaves(read(path)) if isinstance(leaf, list)]


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_every_figure_has_a_source_beside_it_or_at_the_head_of_its_file(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert COMMENT.match(head), "no comment at the head of the file"
    if path.parent.name == "model":
        assert re.search(r"^# Shape: https://huggingface\.co/\S+/config\.json$", head, re.MULTILINE)
        assert re.search(r"^# Published count: .*\d", head, re.MULTILINE)
        return
    bare = [line for line in lines if NUMBER.search(line.split("#")[0]) and not COMMENT.search(line)]
    assert not bare, "figures without a source"
    if any("# sheet" in line for line in lines):
        assert re.search(r"^# Sheet: ", head, re.MULTILINE), "no sheet is named at the head of the file"


@pytest.mark.parametrize("path", MODELS, ids=address)
def test_the_parameters_counted_from_the_shape_are_the_published_ones(path: Path) -> None:
    spec = build(ModelSpec, read(path))
    assert spec.counted_parameters == pytest.approx(spec.parameters, rel=0.01)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2),  # layers x (K and V) x KV heads x head width x bytes
        ("llama-3.1-70b", 80 * 2 * 8 * 128 * 2),
        ("llama-2-7b", 32 * 2 * 32 * 128 * 2),  # no grouped queries
        ("qwen2.5-7b", 28 * 2 * 4 * 128 * 2),
        ("deepseek-v3", 61 * (512 + 64) * 2),  # MLA: the latent and one rotary key, once
        ("deepseek-v2-lite", 27 * (512 + 64) * 2),
        ("gpt-oss-120b", 36 * 2 * 8 * 64 * 2),
    ],
)
def test_kv_bytes_per_token_follow_from_first_principles(name: str, by_hand: int) -> None:
    assert model(name).kv_bytes_per_token == by_hand


def test_kv_bytes_per_token_of_two_well_known_models() -> None:
    assert (model("llama-3.1-8b").kv_bytes_per_token, model("deepseek-v3").kv_bytes_per_token) == (131072, 70272)


@pytest.mark.parametrize(("name", "published"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_weight_bytes_of_a_block_scaled_checkpoint_are_the_published_ones(name: str, published: float) -> None:
    # GiB of the checkpoint: gpt-oss model card, arXiv:2508.10925, table 1
    assert model(name).weight_bytes / 2**30 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("path", MODELS, ids=address)
def test_narrower_weights_never_take_more_bytes(path: Path) -> None:
    wide = [build(ModelSpec, {**read(path), "weight_dtype": d}).weight_bytes for d in ("fp32", "bf16", "fp8", "int4")]
    assert wide == sorted(wide, reverse=True)


@pytest.mark.parametrize("path", HARDWARE, ids=address)
def test_narrower_numbers_never_multiply_slower(path: Path) -> None:
    device = build(HardwareSpec, read(path))
    for wide, narrow in (("bf16", "fp8"), ("bf16", "int8"), ("fp8", "fp4"), ("int8", "int4")):
        assert device.peak(narrow) >= device.peak(wide) or narrow not in device.peaks
    assert device.peaks.get("fp32", 0.0) <= device.peaks["bf16"]


@pytest.mark.parametrize("path", HARDWARE, ids=address)
def test_a_device_idles_below_its_full_power_and_reads_its_memory_within_reason(path: Path) -> None:
    device = build(HardwareSpec, read(path))
    assert 0 < device.idle_power < device.power
    assert 1e-6 < device.memory / device.memory_bandwidth < 10  # s to read all of it: SRAM to DDR
    assert device.scale_up_bandwidth <= device.memory_bandwidth


@pytest.mark.parametrize(
    ("name", "dense_bf16"),
    [("h100", 989e12), ("a100", 312e12), ("l40s", 362e12), ("b200", 2250e12), ("mi300x", 1307.4e12)],
)
def test_peaks_are_dense(name: str, dense_bf16: float) -> None:
    assert hardware(name).peak("bf16") == dense_bf16


def test_a_device_without_fp8_gains_no_time_from_fp8_weights() -> None:
    assert hardware("a100").peak("fp8") == hardware("a100").peak("bf16")


def test_a_device_without_fp4_multiplies_fp4_weights_in_16_bits() -> None:
    assert hardware("h100").peak("fp4") == hardware("h100").peak("bf16")


@pytest.mark.parametrize(
    ("mebibytes", "bus_bandwidth"),  # GB/s on 8 x H200: stas00/ml-engineering, network benchmarks, all-reduce
    [(4, 107.16), (16, 219.89), (64, 346.51), (256, 436.15), (1024, 463.58)],
)
def test_the_link_figures_of_a_sheet_give_the_measured_all_reduce(mebibytes: int, bus_bandwidth: float) -> None:
    device, payload = hardware("h200"), mebibytes * 2**20
    measured = 2 * 7 / 8 * payload / (bus_bandwidth * 1e9)
    assert allreduce_time(payload, 8, device.scale_up_bandwidth, device.scale_up_latency) == pytest.approx(
        measured, rel=0.2
    )


def test_a_projection_says_so() -> None:
    for path in HARDWARE:
        assert (read(path)["vendor"] == "projection") == path.read_text().startswith("# PROJECTION")


@pytest.mark.parametrize("path", PRICES, ids=address)
def test_only_hardware_that_exists_has_a_price(path: Path) -> None:
    assert set(read(path)["hourly"]) <= {sheet.stem for sheet in HARDWARE}


@pytest.mark.parametrize("name", ["h100", "a100", "l40s", "h200", "b200", "l4"])
def test_the_default_list_prices_the_usual_hardware(name: str) -> None:
    assert build(PriceList, read(CONF / "price" / "on_demand.yaml")).of(name) > 0


def test_a_missing_price_is_an_error_that_names_the_choices() -> None:
    prices = build(PriceList, read(CONF / "price" / "on_demand.yaml"))
    with pytest.raises(InputError, match=r"hourly\.grace.*h100"):
        prices.of("grace")


def test_spot_is_no_dearer_than_on_demand() -> None:
    on_demand, spot = (read(CONF / "price" / f"{name}.yaml")["hourly"] for name in ("on_demand", "spot"))
    assert not [name for name in spot if float(spot[name].split()[0]) > float(on_demand[name].split()[0])]


def test_the_catalogue_is_broad_enough() -> None:
    assert len(MODELS) >= 40
    assert len(HARDWARE) >= 30


@pytest.mark.parametrize("name", NAMED)
def test_the_usual_accelerators_hosts_and_projections_have_a_sheet(name: str) -> None:
    assert hardware(name).peak("bf16") > 0


@pytest.mark.parametrize("path", [p for p in SHEETS if p.parent.name in ("hardware", "link", "node")], ids=address)
def test_every_quantity_has_a_unit(path: Path) -> None:
    counts = {
        "scale_up_devices",
        "cores",
        "tables",
        "devices",
        "peer_to_peer",
        "host_speed",
        "multiprocessors",
        "generated_attention",
        "name",
        "vendor",
        "kind",
    }
    flat = [(k, v) for k, v in read(path).items() if not isinstance(v, dict)] + list(
        read(path).get("peaks", {}).items()
    )
    assert not [
        key for key, value in flat if key not in counts and not re.fullmatch(r"[\d.]+ [A-Za-z$][\w/]*", str(value))
    ]


@pytest.mark.parametrize("path", PRICES, ids=address)
def test_every_price_is_in_dollars_per_hour_with_provider_commitment_and_date(path: Path) -> None:
    sheet = read(path)
    assert all(re.fullmatch(r"[\d.]+ \$/h", price) for price in sheet["hourly"].values())
    assert all(sheet[key] for key in ("provider", "region", "commitment"))
    assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", sheet["date"])


def test_there_is_a_list_of_one_provider_for_each_commitment() -> None:
    lists = [read(path) for path in PRICES if "mixed" not in read(path)["provider"]]
    assert {"on demand", "spot", "three-year rental", "owned by a neocloud"} <= {sheet["commitment"] for sheet in lists}


def test_a_device_without_a_price_is_told_before_anything_is_simulated_and_how_to_give_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simulate", "hardware=grace"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "mist: price.hourly.grace = (nothing): on_demand has no price for it; give one (price.hourly."
    )


@pytest.mark.parametrize("price", ["2.5 $/h", "2.5"])
def test_any_price_can_be_given_on_the_command_line_and_the_result_says_whose_the_rest_are(price: str) -> None:
    config = compose(["hardware=grace", f"price.hourly.grace={price}"])
    scenario = build(Scenario, config)
    assert scenario.dollars_per_hour == 2.5
    assert scenario.price.source == "on_demand: mixed, Verda first, on demand, 2026-11-21"
