"""A Hugging Face config.json describes the same model as its sheet in conf/model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError
from mist.model import ModelSpec
from mist.model_card import read
from mist.scenario import Scenario

CARDS = sorted(Path(__file__).parent.glob("*.json"))
LLAMA = json.loads((Path(__file__).parent / "llama-3.1-8b.json").read_text())


@pytest.fixture
def card(tmp_path):
    """A config.json of its own for every set of changes to Llama 3.1 8B's; None takes a field away."""

    def written(**changes):
        data = {key: value for key, value in (LLAMA | changes).items() if value is not None}
        path = tmp_path / "mine" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
        return path

    return written


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_config_json_describes_the_model_of_its_sheet(path, sheet):
    mine, theirs = asdict(build(ModelSpec, read(path))), asdict(build(ModelSpec, sheet("model", path.stem)))
    assert mine.pop("parameters") == pytest.approx(theirs.pop("parameters"), rel=0.01)
    for free in ("name", *(["context"] if path.stem.startswith("deepseek") else [])):  # sheets say what is published
        mine.pop(free), theirs.pop(free)
    assert mine == theirs


def test_a_model_by_path_composes_and_takes_overrides(card):
    path = card()
    config = compose([f"model={path}", "model.weight_dtype=fp8", "tp=2"])
    model = build(Scenario, config).pools["llm"].model
    assert (model.name, model.layers, model.weight_dtype) == ("mine", 32, "fp8")


def test_one_pool_alone_can_be_given_a_model_by_path(card):
    config = compose(["cluster=disaggregated", f"decode.model={card()}", "prefill.model=qwen3-8b"])
    assert [pool["model"]["name"] for pool in config["pools"].values()] == ["qwen3-8b", "mine"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "Llama", "XLMRoberta"]),
        ({"architectures": None}, ["no architectures", "Llama"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": "32"}, ["num_hidden_layers", "'32'"]),
        ({"quantization_config": {"quant_method": "hqq"}}, ["hqq", "awq"]),
        ({"num_key_value_heads": 5}, ["kv_heads", "32 query heads"]),
    ],
)
def test_a_config_json_that_will_not_do_is_refused_by_name(card, changes, words):
    path = card(**changes)
    with pytest.raises(InputError) as refused:
        compose([f"model={path}"])
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match="JSON"):
        read(path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_weights_have_the_dtype_of_the_quantization(card, quantization, dtype):
    assert build(ModelSpec, read(card(quantization_config=quantization))).weight_dtype == dtype
