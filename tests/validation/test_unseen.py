"""Files of every known format with cells that nobody has measured here: each row is predicted, or told why not."""

from pathlib import Path

import pandas as pd
import pytest

from mist.build import build
from mist.compose import compose
from mist.pool import PoolSpec
from mist.report import accuracy
from mist.validation.layout import layout, placed
from mist.validation.measured import measured_sets
from mist.validation.names import engine_in, known, named_in, nearest_profile
from mist.validation.replay import DEFECT, jobs
from mist.validation.run import validate

STEPS = "model,parallel,gpu,phase,ctx_tokens,ctx_requests,ctx_kv_tokens,decode_requests,mean_decode_kv,n,median_ms"
LOOPS = "model,backend,version,system,precision,isl,osl,tp_size,concurrency,silicon_ttft_ms,silicon_tpot_ms"
OFFLINE = "engine_version,model,gpu,precision,tp,pp,isl,osl,num_requests,output_tok_s_total"
OPEN = "engine_version,model,gpu,precision,tp,isl,osl,qps_offered,num_requests,mean_ttft_ms,mean_itl_ms,total_tok_s"
STATIC = "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time"
REPLAY = "request_id,arrival_s,input_toks,output_toks,ttft_ms,tpot_ms,e2e_ms"
PAIRS = (
    "prefill,decode,conc,isl,osl,model_id,completed,total_input_tokens,total_output_tokens,mean_ttft_ms,mean_tpot_ms"
)
MODELS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507")
GPUS = ("A100-SXM4-80GB", "L40S", "GB200 NVL72", "MI300X")


@pytest.fixture
def table(tmp_path):
    """Write a table; all of them lie in one folder."""

    def write(name, head, *rows):
        (tmp_path / name).write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
        return tmp_path / name

    return write


def whole(answer):
    """Every row is somewhere, and nothing is a defect of ours."""
    for one in answer.coverage:
        assert one.cells == one.unmeasured + one.predicted + sum(one.problems.values()), one
        assert sum(one.left_out.values()) <= one.rows
        assert not any(DEFECT in problem for problem in one.problems), one.problems
    return {Path(one.file).stem: one for one in answer.coverage}


# every format, every device


@pytest.mark.parametrize("gpu", GPUS)
def test_cells_of_other_devices_models_engines_and_layouts_are_predicted(table, gpu):
    cuts = ("tp1_ep1", "tp4_ep4", "tp16_ep1")
    steps = [(m, cut, gpu, "mixed", 512, 1, 256, 17, 900.5, 5, 20) for m in MODELS[:2] for cut in cuts]
    engines = (("vllm", "0.11.2"), ("sglang", "0.5.9"), ("trtllm", "1.1.0"))
    table("T01_steps.csv", STEPS, *steps)
    table("T05_loop.csv", LOOPS, *((MODELS[0], *e, gpu, "bf16", 256, 16, 1, 4, 50, 10) for e in engines))
    table("T04_all.csv", OFFLINE, *((v, MODELS[0], gpu, "FP16", 1, 1, 64, 8, 20, 900) for v in ("0.12", "1.0")))
    table("T03_rates.csv", OPEN, *(("1.0", MODELS[0], gpu, "BF16", 1, 100, 8, q, 20, 30, 9, 90) for q in (2, "inf")))
    table("T02_static.csv", STATIC, (MODELS[0], gpu, 1, 128, 4, 8, 60, 30))
    table("T07_pairs.csv", f"{PAIRS},gpu", (1, 2, 4, 100, 10, MODELS[0], 9, 900, 90, 300, 9, gpu))
    requests = [("a", 0.0, 99, 9, 30, 9, 99), ("b", 0.5, 99, 9, 30, 9, 99)]
    folder = table(f"T08_{known('hardware', gpu)}_Llama-3.1-8B-FP16_tp1.csv", REPLAY, *requests).parent
    found = whole(validate(folder))
    assert len(found) == 7
    for name, one in found.items():
        assert one.predicted == one.cells or name == "T01_steps", one.problems
    assert found["T01_steps"].predicted >= 4, found["T01_steps"].problems


def test_every_set_recognises_a_file_that_has_lost_its_optional_columns():
    for name, kind in measured_sets().items():
        least = {names.split("|")[0] for names in kind.columns.values()} | {*getattr(kind.harness, "reads", ())}
        least |= {*(kind.derived.needs if kind.derived else ())} | {next(iter(kind.metrics.values())).column}
        assert kind.fits(least), name
        assert not any(kind.fits(least - {column}) for column in least), name


# what a row says, and what a file's name


@pytest.mark.parametrize(
    ("role", "said", "name"),
    [
        ("hardware", "NVIDIA H100 80GB HBM3", "h100"),
        ("hardware", "NVIDIA-H100-PCIe-80GB", "h100-pcie"),
        ("hardware", "8xH200", "h200"),
        ("hardware", "NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("hardware", "GB200 NVL72", "gb200"),
        ("hardware", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("hardware", "AMD Instinct MI355X", "mi355x"),
        ("model", "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama-3.1-8b"),
        ("model", "Llama v3.3 70B", "llama-3.3-70b"),
        ("model", "nvidia/DeepSeek-R1-0528-FP4", "deepseek-r1"),
        ("model", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b"),
        ("model", "/models/Qwen3-8B/", "qwen3-8b"),
        ("precision", "float16", "bf16"),
        ("precision", "fp8_e4m3", "fp8"),
        ("engine", "vllm 0.6.3", "vllm_0_10"),
        ("engine", "vllm v0.11.2+cu128", "vllm_0_10"),
        ("engine", "vllm 0.18.1", "vllm_0_19"),
        ("engine", "vllm 1.2", "vllm_0_20"),
        ("engine", "vllm 0.2.1", "vllm_0_2"),
        ("engine", "TensorRT-LLM 1.1.0rc2", "trtllm_0_17"),
        ("engine", "trtllm 0.12", "trtllm_0_14"),
        ("engine", "sglang 0.4.6", "sglang_0_5"),
    ],
)  # fmt: skip
def test_what_files_call_things_is_known(role, said, name):
    assert known(role, said) == name


@pytest.mark.parametrize(
    ("role", "said", "why"),
    [
        ("hardware", "GH200 96GB", "gh200 has 144 GB"),
        ("hardware", "H20", "no such name"),
        ("hardware", "RTX PRO 6000 Blackwell Workstation Edition", "no such name"),
        ("model", "Qwen2.5-VL-7B-Instruct", "no such name"),
        ("model", "DeepSeek-V3.2-Exp", "no such name"),
        ("engine", "tgi 2.0", "no such name"),
    ],
)
def test_what_only_sounds_alike_is_told_and_not_taken_for_it(role, said, why):
    with pytest.raises(Exception, match=why):
        known(role, said)


def test_every_model_is_known_by_the_name_it_is_published_under():
    conf = Path(__file__).parents[2] / "conf" / "model"
    for sheet in sorted(conf.glob("*.yaml")):
        shape = next(line for line in sheet.read_text().splitlines() if line.startswith("# Shape:"))
        if "huggingface.co/" in shape:
            assert known("model", shape.partition("huggingface.co/")[2].partition("/blob")[0]) == sheet.stem


def test_a_files_name_says_engine_layout_and_format():
    stem = "T08_replay_RTXPRO6000_Qwen3-32B-FP8_tp2_vllm0110"
    assert (named_in("model", stem), named_in("hardware", stem)) == ("qwen3-32b", "rtx-pro-6000")
    assert (named_in("precision", stem), engine_in(stem), layout({}, stem)) == ("fp8", "vllm 0.11.0", {"tp": 2})
    assert "profile vllm_0_10" in nearest_profile("vllm 0.11.0")
    assert nearest_profile("vllm 0.10.2") == ""


@pytest.mark.parametrize(
    ("said", "cut"),
    [
        ({"tp": "tp4_ep1"}, {"tp": 4, "ep": 1}),
        ({"tp": "tp1_ep4"}, {"tp": 1, "ep": 4, "dp": 4}),
        ({"tp": 2.0, "pp": "2"}, {"tp": 2, "pp": 2}),
        ({"tp": "tp1_ep4_dp4"}, {"tp": 1, "ep": 4, "dp": 4}),
    ],
)
def test_a_layout_is_read_whole(said, cut):
    assert layout(said) == cut


def test_devices_stand_in_the_servers_they_come_in():
    assert placed("llama-3.1-405b", "h100", {"tp": 16})["node"] == "hgx-h100"
    assert placed("qwen3-32b", "l40s", {"tp": 2})["node"] == "pcie-box"
    assert placed("qwen3-32b", "h100", {"tp": 8, "ep": 8, "dp": 2}) == {"tp": "8", "replicas": "2"}
    assert "node" not in placed("qwen3-32b", "h100", {"tp": 8})


# no row is lost


def test_rows_that_cannot_be_predicted_are_counted_with_their_reason(table):
    good = ("Qwen3-8B", "tp1_ep1", "H100", "decode", 0, 0, 0, 4, 100, 5, 20)
    file = table(
        "T01_steps.csv", STEPS, good,
        ("Qwen3-8B", "tp1_ep1", "H100", "decode", 0, 0, 0, 4, 100, 1, 20),  # seen once
        ("Qwen3-8B", "tp1_ep1", "H100", "decode", 0, 0, 0, 4, 100, 5, ""),  # not measured
        ("Qwen3-8B", "tp1_ep1", "H100", "decode", 0, 0, 0, "", 100, 5, 20),
        ("Qwen3-8B", "tp1_ep1", "H100", "decode", 0, 0, 0, 0, 0, 5, 20),
        ("Qwen3-8B", "tp1_ep1", "H100", "decode", "inf", 1, 0, 0, 0, 5, 20),
        ("Qwen3-8B", "tp2_pp2", "H100", "decode", 0, 0, 0, 4, 100, 5, 20),
        ("Qwen3-8B", "tp3_ep1", "H100", "decode", 0, 0, 0, 4, 100, 5, 20),
        ("GPT-4-1800B", "tp8_ep1", "H100", "decode", 0, 0, 0, 4, 100, 5, 20),
    )  # fmt: skip
    answer = validate(file)
    (one,) = whole(answer).values()
    assert (one.rows, one.left_out, one.cells, one.unmeasured, one.predicted) == (9, {"n = 1": 1}, 8, 1, 1)
    told = "\n".join(one.problems)
    for why in ("has no decodes", "neither a decode nor", "must be a number", "of a pipeline", "3 does not", "GPT-4"):
        assert why in told
    assert all(line.startswith("step_log_vllm, T01_steps.csv: ") for line in one.lines)
    assert all(line in accuracy.markdown(answer) for line in one.lines)


def test_a_defect_loses_its_own_cell_and_says_where(table, monkeypatch):
    kind = type(measured_sets()["step_log_vllm"].harness)
    monkeypatch.setattr(kind, "replay", lambda *_: 1 / 0)
    (one,) = validate(table("T01_steps.csv", STEPS, ("Qwen3-8B", "tp1_ep1", "H100", "", 0, 0, 0, 4, 9, 5, 20))).coverage
    (problem,) = one.problems
    assert problem.startswith(DEFECT)
    assert "ZeroDivisionError" in problem


def test_what_nobody_says_is_asked_for_and_may_be_typed(table):
    file = table("mystery.csv", REPLAY, ("a", 0.0, 99, 9, 30, 9, 99), ("b", 0.5, 99, 9, 30, 9, 99))
    assert "says model or hardware" in validate(file).problems[0]
    assert not validate(file, ["model=qwen3-8b hardware=l40s"]).problems


def test_a_version_is_no_number(table):
    file = table(
        "T05_llama8b.csv",
        LOOPS,
        ("", "vllm", "0.10", "h100", "fp8", 128, 8, 1, 2, 9, 9),
        ("", "vllm", "0.20", "h100", "fp8", 128, 8, 1, 2, 9, 9),
    )
    work, _, _ = jobs(file, [""])
    assert [job.overrides()["engine"] for job in work] == ["vllm_0_10", "vllm_0_20"]


def test_a_device_without_a_price_is_predicted_too(table):
    row = ("Qwen3-8B", "tp1_ep1", "GB300", "decode", 0, 0, 0, 4, 100, 5, 20)
    assert not validate(table("T01_steps.csv", STEPS, row)).problems


@pytest.mark.parametrize("changed", [{"gpu": "A100"}, {"parallel": "tp2_ep1"}, {"engine_version": "0.11"}])
def test_only_the_cells_that_were_fitted_on_count_as_calibration(table, changed):
    row = dict(zip(STEPS.split(","), ("Qwen3-32B", "tp4_ep1", "B300", "decode", 0, 0, 0, 4, 100, 5, 20), strict=True))
    file = table("T01_steps.csv", STEPS, row.values())
    assert all(line.fitted for line in validate(file).compared)
    pd.DataFrame([row | changed]).to_csv(file, index=False)
    assert not any(line.fitted for line in validate(file).compared)


# the same as mist simulate


@pytest.mark.parametrize("gpu", ["h100", "l40s", "b200", "mi300x"])
@pytest.mark.parametrize(("model", "cut"), [("Qwen3-8B-FP8", "tp2_ep1"), ("Qwen3-30B-A3B", "tp1_ep4")])
def test_mist_simulate_takes_the_step_times_that_are_scored(table, gpu, model, cut):
    """A cell's deployment, typed as options, has those step times."""
    rows = [(model, cut, gpu, "mixed", 0, 0, 0, n, 900, 5, 20) for n in (1, 48)]
    file = table("T01_steps.csv", STEPS, *rows)
    answer, (work, _, _) = validate(file), jobs(file, [""])
    for job, line in zip(work, answer.compared, strict=True):
        config = compose([f"{address}={value}" for address, value in job.overrides().items()])
        ((name, pool),) = config["pools"].items()
        spec = build(PoolSpec, pool, f"pools.{name}")
        decodes = job.cell.facts["decodes"] * spec.dp
        longest = round(measured_sets()["step_log_vllm"].harness.longest(decodes // spec.dp, 900))
        stretch = spec.steptimes()[0].decode_stretch(decodes, 900 * decodes, longest)
        assert line.predicted == pytest.approx(stretch.first, rel=1e-9)
