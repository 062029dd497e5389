"""Reasoning: paths share the KV of their question, rounds that of all before, and thinking is as long as measured."""

import os
from pathlib import Path as File

import numpy as np
import pytest

from mist.build import build
from mist.compose import compose
from mist.errors import InputError, TraceError
from mist.plan.branches import Exactly, Fork, Path, Repeat
from mist.plan.stages import Generate, Pipeline
from mist.scenario import Scenario
from mist.workload.lengths import Fixed, Quantiles
from mist.workload.servegen import ServeGen

BLOCK = 4
DATA = os.environ.get("MIST_DATA")


@pytest.fixture
def pool(make_pool, tiny, linear):
    limits = {"token_budget": 512, "max_running": 64}
    engine = {"block_tokens": BLOCK, "reserved_blocks": 0}
    return make_pool(
        model=tiny, perf=linear(1e-3, 1e-5), limits=limits, engine=engine, kv_blocks=4000, prefix_caching=True
    )


@pytest.mark.parametrize("branches", [1, 2, 8])
@pytest.mark.parametrize("prompt", [64, 65, 200])
def test_the_blocks_of_n_branches_are_the_shared_ones_and_n_times_their_own(branches, prompt, pool, drive):
    """A branch shares all full blocks of the prompt but for the last token, which each computes for itself."""
    output = 40
    plan = Pipeline({"f": Fork({"p": Path({"x": Generate(output=Fixed(output))}, branches)}, carries="none")})
    run = drive(pool, [(0.0, prompt, 1)], pipeline=plan)
    shared = (prompt - 1) // BLOCK
    own = -(-(prompt + output - 1) // BLOCK) - shared  # the last token sampled is never cached
    assert run.clients[0].kv.peak == shared + branches * own
    assert run.clients[0].kv.used == 0


def test_every_branch_computes_only_what_is_its_own(pool, drive):
    plan = Pipeline({"f": Fork({"p": Path({"x": Generate(output=Fixed(5))}, 6)}, carries="none")})
    use = drive(pool, [(0.0, 101, 1)], pipeline=plan).clients[0].kv.use()
    assert (use.looked_up_tokens, use.hit_tokens) == (6 * 101, 5 * 100)


def test_a_round_finds_all_rounds_before_it(pool, drive):
    rounds = Repeat({"think": Generate(output=Fixed(40)), "draft": Generate(output=Fixed(20))}, Exactly(3))
    run = drive(pool, [(0.0, 80, 10)], pipeline=Pipeline({"r": rounds, "answer": Generate()}))
    lengths = [80 + 40 * (n - n // 2) + 20 * (n // 2) for n in range(1, 7)]
    found = [(length - 1) // BLOCK * BLOCK for length in lengths]  # the last token was sampled and never cached
    assert run.clients[0].kv.use().hit_tokens == sum(found)
    assert run.requests[0].generated == 3 * 60 + 10


# thinking lengths


def test_quantiles_are_drawn_as_they_are_written():
    drawn = Quantiles("0:10 0.5:20 1:1000").draw(40_000, np.random.default_rng(0))
    assert np.percentile(drawn, [0, 25, 75, 100]) == pytest.approx([10, 15, 510, 1000], rel=0.02)
    with pytest.raises(InputError, match=r"quantiles = 0:10 1:5: values must"):
        Quantiles("0:10 1:5")


@pytest.mark.parametrize("name", sorted(path.stem for path in (File(__file__).parents[2] / "conf/thinking").glob("*")))
def test_every_thinking_length_is_a_choice_of_every_pipeline_that_thinks(name):
    paths = {"reasoning": "attempts.paths.attempt", "vote": "votes.paths.vote", "revision": "rounds"}
    for pipeline, place in paths.items():
        chosen = f"pipeline.stages.{place}.stages.think.output={name}"
        assert build(Scenario, compose([f"pipeline={pipeline}", chosen])).pipeline.stages


# ServeGen


CLIENT = '{"0": {"input_tokens": "{10: 0.5, 30: 0.5}", "output_tokens": "{100: 1.0}", "reason_ratio": "{0.25: 1.0}"}}'


@pytest.fixture
def folder(tmp_path):
    """A client of 2 requests/s all day, and one of 1 request/s in its first hour only, whose outputs are longer."""
    rows = [(600 * n, 2.0, 1.0, "Gamma", 1.0, 0.5) for n in range(144)]
    early = [(t, 1.0 if t < 3600 else 0, 2.0, "Weibull", 0.5, 1.0) for t, *_ in rows]
    for number, (table, lengths) in enumerate(((rows, CLIENT), (early, CLIENT.replace("100:", "500:")))):
        text = "\n".join(",".join(map(str, row)) for row in table)
        (tmp_path / f"chunk-{number}-trace.csv").write_text(text)
        (tmp_path / f"chunk-{number}-dataset.json").write_text(lengths)
    return str(tmp_path)


def test_clients_send_what_they_sent_when_they_sent_it(folder):
    day = ServeGen(folder, 49_000)
    assert day.own_rate() == pytest.approx(2 + 1 / 24)
    traffic = day.traffic(0)
    longer = traffic.outputs == 500
    assert (len(traffic), longer.sum()) == (49_000, 1000)
    assert traffic.times[longer].max() < len(traffic) / 24
    assert traffic.inputs.mean() == pytest.approx(20, rel=0.02)
    first = ServeGen(folder, 3000, hours=1)
    assert first.own_rate() == pytest.approx(3)
    assert (first.traffic(0).outputs == 500).mean() == pytest.approx(1 / 3, abs=0.002)


def test_thinking_and_answer_make_the_whole(folder):
    parts = {name: ServeGen(folder, 500, outputs=name).traffic(3) for name in ("whole", "answers", "thinking")}
    assert (parts["answers"].outputs + parts["thinking"].outputs == parts["whole"].outputs).all()
    assert (parts["thinking"].outputs * 4 == parts["whole"].outputs).all()
    for part in parts.values():
        assert (part.times == parts["whole"].times).all()
        assert (part.inputs == parts["whole"].inputs).all()


def test_a_burstier_client_comes_in_bursts(folder):
    """Gaps of shape 1/16 have a coefficient of variation of 4."""
    File(folder, "chunk-1-trace.csv").unlink()
    text = "\n".join(f"{600 * n},2.0,4.0,Gamma,0.0625,1.0" for n in range(144))
    smooth = np.diff(ServeGen(folder, 150_000).traffic(0).times)
    File(folder, "chunk-0-trace.csv").write_text(text)
    bursts = np.diff(ServeGen(folder, 150_000).traffic(0).times)
    assert smooth.std() == pytest.approx(1.0, abs=0.02)
    assert bursts.std() == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"path": ""}, "name a folder"),
        ({"start": 100.0}, "start = 100"),
        ({"hours": 25}, "hours = 25"),
        ({"hours": 0.1}, "hours = 0.1"),
    ],
)
def test_what_is_no_part_of_a_recorded_day_is_refused(folder, fields, told):
    with pytest.raises((InputError, TraceError), match=told):
        ServeGen(**{"path": folder, "requests": 10, **fields}).own_rate()


@pytest.mark.skipif(not DATA, reason="MIST_DATA names no folder of real data")
def test_the_published_clients_make_the_traffic_that_they_made():
    path = str(File(str(DATA), "traces/servegen/reason_deepseek-r1.tar.gz"))
    traffic = ServeGen(path, 50_000).traffic(0)
    assert ServeGen(path, 1).own_rate() == pytest.approx(16.01, abs=0.01)
    # the means of all clients' published distributions, by their requests
    assert traffic.inputs.mean() == pytest.approx(1268, rel=0.02)
    assert traffic.outputs.mean() == pytest.approx(1527, rel=0.02)
    thinking = ServeGen(path, 50_000, outputs="thinking").traffic(0).outputs
    sheet = build(Scenario, compose(["pipeline=vote"])).pipeline.stages["votes"].paths["vote"].stages["think"].output
    drawn = sheet.draw(50_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(thinking.mean(), rel=0.03)
    assert np.percentile(drawn, [25, 50, 90]) == pytest.approx(np.percentile(thinking, [25, 50, 90]), rel=0.1)
