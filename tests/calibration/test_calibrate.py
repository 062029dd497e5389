"""Laws of calibration: scalars that made a benchmark are found again, and what no fit can know is said.

Benchmarks are written as ``vllm bench serve --save-detailed`` writes them, of runs of the simulator itself.
"""

import json
import os
from math import isclose
from pathlib import Path

import numpy as np
import pytest
import yaml

from mist.calibration import replays
from mist.calibration.calibrate import AFTER, BEFORE, calibrate
from mist.calibration.cells import cells
from mist.calibration.fit import OUT_OF_TIME
from mist.calibration.scalars import COLLINEAR, SCALARS, unidentified
from mist.cli import main
from mist.compose import compose
from mist.simulate import simulate

TRUE = {"step_overhead": 6e-3, "front_end": 25e-3, "mixed_overhead": 8e-3, "request_overhead": 90e-6}
OWN = {"hardware": "h100", "tp": "1", "perf": "roofline", "engine": "vllm"}
DEPLOYED = [f"{address}={value}" for address, value in OWN.items()]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Write the output of a benchmark of ``clients`` in a closed loop, answers of about ``output`` tokens.

    The same benchmark is run once.
    """
    files = {}

    def benchmark(*run, **options):
        asked = repr((run, options))
        if asked not in files:
            files[asked] = write(tmp_path_factory.mktemp("runs"), *run, **options)
        return files[asked]

    def write(directory, name, clients, output, noise=0.0, true=TRUE, requests=120, prompt=900, **changes):
        chance = np.random.default_rng([clients, output])
        inputs = chance.integers(prompt // 3, prompt, requests)
        outputs = chance.integers(max(output // 3, 2), output, requests)
        trace = directory / "requests.csv"
        rows = [f"{i},{n},{m}" for i, (n, m) in enumerate(zip(inputs, outputs, strict=True))]
        trace.write_text("\n".join(["arrival,input,output", *rows]))
        config = compose([
            "slo=none", "window.drain=true", "window.warmup=0", "workload=closed_trace", f"workload.path='{trace}'",
            f"workload.concurrency={clients}", "scheduler=vllm_v1", *DEPLOYED,
            *(f"engine.{scalar}={value * 1e6} us" for scalar, value in true.items()),
        ])  # fmt: skip
        served = sorted(simulate(config).requests, key=lambda request: request.id)
        slips = 1 + noise * chance.standard_normal((len(served), 2))
        file = directory / f"{name}.json"
        data = {
            "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B-Instruct", "request_rate": "inf",
            "max_concurrency": clients, "completed": requests,
            "input_lens": [r.input for r in served], "output_lens": [r.output for r in served],
            "ttfts": [(r.first_token - r.arrived) * slip for r, slip in zip(served, slips[:, 0], strict=True)],
            "itls": [
                [(r.finished - r.first_token) / (r.output - 1) * slip] * (r.output - 1)
                for r, slip in zip(served, slips[:, 1], strict=True)
            ],
            "mean_ttft_ms": 1.0,
        } | changes  # fmt: skip
        data["mean_ttft_ms"] = float(np.mean(data["ttfts"])) * 1e3
        file.write_text(json.dumps(data))
        return str(file)

    return benchmark


@pytest.fixture(scope="module")
def several(benchmark):
    """Runs that tell all four scalars: concurrencies, output lengths, prompts longer than the token budget."""

    def write(noise=0.0):
        shapes = [(1, 200, 900), (4, 60, 900), (16, 200, 900), (48, 60, 900), (48, 300, 900), (8, 12, 12_000)]
        return [benchmark(f"run{n}", c, o, noise, prompt=p) for n, (c, o, p) in enumerate(shapes)]

    return write


@pytest.fixture(scope="module")
def fitted(several):
    """What is found in them."""
    return calibrate(several(), OWN)


# what a fit finds


def test_scalars_that_made_a_benchmark_are_found_again(fitted):
    answer = fitted
    estimates = {one.name: one for one in answer.estimates}
    assert estimates.pop("launch_time").value == 0
    for one in estimates.values():
        assert one.low is not None, one
        assert one.value == pytest.approx(TRUE[one.name], rel=0.05), one
    after = [score for score in answer.scores if score.variant == AFTER]
    assert all(score.mape < 0.01 for score in after)


def test_confidence_intervals_hold_the_truth_under_noise(several):
    estimates = {one.name: one for one in calibrate(several(noise=0.2), OWN).estimates}
    assert estimates.pop("launch_time").value == 0
    for one in estimates.values():
        assert one.low <= TRUE[one.name] <= one.high, one


def test_errors_before_are_those_of_the_base_profile_and_after_they_are_smaller(several):
    answer = calibrate(several(noise=0.1), OWN)
    mape = {(score.metric, score.variant): score.mape for score in answer.scores if score.part == "calibration"}
    for figure in answer.fitted:
        assert mape[figure, AFTER] < mape[figure, BEFORE]


def test_a_scalar_that_is_given_is_held_there(several):
    own = {**OWN, "engine.front_end": "25 ms", "engine.mixed_overhead": "8 ms"}
    estimates = {one.name: one for one in calibrate(several(), own).estimates}
    assert estimates["front_end"].why == "given: engine.front_end=25 ms"
    assert (estimates["front_end"].value, estimates["front_end"].low) == (25e-3, None)
    for name in ("step_overhead", "request_overhead"):
        assert estimates[name].value == pytest.approx(TRUE[name], rel=0.05)


def test_held_out_cells_do_not_touch_the_fit(several, benchmark, fitted):
    files = several()
    wild = benchmark("wild", 4, 60, true={**TRUE, "step_overhead": 60e-3})
    beside = calibrate([*files, wild], OWN, "file=wild.json")
    assert beside.cells == (len(files), 1)
    assert [one.value for one in beside.estimates] == [one.value for one in fitted.estimates]
    errors = {
        score.part: score.mape for score in beside.scores if score.variant == AFTER and score.metric == "tpot_mean"
    }
    assert errors["calibration"] < 0.01 < errors["held out"]


# what data cannot tell


def test_per_request_and_per_step_overhead_are_not_told_apart_at_one_concurrency(benchmark):
    estimates = {one.name: one for one in calibrate([benchmark(f"r{n}", 16, n) for n in (60, 90)], OWN).estimates}
    given_up = estimates["request_overhead"]
    assert (given_up.value, given_up.low) == (given_up.base, None)
    assert "step_overhead" in given_up.why
    assert "another concurrency" in given_up.remedy


def test_what_leaves_no_trace_is_named():
    seen = np.array([[0.1, 0.0], [0.2, 0.0], [0.1, 0.0]])
    assert unidentified(seen, ["step_overhead", "front_end"], 3)[:2] == (
        "front_end",
        "has no effect on what was measured",
    )


@pytest.mark.parametrize(("first", "second"), [("step_overhead", "request_overhead"), ("front_end", "mixed_overhead")])
def test_columns_along_one_direction_give_up_the_later_scalar(first, second):
    column = np.array([0.1, 0.2, 0.3, 0.1])
    aside = np.array([1.0, -1.0, 0.0, 1.0]) / 40
    assert unidentified(np.column_stack([column, 3 * column + aside / COLLINEAR]), [first, second], 4).scalar == second
    assert unidentified(np.column_stack([column, column[::-1]]), [first, second], 4) is None


def test_there_are_more_observations_than_scalars():
    two = ["step_overhead", "front_end"]
    assert "2 observations cannot tell 2 scalars" in unidentified(np.eye(2), two, 2).why
    assert unidentified(np.eye(3)[:, :2] + 0.1, two, 3) is None


def test_less_than_no_overhead_is_refused_and_told(benchmark):
    """A device faster than its sheet: the fit stops at 0 and says that step times are the matter."""
    none = dict.fromkeys(TRUE, 0.0)
    files = [benchmark(f"r{c}", c, 100, true=none) for c in (2, 16, 48)]
    slow = {**OWN, "perf.bandwidth_efficiency": "0.5"}
    estimates = {one.name: one for one in calibrate(files, slow).estimates}
    assert estimates["step_overhead"].value == 0
    assert "too slow" in estimates["step_overhead"].why


# what is asked for, and what is written


def test_a_written_profile_composes_and_is_what_was_fitted(several, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = several()
    own = [*DEPLOYED, "engine.reserve=3GB"]
    assert main(["calibrate", *files, *own, "--hold-out", "concurrency=4", "--write", "conf/engine/mine.yaml"]) == 0
    assert "use it as engine=mine" in capsys.readouterr().out
    text = Path("conf/engine/mine.yaml").read_text()
    assert all(Path(file).name in text for file in files)
    assert "held out" in text and "SHA-256" in text and "perf=roofline" in text
    assert max(map(len, text.splitlines())) <= 120 or "SHA-256" in text
    engine = compose(["engine=mine"])["pools"]["llm"]["engine"]
    assert engine["reserve"] == "3GB"
    result = simulate(compose(["engine=mine", "workload.requests=50", "workload=poisson_fixed"]))
    assert result.counts.completed
    written = yaml.safe_load(text)
    for scalar, truth in TRUE.items():
        value, unit = written[scalar].split()
        step = 7e-3 if scalar == "front_end" else 0.0  # TTFT climbs in stairs of one engine step
        assert isclose(float(value) * {"ms": 1e-3, "us": 1e-6}[unit], truth, rel_tol=0.05, abs_tol=step)
    again = calibrate(files, {**OWN, "engine": "mine"})  # whatever its name, it is replayed as the engine it is of
    assert all(score.mape < 0.01 for score in again.scores if score.variant == BEFORE)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "does not say hardware, tp: add it, for example hardware=h100 tp=2"),
        (["hardware=h100"], "does not say tp"),
        ([*DEPLOYED, "tp=2"], "given twice"),
        ([*DEPLOYED, "nonsense=3"], "no such address"),
        ([*DEPLOYED, "--hold-out", "colour=red"], "no such column"),
        ([*DEPLOYED, "--hold-out", "concurrency=5"], "no cell has that value"),
        ([*DEPLOYED, "--hold-out", "concurrency=4"], "some must be left on each side"),
        ([*DEPLOYED, "--hold-out", "1"], "a number above 1"),
        ([*DEPLOYED, *(f"engine.{name}=1ms" for name in SCALARS)], "all are given"),
        ([*DEPLOYED, "model=llama-3.1-405b"], "no cell can be replayed"),
        ([*DEPLOYED, "slo.ttft_p99=1s"], "slo.ttft_p99 = 1s: has no effect: times are compared"),
        ([*DEPLOYED, "price=spot"], "price = spot: has no effect: times are compared, not dollars"),
        ([*DEPLOYED, "node=hgx-h100"], "node = hgx-h100: has no effect: the replica's 1 x h100"),
        ([*DEPLOYED, "engine.kernels=sglang"], "engine.kernels = sglang: has no effect"),
        (["hardware=h100", "tp=1", "perf=profile", "perf.path=x.csv"], "perf = profile: a step log holds the engine's"),
        ([*DEPLOYED, "workload.concurrency=many"], "workload.concurrency = many: is no number"),
        ([*DEPLOYED, "--minutes", "0"], "--minutes = 0: must be positive"),
        ([*DEPLOYED, "--minutes", "inf"], "--minutes = inf: must be positive"),
        ([*DEPLOYED, "--minutes", "0.0000001"], "--minutes = 1e-07: was over after 0 of 1 cells"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(benchmark, words, why, tmp_path, capsys):
    file = benchmark("one", 4, 30)
    page = tmp_path / "mine.yaml"
    assert main(["calibrate", file, *words, "--write", str(page)]) == 2
    assert why in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize("name", ["mine.txt", "my own.yaml", "."])
def test_a_profile_is_written_under_a_name_that_can_be_typed(benchmark, name, capsys):
    assert main(["calibrate", benchmark("one", 4, 30), *DEPLOYED, "--write", name]) == 2
    assert "--write" in capsys.readouterr().err


def test_a_load_that_cannot_be_known_is_told(benchmark, capsys):
    file = benchmark("one", 4, 30, request_rate=None, max_concurrency=None)
    assert main(["calibrate", file, *DEPLOYED]) == 2
    assert "neither concurrency nor rate nor when requests arrived: add workload.concurrency" in capsys.readouterr().err
    assert main(["calibrate", *DEPLOYED]) == 2
    assert "name the output of a benchmark" in capsys.readouterr().err


def first_cells(files, own):
    """The cells that a calibration replays first."""
    return [cell.replay({**cell.overrides, **own}) for cell in cells([str(file) for file in files], own)]


def test_a_load_that_the_file_lacks_may_be_typed(benchmark):
    own = {**OWN, "workload.concurrency": "4"}
    (told,) = first_cells([benchmark("one", 4, 30)], OWN)
    (typed,) = first_cells([benchmark("two", 4, 30, request_rate=None, max_concurrency=None)], own)
    assert typed == told


def test_requests_of_aiperf_are_replayed_at_their_times(tmp_path):
    metrics = {"time_to_first_token": (50, "ms"), "inter_token_latency": (9, "ms"), "request_latency": (400, "ms")}
    metrics |= {"input_sequence_length": (512, "tokens"), "output_sequence_length": (40, "tokens")}
    told = {name: {"value": value, "unit": unit} for name, (value, unit) in metrics.items()}
    lines = [json.dumps({"metadata": {"request_start_ns": n * 10**8}, "metrics": told}) for n in range(20)]
    (tmp_path / "profile_export.jsonl").write_text("\n".join(lines))
    (answer,) = first_cells([tmp_path / "profile_export.jsonl"], {**OWN, "model": "llama-3.1-8b"})
    assert answer["requests_per_second"] == pytest.approx(20 / 2.2, rel=0.1)


def test_what_a_file_calls_a_model_is_told_where_nobody_knows_it(benchmark, capsys):
    file = benchmark("one", 4, 30, model_id="acme/Llama-Finetune")
    assert main(["calibrate", file, *DEPLOYED]) == 2
    assert "does not say model in words that conf/ and conf/names.yaml know (model 'acme/Llama-Finetune')" in (
        capsys.readouterr().err
    )


def test_a_fit_that_is_out_of_time_answers_with_its_best_point(benchmark, monkeypatch, tmp_path, capsys):
    """Time goes by a second a replay."""
    files = [benchmark("one", 4, 60), benchmark("two", 32, 60)]
    now = iter(range(10**6))
    monkeypatch.setattr(replays.time, "monotonic", lambda: float(next(now)))
    told = []
    answer = calibrate(files, OWN, minutes=1.0, shown=told.append)
    assert "time was over" in answer.cut_short
    assert all(one.low is None for one in answer.estimates)
    assert {one.why for one in answer.estimates} == {OUT_OF_TIME}
    errors = {variant: sum(s.mape for s in answer.scores if s.variant == variant) for variant in (BEFORE, AFTER)}
    assert errors[AFTER] < errors[BEFORE]
    assert [one.replays for one in told] == list(range(1, answer.replays + 1))
    assert (told[0].cells, told[0].limit) == (2, 60.0)
    page = tmp_path / "mine.yaml"
    assert main(["calibrate", *files, *DEPLOYED, "--minutes", "1", "--write", str(page)]) == 0
    assert "time was over" in capsys.readouterr().out
    assert page.read_text().count("not converged") == 4
    assert "see above" not in page.read_text()


@pytest.mark.parametrize("seconds", [4, 5, 6, 9])
def test_a_fit_that_has_time_for_little_more_than_its_first_pass_answers_too(benchmark, monkeypatch, seconds):
    """Time goes by at every look at the clock; the first pass over two runs takes four."""
    files = [benchmark("one", 4, 60), benchmark("two", 32, 60)]
    now = iter(range(10**6))
    monkeypatch.setattr(replays.time, "monotonic", lambda: float(next(now)))
    answer = calibrate(files, OWN, minutes=seconds / 60)
    assert "time was over" in answer.cut_short
    errors = {variant: sum(s.mape for s in answer.scores if s.variant == variant) for variant in (BEFORE, AFTER)}
    assert errors[AFTER] <= errors[BEFORE]


def test_columns_of_a_table_of_runs_are_replayed_and_can_be_held_out(tmp_path, capsys):
    table = "model,backend,concurrency,input,output,requests,mean_ttft_ms,mean_tpot_ms\n"
    rows = [f"llama-3.1-8b,vllm,{c},512,128,{4 * c},{60 + 2 * c},{11 + c / 16}" for c in (2, 4, 8, 16)]
    (tmp_path / "runs.csv").write_text(table + "\n".join(rows))
    words = [
        "calibrate",
        str(tmp_path / "runs.csv"),
        "hardware=h100",
        "tp=1",
        "perf=roofline",
        "--hold-out",
        "2",
        "--json",
    ]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["scalars"]) == set(SCALARS)
    assert {score["part"] for score in answer["scores"]} == {"all", "calibration", "held out"}


@pytest.mark.parametrize("rate", ["3", "inf"])
def test_an_offered_rate_is_replayed_open_loop(tmp_path, rate):
    table = "model,backend,rate,input,output,requests,mean_ttft_ms,mean_itl_ms\n"
    rows = [f"llama-3.1-8b,vllm,{rate},512,{n},40,{60 + n},{11 + n / 64}" for n in (32, 64, 128)]
    (tmp_path / "runs.csv").write_text(table + "\n".join(rows))
    answer = calibrate([str(tmp_path / "runs.csv")], OWN)
    assert answer.cells == (3, 0)
    assert answer.fitted == ["ttft_mean", "itl_mean"]


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder of measurements")
def test_a_measured_set_is_fitted_with_its_own_harness():
    file = Path(os.environ["MIST_DATA"]) / "measured" / "T05_closed_loop_llama70b_inferencex.csv"
    answer = calibrate([str(file)], {}, "tp=8")
    assert answer.cells == (10, 5)
    tpot = {(s.part, s.variant): s.mape for s in answer.scores if s.metric == "tpot_mean"}
    assert tpot["calibration", AFTER] < tpot["calibration", BEFORE]
