"""Branches that nobody waits for are called back: engines let go of them after the step under way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.clients.station import DrawnStation
from mist.errors import InputError
from mist.faults import GivenFaults, Outage
from mist.network import LinkSpec
from mist.plan.branches import Fork, Path
from mist.plan.stages import Generate, Pipeline, Serve
from mist.plan.times import Constant
from mist.request import Stage
from mist.speculation import NGram
from mist.workload.lengths import Fixed, Uniform

LINK = LinkSpec("wire", 1e6, 1e-4)
# Seconds with no common measure. Copies on two replicas would tie all the same: which step ends first is rounding's.
STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5


@pytest.fixture
def pool(make_pool, tiny, linear):
    def make(**fields):
        limits = {"token_budget": 64, "max_running": 6} | fields.pop("limits", {})
        fields = {"engine": {"block_tokens": 4}, "kv_blocks": 60, **fields}
        return make_pool(model=tiny, perf=linear(STEP, TOKEN, CACHED), limits=limits, **fields)

    return make


def race(copies=4, needs=1, unheard="abort", after=None, **fields):
    """The first of so many attempts, of lengths that differ, goes on to an answer."""
    attempt = {"think": Generate(output=Uniform(1, 40), **fields)}
    rest = {} if after is None else after
    return Pipeline({"tries": Fork({"p": Path(attempt, copies)}, needs, unheard=unheard), **rest, "answer": Generate()})


def load(n, rate, seed=0):
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rate, n))
    return [
        (float(t), int(i), int(o))
        for t, i, o in zip(times, draw.integers(1, 60, n), draw.integers(1, 20, n), strict=True)
    ]


def settled(run):
    """Everybody has ended, and nothing is left anywhere."""
    cluster = run.cluster
    assert (cluster.completed, cluster.in_flight) == (cluster.arrived, 0)
    assert not any(client.kv.used for client in run.clients)
    assert not any(any(spare.outstanding) for spare in cluster.pools.values())
    for client in run.clients:
        assert not client.running
        assert client.line.tokens == len(client.line) == 0


def test_an_aborted_generation_ends_with_the_step_under_way(drive, pool, linear):
    spec = replace(pool(), perf=linear(1.0))
    paths = {
        "long": Path({"x": Generate(output=Fixed(50))}),
        "tool": Path({"t": Serve("tool", "t", time=Constant(9.5))}),
    }
    plan = Pipeline({"f": Fork(paths, 1, carries="none", unheard="abort"), "answer": Generate(output=Fixed(2))})
    run = drive(spec, [(0.0, 10, 1)], pipeline=plan, stations={"t": DrawnStation(None)})
    (query,) = run.requests
    # a prompt and nine tokens have taken ten steps; the answer's prompt comes with the eleventh, as the other leaves
    assert (query.generated, query.prompted) == (10 + 2, 20)
    assert [v.finished for v in query.visits if v.stage is Stage.DECODE] == [10.0, 12.0]
    assert query.finished == 12.0
    settled(run)


def test_whoever_ends_with_that_step_has_ended_and_is_not_aborted(drive, pool, linear):
    spec = replace(pool(), perf=linear(1.0))
    plan = Pipeline({"f": Fork({"p": Path({"x": Generate(output=Fixed(5))}, 3)}, 1, unheard="abort")})
    run = drive(spec, [(0.0, 10, 1)], pipeline=plan)
    assert (run.requests[0].generated, run.requests[0].finished) == (15, 5.0)
    settled(run)


def test_calling_back_frees_the_engine_for_others(drive, pool):
    runs = [drive(pool(), load(30, 50.0), pipeline=race(unheard=unheard), cycle=30) for unheard in ("run", "abort")]
    everything, less = ([sum(run.column(name)) for name in ("generated", "e2e")] for run in runs)
    assert less[0] < everything[0]
    assert less[1] < everything[1]
    for run in runs:
        settled(run)


ENGINES = st.sampled_from(
    [
        {},
        {"prefix_caching": True},
        {"kv_blocks": 24},
        {"kv_blocks": 24, "prefix_caching": True},
        {"kv_blocks": 24, "preemption": "swap", "swap_space": 2**20},
        {"scheduler": "shortest_first"},
        {"scheduler": "vllm_v1", "kv_blocks": 30},
    ]
)


@settings(max_examples=24)
@given(fields=ENGINES, rate=st.sampled_from([50.0, 1000.0]), seed=st.integers(0, 99), copies=st.integers(2, 5))
def test_leaping_equals_stepping_when_requests_are_aborted(fields, rate, seed, copies, pool, drive):
    plan, arrivals = race(copies, needs=copies // 2), [(t, min(i, 30), o) for t, i, o in load(12, rate, seed)]
    fast, slow = (
        drive(pool(**fields), arrivals, pipeline=plan, cycle=12, seed=seed, one_by_one=one) for one in (False, True)
    )
    for run in (fast, slow):
        settled(run)
    for name in ("generated", "prompted", "preemptions"):
        assert fast.column(name).tolist() == slow.column(name).tolist()
    np.testing.assert_allclose(fast.column("finished"), slow.column("finished"), rtol=1e-9)
    assert [c.steps for c in fast.clients] == [c.steps for c in slow.clients]


@settings(max_examples=15)
@given(seed=st.integers(0, 99), kind=st.sampled_from(["pp", "speculation", "hand-over", "layerwise", "faults"]))
def test_nothing_is_left_behind_in_any_kind_of_engine(seed, kind, pool, drive):
    from mist.handover import HandoverSpec

    pools, options, link = {"llm": pool()}, {}, None
    if kind == "pp":
        pools = {"llm": pool(pp=2, kv_blocks=80)}
    elif kind == "speculation":
        pools = {"llm": pool(speculation=NGram(tokens=3, acceptance=0.5))}
    elif kind == "faults":
        pools["llm"] = pool(replicas=2)
        options["faults"] = GivenFaults({"one": Outage(0.1, 0.2), "two": Outage(0.6, 0.3, 1)}, "resume", 9)
    else:
        pools, link = {"p": pool(role="prefill"), "d": pool(role="decode", kv_blocks=40)}, LINK
        if kind == "layerwise":
            options["handover"] = HandoverSpec(layerwise=True)
    run = drive(pools, load(12, 60.0, seed), link, pipeline=race(), cycle=12, seed=seed, **options)
    settled(run)
    assert all(query.finished >= 0 for query in run.requests)


def test_forks_within_branches_are_called_back_too(drive, pool):
    inner = {"inner": Fork({"p": Path({"x": Generate(output=Fixed(60))}, 2)})}
    paths = {"deep": Path(inner), "quick": Path({"x": Generate(output=Fixed(3))})}
    run = drive(pool(), [(0.0, 8, 2)], pipeline=Pipeline({"f": Fork(paths, 1, unheard="abort"), "a": Generate()}))
    assert run.requests[0].generated < 3 + 2 + 20
    settled(run)


def test_calling_back_needs_somebody_who_is_not_waited_for():
    for needs in (None, 2):
        with pytest.raises(InputError, match="unheard = abort: has no effect: all 2"):
            Fork({"p": Path({"x": Generate()}, 2)}, needs, unheard="abort")
