"""More of a good thing never hurts, and touches only what it should."""

from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path

import numpy as np
import pytest

from mist.build import build
from mist.errors import Infeasible
from mist.hardware import HardwareSpec
from mist.network import LinkSpec
from mist.request import Stage
from mist.simulate import serve
from mist.slo import SLO
from mist.sweep.capacity import search

ALONE = [(0.0, 3000, 40), (1000.0, 20, 200), (2000.0, 1, 1)]  # far apart
LINK = LinkSpec("wire", 25e9, 1e-3)
HARDWARE, SCHEDULERS = (
    sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / noun).glob("*.yaml"))
    for noun in ("hardware", "scheduler")
)
# A lone request is the same to every scheduler: all of them on one device, one of them on all.
PAIRS = sorted({*((device, "chunked_prefill") for device in HARDWARE), *(("h100", policy) for policy in SCHEDULERS)})


def handovers(run):
    return [visit for request in run.requests for visit in request.visits if visit.stage is Stage.HANDOVER]


def tpots(run):
    return np.array([request.tpot for request in run.requests])


@pytest.mark.parametrize("field", ["memory_bandwidth", "peaks"])
@pytest.mark.parametrize(("hardware", "scheduler"), PAIRS)
def test_a_faster_device_never_makes_a_lone_request_slower(field, hardware, scheduler, make_pool, drive, tiny):
    sheets = {"hardware": hardware, "scheduler": scheduler, "limits": {"token_budget": 2048, "max_running": 64}}
    pool = make_pool(**sheets)
    try:
        pool.blocks()
    except Infeasible:
        pool = make_pool(model=tiny, engine={"reserve": 0.0}, **sheets)
    device = pool.hardware
    value = getattr(device, field)
    twice = {dtype: 2 * peak for dtype, peak in value.items()} if field == "peaks" else 2 * value
    slow = drive(pool, ALONE)
    fast = drive(replace(pool, hardware=replace(device, **{field: twice})), ALONE)
    assert np.all(fast.column("finished") <= slow.column("finished"))
    assert np.all(fast.column("first_token") <= slow.column("first_token"))
    if pool.model is not tiny:
        assert np.any(fast.column("finished") < slow.column("finished"))


def test_a_higher_rate_hardly_lowers_the_tail_of_ttft(scheduler_name, make_pool, make_scenario, drawn):
    pool = make_pool(scheduler=scheduler_name, limits={"token_budget": 2048, "max_running": 64})
    scenario = make_scenario(pool)
    traffic = drawn(n=600).traffic(1)
    tails = [serve(scenario, traffic, rate).latency["ttft"].p99 for rate in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)]
    # On one and the same traffic; batches form differently, so 10 % of leeway.
    assert all(higher >= 0.9 * lower for lower, higher in pairwise(tails))
    assert tails[-1] > 2 * tails[0]


def test_more_replicas_never_lower_capacity(router_name, make_pool, make_scenario, drawn, linear):
    traffic = {0: drawn(n=400).traffic(0)}
    slo = SLO(ttft_p99=2.0)
    fields = {"router": router_name, "prefix_caching": router_name == "prefix_aware", "perf": linear(0.01, 1e-4)}
    found = [search(make_scenario(make_pool(replicas=n, **fields), slo=slo), traffic, inf) for n in (1, 2, 4)]
    for fewer, more in pairwise(found):
        assert more.rate > fewer.rate / 1.02  # the precision of the search
    assert found[-1].rate > 2 * found[0].rate


def test_more_memory_never_preempts_more(preempting_name, make_pool, drive, poisson, tiny, linear):
    load = poisson(9, 150, 400.0, (1, 30), (1, 60))
    limits = {"token_budget": 64, "max_running": 31}
    counts = []
    for blocks in (30, 60, 120, 240, 480, 960):
        pool = make_pool(
            model=tiny, scheduler=preempting_name, limits=limits, kv_blocks=blocks, engine={"block_tokens": 4},
            perf=linear(1e-3, 1e-5),
        )  # fmt: skip
        counts.append(int(drive(pool, load).column("preemptions").sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0
    assert counts[-1] == 0


def test_a_faster_decode_device_changes_tpot_and_no_prefill_time(make_pool, drive, poisson):
    load = poisson(2, 200, 4.0, (50, 3000), (2, 200))
    pools = {role: make_pool(role=role, hardware="a100") for role in ("prefill", "decode")}
    slow = drive(pools, load, LINK)
    fast = drive(pools | {"decode": make_pool(role="decode", hardware="h200")}, load, LINK)
    assert fast.column("first_token").tolist() == slow.column("first_token").tolist()
    assert np.all(tpots(fast) < tpots(slow))
    faster_prefill = drive(pools | {"prefill": make_pool(role="prefill", hardware="h200")}, load, LINK)
    assert np.mean(faster_prefill.column("first_token")) < np.mean(slow.column("first_token"))


def test_half_the_bandwidth_adds_exactly_one_transfer_time(make_pool, drive):
    pools = {role: make_pool(role=role) for role in ("prefill", "decode")}
    whole, half = (drive(pools, ALONE, LinkSpec("wire", bandwidth, 1e-3)) for bandwidth in (25e9, 12.5e9))
    cache = np.array([3000, 20]) * 131_072  # bytes a token of llama-3.1-8b: 32 layers x 2 x 8 heads x 128 x 2
    times = np.array([visit.finished - visit.started for visit in handovers(whole)])
    np.testing.assert_allclose(times, cache / 25e9 + 1e-3, rtol=1e-9)
    added = half.column("finished") - whole.column("finished")
    np.testing.assert_allclose(added, [*(cache / 25e9), 0.0], rtol=1e-7, atol=1e-12)
    assert half.column("first_token").tolist() == whole.column("first_token").tolist()


def test_a_device_of_another_kind_is_read_from_its_own_sheet(make_pool, sheet):
    pool = make_pool(hardware="a100")
    assert pool.hardware == build(HardwareSpec, sheet("hardware", "a100"))
    assert pool.replica.hardware is pool.hardware


def test_a_longer_prompt_or_answer_never_ends_sooner(scheduler_name, make_pool, drive):
    pool = make_pool(scheduler=scheduler_name, limits={"token_budget": 512, "max_running": 64})
    prompts = [drive(pool, [(0.0, tokens, 10)]).requests[0] for tokens in (1, 100, 511, 512, 513, 2000, 20_000)]
    answers = [drive(pool, [(0.0, 300, tokens)]).requests[0] for tokens in (1, 2, 50, 1000)]
    assert all(shorter.first_token <= longer.first_token for shorter, longer in pairwise(prompts))
    assert all(shorter.finished < longer.finished for shorter, longer in pairwise(answers))
