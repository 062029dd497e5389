"""Laws of perf=profile: it says what the log says, keeps between neighbours, and knows where its knowledge ends."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.build import build, plain
from mist.cli import main
from mist.errors import InputError, OutsideProfile, TraceError
from mist.perf.base import PerfModel, StepShape
from mist.perf.profile import Profile, ProfileSteps
from mist.perf.steplog import SHAPE
from mist.perf.surface import Surface

DECODES, CONTEXTS, PROMPTS = (1, 2, 4, 8, 16, 32, 64), (1, 128, 512, 2048, 4096), (1, 16, 64, 256, 1024, 2048, 8192)


def truth(decodes, context, tokens, past=0):
    """Milliseconds: a floor, and every term that a step really has."""
    return 5 + 0.02 * decodes + 1e-5 * context + 0.02 * tokens + 1e-6 * tokens * (past + tokens / 2)


def rows(noise=0.0, mixed=False):
    draw = np.random.default_rng(3)
    table = [(d, d * k, 0, 0, truth(d, d * k, 0)) for d in DECODES for k in CONTEXTS]
    table += [(0, 0, t, 0, truth(0, 0, t)) for t in PROMPTS]
    if mixed:
        table += [(d, d * 512, t, 0, truth(d, d * 512, t)) for d in (2, 8, 32) for t in (64, 1024)]
    frame = pd.DataFrame(table, columns=["decodes", "context", "tokens", "past", "ms"])
    frame["ms"] *= 1 + noise * draw.uniform(-1, 1, len(frame))
    return frame


@pytest.fixture
def log(tmp_path):
    """Write a step log; its path."""

    def written(frame, name="steps.csv"):
        path = tmp_path / name
        frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
        return str(path)

    return written


@pytest.fixture
def steps(log, make_pool):
    return lambda frame, **where: Profile(log(frame), where).of(make_pool().replica)


def predicted(model, row):
    chunks = ((int(row.tokens), int(row.past)),) if row.tokens else ()
    return model.step_time(StepShape(int(row.decodes), int(row.context), chunks)) * 1e3


def test_every_row_of_the_log_is_given_back(steps):
    frame = rows(noise=0.3)
    model = steps(frame)
    for row in frame.itertuples():
        assert predicted(model, row) == pytest.approx(row.ms, rel=1e-12)


def test_csv_and_parquet_and_their_spellings_say_the_same(log, make_pool):
    frame = rows(noise=0.1)
    spelt = frame.rename(columns={"decodes": "decode_requests", "tokens": "CTX_TOKENS", "past": "ctx_kv_tokens"})
    spelt["mean_decode_kv"] = spelt.pop("context") / frame["decodes"].where(frame["decodes"] > 0, 1)
    spelt["latency_us"] = spelt.pop("ms") * 1e3
    replica = make_pool().replica
    models = [Profile(log(f, n)).of(replica) for f, n in ((frame, "a.csv"), (frame, "a.parquet"), (spelt, "b.csv"))]
    for shape in (StepShape(3, 999), StepShape(0, 0, ((100, 0),)), StepShape(5, 3000, ((77, 300), (500, 0)))):
        first, *others = (model.step_time(shape) for model in models)
        assert others == pytest.approx([first] * 2, rel=1e-12)


@settings(max_examples=60)
@given(decodes=st.integers(1, 64), mean=st.integers(1, 4096))
def test_between_neighbours_a_time_is_no_wider_off_than_they_are(decodes, mean):
    frame = rows()
    surface = Surface(*(frame[frame.tokens == 0][n].to_numpy(float) for n in ("decodes", "context", "ms")))
    line = surface.line(decodes)
    # the truth is linear in both: triangles reproduce it
    assert line.at(decodes * mean) == pytest.approx(truth(decodes, decodes * mean, 0), rel=1e-9)


def test_interpolation_never_overshoots(steps):
    frame = rows(noise=0.5)
    model, ms = steps(frame), frame[frame.tokens == 0]["ms"]
    times = [model.step_time(StepShape(d, d * k)) * 1e3 for d in range(1, 65, 3) for k in (1, 77, 1000, 3000, 4096)]
    assert ms.min() * (1 - 1e-12) <= min(times) and max(times) <= ms.max() * (1 + 1e-12)


def test_a_leap_of_decode_steps_equals_its_steps(steps):
    model, decodes, context = steps(rows(noise=0.2)), 11, 11 * 300
    while context < decodes * 4000:
        stretch = model.decode_stretch(decodes, context)
        count = min(int(stretch.steps), 50)
        single = [model.step_time(StepShape(decodes, context + decodes * step)) for step in range(count)]
        assert stretch.time(count) == pytest.approx(sum(single), rel=1e-12)
        context += decodes * count


def test_leaping_equals_stepping_on_a_log(log, make_pool, drive, poisson, tiny):
    pool = make_pool(model=tiny, perf=Profile(log(rows(noise=0.2))), limits={"max_running": 32, "token_budget": 256})
    load = poisson(5, 40, 20.0, (1, 500), (1, 200))
    fast, slow = drive(pool, load), drive(pool, load, one_by_one=True)
    np.testing.assert_allclose(fast.column("finished"), slow.column("finished"), rtol=1e-9)


def test_a_step_of_several_parts_takes_no_less_than_any_and_no_more_than_all(steps):
    model = steps(rows(noise=0.2))
    parts = [StepShape(8, 8 * 300), StepShape(0, 0, ((200, 0),)), StepShape(0, 0, ((64, 512),))]
    times = [model.step_time(part) for part in parts]
    whole = model.step_time(StepShape(8, 8 * 300, ((200, 0), (64, 512))))
    assert max(times) <= whole <= sum(times)


def test_sums_of_parts_are_exact_where_a_step_is_a_floor_and_its_parts(steps):
    model = steps(rows(mixed=True))
    check = model.check()
    assert (check.rows, check.outside) == (6, 0)
    assert check.error < 0.01  # what is left is the floor's one decode
    # a chunk after cached tokens is what the whole prompt takes beyond them
    assert model.step_time(StepShape(0, 0, ((1024, 1024),))) * 1e3 == pytest.approx(truth(0, 0, 1024, 1024), rel=0.01)


def test_without_prompts_alone_mixed_rows_tell_what_a_chunk_takes(steps):
    frame = rows(mixed=True)
    model = steps(frame[(frame.decodes > 0)])
    assert model.from_mixed
    assert model.step_time(StepShape(2, 1024, ((64, 0),))) * 1e3 == pytest.approx(truth(2, 1024, 64), rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (StepShape(65, 65), ["65 decodes", "decodes go from 1 to 64"]),
        (StepShape(8, 8 * 5000), ["8 decodes with 40,000 KV tokens", "go from 8 to 32,768"]),
        (StepShape(0, 0, ((9000, 0),)), ["a chunk of 9,000 tokens", "from 1 to 8,192"]),
        (StepShape(0, 0, ((4096, 8192),)), ["4,096 tokens after 8,192 cached", "whole prompts from 1 to 8,192"]),
        (StepShape(1, 8, (), 3), ["drafted"]),
    ],
)
def test_outside_the_log_the_shape_the_axis_and_its_range_are_named(steps, shape, words):
    with pytest.raises(OutsideProfile) as error:
        steps(rows()).step_time(shape)
    for word in [*words, "perf.path"]:
        assert word in str(error.value)


def test_a_log_without_decodes_is_no_log_of_decode_steps(steps):
    frame = rows()
    with pytest.raises(OutsideProfile, match="no row holds decodes alone"):
        steps(frame[frame.tokens > 0]).step_time(StepShape(1, 8))


def test_a_deployment_takes_its_own_rows(log, make_pool):
    fast, slow = rows(), rows()
    slow["ms"] *= 2
    path = log(pd.concat([fast.assign(tp=2, Model="LLaMA-3.1-8B"), slow.assign(tp=1, Model="LLaMA-3.1-8B")]))
    shape = StepShape(4, 400)
    one, two = (make_pool(tp=tp, perf=Profile(path)).steptimes()[0].step_time(shape) for tp in (1, 2))
    assert one == pytest.approx(2 * two)
    with pytest.raises(InputError, match=r"perf\.path = .*no rows with tp = 4 \(valid: 1, 2\)"):
        make_pool(tp=4, perf=Profile(path))
    with pytest.raises(InputError, match=r"where\.gpu = x: .* has no such column"):
        Profile(path, {"gpu": "x"})


def test_rows_of_several_deployments_are_not_mixed_up(log, make_pool):
    both = pd.concat([rows().assign(parallel="tp1", phase="x"), rows().assign(parallel="tp4", phase="x")])
    path = log(both)
    with pytest.raises(InputError, match=r"where\.parallel.*choose one \(valid: tp1, tp4\)"):
        make_pool(perf=Profile(path))
    assert make_pool(perf=Profile(path, {"parallel": "TP4"})).steptimes()[0].step_time(StepShape(4, 400)) > 0


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (pd.DataFrame({"decodes": [1], "context": [1]}), "how long a step took"),
        (pd.DataFrame({"ms": [1.0]}), "a column of decodes or of tokens"),
        (pd.DataFrame({"decodes": [1], "ms": [1.0]}), "need the KV tokens"),
        (pd.DataFrame({"decodes": [1, 1], "context": [1, 2], "ms": [1.0, 0.0]}), "row 2.*more than no time"),
        (pd.DataFrame({"tokens": [1, -1], "ms": [1.0, 1.0]}), "row 2.*negative"),
        (pd.DataFrame({"tokens": [1, "x"], "ms": [1.0, 1.0]}), "row 2.*whole numbers"),
        (pd.DataFrame({"tokens": [], "ms": []}), "holds no steps"),
    ],
)
def test_a_log_that_is_none_is_refused_with_its_row(log, frame, why):
    with pytest.raises(TraceError, match=why):
        Profile(log(frame))


def test_a_pipeline_and_a_drafter_have_no_step_log(log, make_pool):
    perf = Profile(log(rows()))
    with pytest.raises(InputError, match=r"pp = 2.*whole replicas"):
        make_pool(perf=perf, pp=2)


def test_a_log_is_known_by_its_content(log):
    perf = Profile(log(rows()))
    assert build(PerfModel, plain(perf)) == perf
    log(rows(noise=0.1))
    assert Profile(perf.path).sha256 != perf.sha256
    with pytest.raises(InputError, match="another content"):
        build(PerfModel, plain(perf))


def test_a_simulation_that_leaves_the_log_ends_with_one_line_and_exit_2(log, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = log(rows())
    assert main(["simulate", "perf=profile", f"perf.path={path}", "workload.rate=500"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lies outside the log" in error


def test_in_a_sweep_a_design_outside_the_log_is_its_own_recorded_outcome(log, tmp_path, monkeypatch):
    from mist.sweep.store import read_lines
    from mist.sweep.study import run

    monkeypatch.chdir(tmp_path)
    base = f"perf: profile, perf.path: {log(rows())}, workload: poisson_fixed, workload.requests: 300"
    lengths = "workload.inputs.tokens: 500, workload.outputs.tokens: 50"
    question = f"""question: Which batch?
base: {{{base}, {lengths}}}
space: {{scheduler.max_running: "choice(32, 256)"}}
budget: {{designs: 2}}
confirm: {{leaders: 1, seeds: 2}}
workers: serial
"""
    (tmp_path / "mine.yaml").write_text(question)
    assert run("mine.yaml", [], results=tmp_path / "results") == 0
    lines = read_lines((tmp_path / "results/mine/latest").resolve())
    by_batch = {line["design"]["scheduler.max_running"]: line for line in lines if line["rung"] == "search"}
    assert by_batch[32]["state"] == "ok"
    assert by_batch[256]["error"]["type"] == "OutsideProfile"


@pytest.mark.skipif("MIST_DATA" not in os.environ, reason="MIST_DATA names no folder of measured data")
def test_a_real_step_log_is_given_back_and_predicts_what_is_left_out_of_it():
    from mist.perf.steplog import read

    path = str(Path(os.environ["MIST_DATA"]) / "measured" / "T01_step_latency_b300_vllm0201.csv")
    frame = read(path, {"model": "Qwen3-32B", "parallel": "tp4_ep1"}).frame
    shapes = frame.groupby(list(SHAPE), as_index=False)["seconds"].median()
    decodes = shapes[shapes.tokens == 0]
    whole, errors = ProfileSteps(path, shapes), []
    for index, row in decodes.iterrows():
        shape = StepShape(int(row.decodes), int(row.context))
        assert whole.step_time(shape) == pytest.approx(row.seconds, rel=1e-12)
        try:
            errors.append(abs(ProfileSteps(path, shapes.drop(index)).step_time(shape) / row.seconds - 1))
        except OutsideProfile:
            continue
    assert len(errors) > 30
    assert np.mean(errors) < 0.02  # 1.2 % when this was written
