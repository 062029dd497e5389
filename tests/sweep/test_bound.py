"""Laws of bounds: no design exceeds its own, and ruling out by them changes no leader."""

import json
from math import inf

import numpy as np
import pytest

from mist.compose import compose
from mist.errors import InputError, UnmeetableSLO
from mist.sweep.best_first import Bounded, in_order, least, of_json, standing
from mist.sweep.bound import bound
from mist.sweep.capacity import judge
from mist.sweep.inputs import Workloads
from mist.sweep.question import sweep

OBJECTIVES = ("tokens_per_dollar", "requests_per_dollar", "input_tokens_per_dollar")


def drawn(seed: int) -> list[str]:
    """A deployment, its traffic and its limits, at random."""
    draw = np.random.default_rng(seed)

    def one(*values: object) -> object:
        return values[int(draw.integers(len(values)))]

    pools = [""] if draw.random() < 0.6 else ["prefill.", "decode."]
    words = [] if pools == [""] else ["cluster=disaggregated"]
    words += [f"model={one('llama-3.1-8b', 'llama-3.1-8b', 'qwen3-4b', 'qwen3-30b-a3b')}"]
    for pool in pools:
        words += [f"{pool}hardware={one('h100', 'a100', 'l40s', 'h200')}", f"{pool}tp={one(1, 1, 2, 4)}"]
        words += [f"{pool}replicas={one(1, 1, 2, 3)}", f"{pool}scheduler.max_running={one(16, 64, 256)}"]
    if pools == [""]:
        kind = one("chunked_prefill", "vllm_v1", "continuous", "mixed", "static")
        words += [f"scheduler={kind}", f"scheduler.token_budget={one(512, 2048, 8192)}", f"pp={one(1, 1, 1, 2)}"]
    words += [f"perf={one('roofline', 'automatic')}", "workload=gamma_lognormal", f"workload.requests={one(150, 300)}"]
    words += [f"workload.inputs.mean={one(50, 500, 3000)}", f"workload.outputs.mean={one(3, 60, 300)}"]
    words += ["slo=none", *([f"slo.ttft_p99={one('500 ms', '5 s', '60 s')}"] if draw.random() < 0.8 else [])]
    words += [f"slo.tpot_p{one(50, 99)}={one('20 ms', '60 ms', '1 s')}"] if draw.random() < 0.7 else []
    return words


def judged(words: list[str], objective: str) -> tuple[float, float]:
    """What a deployment reaches, and its bound."""
    config = compose(words)
    traffic = Workloads().traffic(config, [0])
    answer = judge(config, traffic)
    reached = answer["value"] and answer["metrics"].get(objective, answer["value"])
    return float(reached), bound(config, traffic, objective).value


@pytest.mark.parametrize("seed", range(10))
def test_no_design_exceeds_its_bound(seed):
    words, objective = drawn(seed), OBJECTIVES[seed % 3]
    try:
        reached, most = judged(words, objective)
    except (InputError, UnmeetableSLO):
        pytest.skip(f"no such deployment: {' '.join(words)}")
    assert reached <= most, " ".join(words)
    assert most < inf


SHARED = (
    "hardware=l4 workload=reused_contexts workload.contexts=2 workload.questions.inputs.mean=40"
    " workload.questions.outputs.mean=200 prefix_caching=true slo.e2e_p99=1000s"
)
DRAWN = (
    "hardware=h100 tiers=drawn tiers.fetch=always tiers.tiers.dram.hit=1 workload=gamma_lognormal"
    " workload.inputs.mean=4200 workload.outputs.mean=2 slo.ttft_p99=60s"
)


@pytest.mark.parametrize("words", [SHARED, f"{SHARED} engine.cascade_attention=true", DRAWN])
def test_no_design_whose_prompts_are_found_or_shared_exceeds_its_bound(words):
    reached, most = judged(["slo=none", "perf=roofline", "workload.requests=200", *words.split()], OBJECTIVES[0])
    assert 0 < reached <= most


@pytest.mark.parametrize("words", [["autoscaler=queue_length"], ["pipeline=reasoning"], ["faults=drawn"]])
def test_what_is_not_alike_all_the_time_has_no_bound(words):
    config = compose([*words, "workload.requests=100"])
    assert bound(config, Workloads().traffic(config, [0])).value == inf


def test_a_design_that_can_serve_nobody_has_a_bound_of_nothing_and_a_reason():
    for words, reason in (
        (["model=llama-3.1-70b", "hardware=l40s", "workload.requests=200"], "llama-3.1-70b needs 141 GB of weights"),
        (["slo.ttft_p99=1ms", "workload.requests=200"], "slo.ttft_p99 = 0.001 s: a prompt of"),
        (["tp=3", "workload.requests=200"], "tp = 3"),
    ):
        config = compose(words)
        found = bound(config, Workloads().traffic(config, [0]))
        assert found.value == 0.0 and found.reason.startswith(reason)
        assert judge(config, Workloads().traffic(config, [0]))["value"] == 0.0


# the order of designs


def answers(values):
    return [
        {"rung": "search", "state": "ok" if value else "infeasible", "number": i, "design": {"x": i}, "seeds": [0],
         "record": {"value": value, "verdict": "ok"}}
        for i, value in enumerate(values)
    ]  # fmt: skip


def test_a_leader_must_exceed_the_least_of_the_leaders():
    assert least([], 3) == -1.0
    assert least(answers([0.0]), 3) == -1.0
    assert least(answers([5.0, 4.0]), 3) == 0.0
    assert least(answers([5.0, 4.0, 3.0, 2.0]), 3) == 3.0
    refuted = {"rung": "confirm", "state": "infeasible", "design": {"x": 0}, "seeds": [1], "record": None}
    assert least([*answers([5.0, 4.0, 3.0, 2.0]), refuted], 3) == 2.0


def test_where_a_search_stands_adds_up():
    bounds = [Bounded({"x": i}, value) for i, value in enumerate([9.0, inf, 8.0, 2.0, 0.0])]
    assert [one.design["x"] for one in in_order(bounds)] == [1, 0, 2, 3, 4]
    assert [of_json(json.loads(json.dumps(one.to_json()))) for one in bounds] == bounds
    stand = standing(bounds, answers([4.0, 5.0]), 1)
    assert (stand.designs, stand.judged, stand.ruled_out, stand.left, stand.highest) == (5, 2, 2, 1, 8.0)
    assert stand.impossible == 1


def test_the_leaders_are_those_of_the_whole_space(ask, lines, capsys):
    _, whole = ask("search.sampler=grid", "budget.designs=60")
    kept = {str(line["design"]) for line in lines(whole, rung="confirm")}
    capsys.readouterr()
    _, bounded = ask("search.sampler=bound", "budget.designs=60")
    assert {str(line["design"]) for line in lines(bounded, rung="confirm")} == kept
    few = len(lines(bounded))
    assert few < len(lines(whole)) == 60
    assert len((bounded / "bounds.jsonl").read_text().splitlines()) == 60
    out = " ".join(capsys.readouterr().out.split())
    assert f"60 designs: {60 - few} ruled out by their bounds (5 can serve nobody), {few} judged: no other can" in out


def test_what_the_budget_leaves_open_is_told(ask, capsys):
    ask("search.sampler=bound", "budget.designs=4")
    out = " ".join(capsys.readouterr().out.split())
    assert "4 judged, " in out and "left open by the budget, which reach at most" in out


def test_a_search_by_bounds_is_resumed_where_it_was(ask, again, lines):
    _, run = ask("search.sampler=bound", "budget.designs=60")
    bounds, whole = (run / "bounds.jsonl").read_bytes(), (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trials.jsonl").write_bytes(b"".join(whole[:3]))
    assert again(run) == 0
    assert (run / "bounds.jsonl").read_bytes() == bounds
    assert sorted(str(json.loads(line)["design"]) for line in whole) == sorted(
        str(json.loads(line)["design"]) for line in (run / "trials.jsonl").read_bytes().splitlines()
    )


def test_leaders_that_are_refuted_make_room_for_designs_that_were_ruled_out(ask, lines):
    screen, confirm = {"workload.requests": 10}, {"leaders": 2, "seeds": 2}
    asked = {"screen": screen, "confirm": confirm, "budget": {"designs": 60}}
    found = []
    for sampler in ("grid", "bound"):
        _, run = ask("strict=3", f"search.sampler={sampler}", **asked)
        found.append({str(line["design"]) for line in lines(run, "ok", rung="confirm")})
    assert found[0] == found[1]


def test_a_space_that_cannot_be_listed_is_not_searched_by_bounds():
    with pytest.raises(InputError, match="it lists every design"):
        sweep({"question": "?", "space": {"x": "interval(0, 1)"}, "search": {"sampler": "bound"}})
    assert not sweep({"question": "?", "space": {"x": "interval(0, 1)"}}).best_first
    assert sweep({"question": "?", "space": {"x": "choice(0, 1)"}}).best_first
