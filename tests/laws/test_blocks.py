"""KV blocks: the engine's own count, what it keeps for itself, and what can never fit."""

import pytest

from mist.compose import compose
from mist.errors import Infeasible, InputError
from mist.report.text import simulation
from mist.simulate import serve, simulate


def text(result):
    from rich.console import Console

    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(simulation(result))
    return capture.get()


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_requests_get_the_count_less_what_the_engine_keeps(kept, make_pool):
    assert make_pool(kv_blocks=100, engine={"reserved_blocks": kept}).blocks() == 100 - kept
    computed = make_pool(engine={"reserved_blocks": 0}).blocks()
    assert make_pool(engine={"reserved_blocks": kept}).blocks() == computed - kept


def test_a_count_that_leaves_requests_nothing_is_refused(make_pool):
    with pytest.raises(InputError, match="beside the 3 that vllm keeps"):
        make_pool(kv_blocks=3, engine={"reserved_blocks": 3})
    with pytest.raises(Infeasible):
        make_pool(engine={"reserved_blocks": 10**9}).blocks()


def test_the_longest_request_that_fits_is_served_and_one_token_more_is_refused(make_pool, drive, tiny, linear):
    pool = make_pool(model=tiny, perf=linear(1e-3), kv_blocks=11, engine={"reserved_blocks": 1, "block_tokens": 4})
    fits, more = drive(pool, [(0.0, 20, 20), (1.0, 20, 21)]).requests
    assert fits.finished > 0
    assert more.refused == "needs 11 KV blocks, a replica of llm has 10"


def test_refusals_are_counted_and_explained_in_the_summary(make_pool, make_scenario, drawn):
    workload = drawn(n=100, prompt=300.0, answer=50.0)
    scenario = make_scenario(make_pool(kv_blocks=26), workload)
    result = serve(scenario, workload.traffic(0), 2.0)
    refused = next(r for r in result.requests if r.refused)
    assert result.counts.refused > 0
    assert result.refusal == refused.refused
    assert f"{result.counts.refused} requests refused; the first: needs" in text(result)
    assert result.to_json()["refusal"] == refused.refused


SMALL = ["workload=chat_sessions", "workload.requests=300", "workload.rate=8"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["kv_blocks=2000"], "31,984"),  # 1,999 blocks of 16 tokens
        (["prefix_caching=true"], "llm: prefix cache hit "),
        (["preemption=swap", "swap_space=2 GiB", "kv_blocks=500"], "llm: swapped "),
        (["cluster=disaggregated", "prefix_caching=true"], "prefill: prefix cache hit "),
    ],
)
def test_every_option_is_one_override_away_and_shows_in_the_summary(overrides, words):
    assert words in text(simulate(compose([*SMALL, *overrides])))
