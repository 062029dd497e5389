"""Measured sets: recognised by what they hold, replayed as they were measured, scored by what came out."""

import json
import os
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
import yaml

from mist.build import build
from mist.cli import main
from mist.errors import InputError
from mist.model import ModelSpec
from mist.validation.facts import devices
from mist.validation.measured import measured_sets, recognised
from mist.validation.memoryless import memoryless
from mist.validation.names import known, named_in
from mist.validation.replay import Comparison, as_overrides
from mist.validation.run import validate
from mist.validation.score import scored, spearman
from mist.validation.step_log import StepLog
from mist.validation.trtllm_bench import limits
from mist.workload.lengths import Quantiles

FIGURES = yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text())
SETS = measured_sets()


@pytest.fixture
def closed_loop(tmp_path):
    """Two cells of a closed loop, under a name of their own; fields replace columns."""

    def file(name="T05_llama70b_x.csv", **fields):
        rows = FIGURES["closed_loop"]["rows"].splitlines()[:3]
        table = pd.DataFrame([row.split(",") for row in rows[1:]], columns=rows[0].split(",")).assign(**fields)
        table.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return file


# how benchmarks were set up


@pytest.mark.parametrize(("mean", "longest"), [(214, 1024), (202, 1024), (10, 10_000), (490, 1000)])
def test_lengths_without_memory_keep_their_mean_and_their_longest(mean, longest):
    lengths = build(Quantiles, {k: v for k, v in memoryless(mean, longest).items() if k != "_target_"})
    drawn = lengths.draw(200_000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.max() <= longest
    with pytest.raises(InputError, match="half of the longest"):
        memoryless(longest / 2, longest)


@pytest.mark.parametrize(
    ("model", "dtype", "hardware", "tp", "prompt", "answer", "chosen"),
    [
        ("llama-3.1-8b", "fp8", "h100", 1, 128, 128, (4096, 8192)),
        ("llama-3.1-8b", "fp8", "h100", 1, 20000, 2000, (64, 2048)),
        ("llama-3.1-70b", "bf16", "a100", 4, 128, 4096, (160, 2048)),
        ("llama-3.1-70b", "fp8", "h100", 4, 2048, 128, (768, 13312)),
    ],
)
def test_trtllm_bench_chooses_the_limits_of_a_step(
    sheet, make_pool, model, dtype, hardware, tp, prompt, answer, chosen
):
    cut = {"model": build(ModelSpec, sheet("model", model) | {"weight_dtype": dtype, "kv_dtype": dtype})}
    assert limits(make_pool(hardware=hardware, tp=tp, **cut).replica, prompt, answer) == chosen


def test_the_longest_context_of_a_logged_batch_is_the_expected_one_within_the_limit():
    log = StepLog(spread=0.5, limit=8192)
    assert log.longest(1, 4000) == 4000
    assert log.longest(3, 4000) == 4000 * 1.25
    assert log.longest(100, 8000) == 8192
    assert log.longest(2, 9000) == 9000  # a mean says more than the limit
    for wrong in ({"spread": 2.0}, {"limit": -1}, {"limit": 8192}):
        with pytest.raises(InputError):
            StepLog(**wrong)


# which set, which names


@pytest.mark.parametrize("name", FIGURES)
def test_a_set_is_recognised_by_its_columns_whatever_its_file_is_called(tmp_path, name):
    for called in (FIGURES[name]["file"], "anything.csv"):
        (tmp_path / called).write_text(FIGURES[name]["rows"])
        assert recognised(tmp_path / called, SETS) == name


def test_a_file_of_no_set_is_told_and_not_scored(tmp_path, closed_loop):
    closed_loop()
    (tmp_path / "weather.csv").write_text("day,rain\n1,2\n")
    assert [file.name for file in validate(tmp_path).foreign] == ["weather.csv"]
    with pytest.raises(InputError, match="no set of conf/validation describes"):
        validate(tmp_path / "weather.csv")
    with pytest.raises(InputError, match="no file of measurements"):
        validate(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("role", "said", "name"),
    [
        ("model", "meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("model", "LLaMA-3.1-70B", "llama-3.1-70b"),
        ("hardware", "H100-SXM-80GB", "h100"),
        ("hardware", "b200_sxm", "b200"),
        ("precision", "FP16", "bf16"),
        ("engine", "vllm 0.19.0", "vllm_0_19"),
        ("engine", "vllm", "vllm_0_10"),
    ],
)
def test_names_are_known_however_they_are_spelt(role, said, name):
    assert known(role, said) == name


def test_a_file_name_says_what_its_columns_do_not():
    assert named_in("model", "T08_replay_RTXPRO6000_Llama-3.1-8B") == "llama-3.1-8b"
    assert named_in("hardware", "T08_replay_RTXPRO6000_Llama-3.1-8B") == "rtx-pro-6000"
    assert named_in("hardware", "T08_replay_llama4") is None
    assert (devices({"tp": "tp4_ep1"}), devices({"tp": 2.0}), devices({})) == (4, 2, 1)


@pytest.mark.parametrize("fields", [{"system": "abacus"}, {"backend": "pencil"}, {"model": "my-own-7b"}])
def test_an_unknown_name_is_counted_and_told_and_crashes_nothing(closed_loop, fields):
    answer = validate(closed_loop(**fields))
    whole = [score for score in answer.scores if score.part == "all"]
    assert {(score.cells, score.covered, score.mape) for score in whole} == {(2, 0, None)}
    (problem,) = answer.problems
    assert next(iter(fields.values())) in problem


@pytest.mark.parametrize(
    "fields", [{"system": "b200_sxm", "tp_size": 1}, {"precision": "bf16", "tp_size": 8}, {"model": "llama-3.1-8b"}]
)
def test_other_cells_with_the_same_columns_are_scored_as_held_out(closed_loop, fields):
    answer = validate(closed_loop(**fields))
    assert not answer.problems
    assert {score.part for score in answer.scores} >= {"all", "held out"}
    assert all(score.covered == score.cells for score in answer.scores)


def test_a_row_with_a_hole_is_counted_and_told(closed_loop):
    answer = validate(closed_loop(concurrency=["4", ""]))
    whole = [score for score in answer.scores if score.part == "all"]
    assert {(score.cells, score.covered) for score in whole} == {(2, 1)}
    assert answer.problems == ["closed_loop: the row has no concurrency"]


def test_a_design_that_does_not_fit_is_counted_and_told(closed_loop):
    answer = validate(closed_loop(system="l4", tp_size=1))
    assert all(score.covered == 0 for score in answer.scores)
    assert "GB" in answer.problems[0]


# scores


def line(measured, predicted, **facts):
    return Comparison("s", "f", "", "m", measured, predicted, facts=facts)


def test_scores_are_what_they_are_called():
    lines = [line(1.0, 1.1, tp=1), line(2.0, 1.6, tp=1), line(4.0, 4.4, tp=2), line(8.0, None, tp=2)]
    whole, held, one, two = scored(lines, {"s": {"tp": "tp"}})
    assert (whole.cells, whole.covered, held.part) == (4, 3, "held out")
    assert whole.mape == pytest.approx(fmean([0.1, 0.2, 0.1]))
    assert (whole.typical, whole.bias) == (pytest.approx(0.1), pytest.approx(0.0))
    assert whole.rank == pytest.approx(1.0)
    assert (one.part, one.covered, two.part, two.covered) == ("tp 1", 2, "tp 2", 1)


def test_rank_correlation_is_spearmans():
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 10_000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.82078268)  # scipy.stats.spearmanr's example
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 2, 3], [5, 5, 5]) is None


# what is asked for


def test_a_variant_is_what_the_replay_is_given(closed_loop):
    file = closed_loop()
    same, slower = "perf=measured", "perf=measured engine.step_overhead=8ms"
    answer = validate(file, ["", same, slower])
    by_variant = {(score.variant, score.metric): score for score in answer.scores if score.part == "all"}
    assert by_variant["", "tpot"].mape == by_variant[same, "tpot"].mape
    assert by_variant[slower, "tpot"].bias > by_variant[same, "tpot"].bias + 0.1


def test_an_override_that_is_none_is_refused(closed_loop):
    file = closed_loop()
    for variant, why in (("perf=nope", "no such choice"), ("foo=1", "no such address"), ("perf", "address=value")):
        with pytest.raises(InputError, match=why):
            validate(file, [variant])
    assert as_overrides("perf=roofline tp=2") == {"perf": "roofline", "tp": "2"}


@pytest.mark.parametrize("variant", ["slo=chat", "price=spot", "perf=roofline engine.kernels=sglang", "node=nvl72"])
def test_an_override_that_no_replay_depends_on_is_refused(closed_loop, variant):
    with pytest.raises(InputError, match="has no effect"):
        validate(closed_loop(), [variant])


@pytest.mark.parametrize("fields", [{"concurrency": "four"}, {"isl": "long"}, {"tp_size": "some"}])
def test_text_where_a_number_should_be_is_told(closed_loop, fields):
    answer = validate(closed_loop(**fields))
    assert all(score.covered == 0 for score in answer.scores)
    assert f"{next(iter(fields.values()))}: is no number" in answer.problems[0]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_a_file_that_is_no_table_is_told_by_name(tmp_path, content):
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.csv = \.csv: cannot be read as CSV"):
        validate(tmp_path)


def test_the_command_prints_and_writes(closed_loop, tmp_path, capsys, monkeypatch):
    file, page = closed_loop(), tmp_path / "accuracy.md"
    assert main(["validate", str(file), "--compare", "perf=roofline", "perf=roofline,tp=8", "--write", str(page)]) == 0
    assert "closed_loop" in capsys.readouterr().out
    assert "| closed_loop | tpot |" in page.read_text()
    assert {score["variant"] for score in json.loads(page.with_suffix(".json").read_text())} == {
        "perf=roofline", "perf=roofline tp=8",
    }  # fmt: skip
    cells = pd.read_csv(page.with_suffix(".csv"))
    assert len(cells) == 2 * 2 * 2
    assert (cells.predicted / cells.measured - 1).to_numpy() == pytest.approx(cells.error.to_numpy())
    assert main(["validate", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["foreign"] == []
    monkeypatch.delenv("MIST_DATA", raising=False)
    assert main(["validate"]) == 2
    assert "MIST_DATA" in capsys.readouterr().err


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder of measurements")
def test_every_set_finds_its_measurements_and_predicts_them():
    answer = validate(Path(os.environ["MIST_DATA"]) / "measured", ["perf=roofline"])
    assert {score.name for score in answer.scores} == set(SETS)
    whole = {(score.name, score.metric): score for score in answer.scores if score.part == "all"}
    assert all(score.covered for score in whole.values())
    assert whole["closed_loop", "tpot"].rank > 0.9
