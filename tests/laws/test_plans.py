"""Plans: what a request does, one stage after another, and what becomes of it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mist.build import build, plain
from mist.clients.station import DrawnStation
from mist.compose import compose
from mist.errors import InputError
from mist.faults import GivenFaults, Outage
from mist.memory.prefix import PrefixPool
from mist.network import LinkSpec
from mist.plan.branches import Choice, Exactly, Fork, Maybe, Option, Path, Repeat
from mist.plan.demand import demand
from mist.plan.draws import Draws
from mist.plan.routing import ByClass, ByLength, Way
from mist.plan.stages import Generate, Pipeline, Serve, Transfer, unfold
from mist.plan.times import Constant, Exponential
from mist.request import RequestClass, Stage
from mist.scenario import Scenario
from mist.simulate import simulate
from mist.workload.lengths import Fixed, Geometric, Uniform
from mist.workload.traffic import Traffic

LINK = LinkSpec("wire", 1e9, 1e-4)


def tool(seconds, **fields):
    return Serve("tool", "tools", time=seconds if hasattr(seconds, "draw") else Constant(seconds), **fields)


@pytest.fixture
def pool(make_pool, tiny, linear):
    limits = {"token_budget": 64, "max_running": 8}
    return make_pool(
        model=tiny, perf=linear(1e-3, 1e-5, 1e-7), limits=limits, engine={"block_tokens": 4}, kv_blocks=4000
    )


@pytest.fixture
def run(drive, pool):
    """A drained cluster of ``pools`` (one called llm) and stations ``tools`` and ``other`` without limit."""

    def go(stages, arrivals, pools=None, link=None, **options):
        stations = {"tools": DrawnStation(None), "other": DrawnStation(2)}
        pipeline = stages if isinstance(stages, Pipeline) else Pipeline(stages)
        options = {"stations": stations, "cycle": len(arrivals), **options}
        return drive(pools or {"llm": pool}, arrivals, link, pipeline=pipeline, **options)

    return go


def test_a_stage_that_takes_no_time_changes_nothing(drive, run, pool, poisson):
    load = poisson(3, 300, 40.0, (1, 200), (1, 60))
    plain = drive(pool, load)
    staged = run({"look": tool(0.0), "answer": Generate()}, load)
    for name in ("first_token", "finished", "tpot", "output"):
        assert (staged.column(name) == plain.column(name)).all()


def test_the_first_token_is_the_last_generations_and_the_end_is_the_plans(run):
    plan = {"a": tool(1.0), "think": Generate(output=Fixed(5)), "b": tool(2.0), "answer": Generate(), "c": tool(4.0)}
    (query,) = run(plan, [(0.0, 20, 3)]).requests
    visits = {visit.stage: [v for v in query.visits if v.stage is visit.stage] for visit in query.visits}
    prefill, decode = visits[Stage.PREFILL][1], visits[Stage.DECODE][1]
    assert query.first_token == prefill.finished > 3.0
    assert query.tpot == pytest.approx((decode.finished - prefill.finished) / 2)
    assert query.finished == pytest.approx(decode.finished + 4.0)
    assert (query.prompted, query.generated, query.output) == (20 + 25, 8, 3)


def test_prompts_grow_by_what_was_found_and_written_and_kept(run):
    plan = {
        "find": tool(0.1, pieces=3, piece_tokens=Fixed(10)),
        "draft": Generate(output=Fixed(7), instruction=5, keeps=False),
        "think": Generate(output=Fixed(11), instruction=2),
        "aside": Generate(output=Fixed(4), prompt=Fixed(9)),
        "answer": Generate(),
    }
    (query,) = run(plan, [(0.0, 100, 6)]).requests
    assert query.prompted == (100 + 30 + 5) + (100 + 30 + 2) + 9 + (130 + 2 + 11 + 4)
    assert query.generated == 7 + 11 + 4 + 6


@pytest.mark.parametrize(("needs", "finished"), [(1, 1.0), (2, 2.0), (3, 4.0), (None, 4.0)])
def test_a_fork_goes_on_when_enough_have_ended_and_the_rest_run_on(run, needs, finished):
    paths = {name: Path({"wait": tool(time)}) for name, time in (("slow", 4.0), ("fast", 1.0), ("middling", 2.0))}
    served = run({"fork": Fork(paths, needs)}, [(0.0, 10, 1)])
    (query,) = served.requests
    assert (query.finished, query.first_token, query.tpot, query.output) == (finished, finished, 0.0, 0)
    assert served.cluster.stations["tools"].tasks == 3


@pytest.mark.parametrize(("carries", "tokens"), [("all", 10 + 5 + 7 + 7), ("none", 10), ("one", (15, 17))])
def test_what_branches_wrote_goes_on_as_they_are_joined(run, carries, tokens):
    paths = {"a": Path({"x": Generate(output=Fixed(5))}), "b": Path({"x": Generate(output=Fixed(7))}, copies=2)}
    served = run({"fork": Fork(paths, carries=carries), "answer": Generate()}, [(0.0, 10, 1)] * 20)
    last = {query.prompted - 30 for query in served.requests}
    assert last == set(tokens) if isinstance(tokens, tuple) else last == {tokens}


def test_the_answer_of_branches_or_of_a_withheld_generation_arrives_whole(run):
    for plan in ({"f": Fork({"p": Path({"x": Generate()}, 2)})}, {"x": Generate(streams=False), "y": tool(1.0)}):
        (query,) = run(plan, [(0.0, 10, 30)]).requests
        assert query.first_token == query.finished > 0
        assert (query.tpot, query.output) == (0.0, 30)


def test_options_are_taken_in_proportion_to_their_weights(run):
    n = 4000
    plan = {
        "mix": Choice({"a": Option({"t": tool(1.0)}, 3), "b": Option({"t": tool(2.0)}, 1)}),
        "more": Maybe({"t": tool(4.0)}, 0.25),
    }
    took = Counter(np.round(run(plan, [(0.0, 1, 1)] * n).column("finished")).astype(int).tolist())
    for seconds, share in {1: 9, 2: 3, 5: 3, 6: 1}.items():
        expected = n * share / 16
        assert abs(took[seconds] - expected) < 4 * expected**0.5


def test_draws_depend_on_seed_place_and_request_alone():
    stage = Repeat({"t": tool(Exponential(1.0), piece_tokens=Uniform(1, 99))}, Geometric(3))
    few, more = {"r": stage}, {"x": tool(Exponential(2.0)), "r": stage, "m": Maybe({"t": tool(1.0)}, 0.5)}
    draws = [Draws(7, 50), Draws(7, 50)]
    for request in range(-60, 120):
        alone = unfold(few, draws[0].of(request))
        among = unfold(more, draws[1].of(request))
        assert among[1 : 1 + len(alone)] == alone
        assert alone == unfold(few, draws[0].of(request + 50))
    assert unfold(few, Draws(8, 50).of(3)) != unfold(few, draws[0].of(3))


def test_a_rarer_escalation_escalates_nobody_new():
    taken = {
        p: {r for r in range(500) if unfold({"m": Maybe({"t": tool(1.0)}, p)}, Draws(0, 500).of(r))}
        for p in (0.1, 0.3, 1.0, 0.0)
    }
    assert taken[0.0] < taken[0.1] < taken[0.3] < taken[1.0] == set(range(500))


def test_classes_and_lengths_go_their_own_ways(run):
    kinds = (RequestClass("urgent"), RequestClass("batch"))
    ways = {"urgent": Way({"t": tool(1.0)}), "batch": Way({"t": tool(2.0)})}
    plan = {"kind": ByClass(ways), "length": ByLength(10, Way({"t": tool(0.0)}), Way({"t": tool(4.0)}))}
    served = run(plan, [(0.0, tokens, 1) for tokens in (10, 10, 11, 11)], kinds=kinds)
    assert served.column("finished").tolist() == [1.0, 2.0, 5.0, 6.0]


def test_every_class_of_the_workload_needs_its_way(pool, make_scenario):
    plan = Pipeline({"k": ByClass({"urgent": Way({"a": Generate()})})})
    with pytest.raises(InputError, match=r"pipeline\.stages\.k\.classes = urgent: the workload has no classes"):
        make_scenario(pool, pipeline=plan)
    mix = build(Scenario, compose(["workload=two_class"])).workload
    with pytest.raises(InputError, match=r"must name all classes.*interactive, batch"):
        make_scenario(pool, mix, pipeline=plan)


# models side by side


def test_every_generation_is_served_by_its_own_pool_and_a_faster_one_helps_only_there(run, pool, linear):
    fast = replace(pool, perf=linear(1e-4, 1e-6, 1e-8))
    plan = {"draft": Generate("small", keeps=False), "answer": Generate("large")}
    load = [(float(n), 50, 20) for n in range(10)]
    slow, sped = (run(plan, load, {"small": pool, "large": large}) for large in (pool, fast))
    for one, two in zip(slow.requests, sped.requests, strict=True):
        assert [visit.place for visit in one.visits] == ["small/0", "small/0", "large/0", "large/0"]
        times = [[(v.started - v.queued, v.finished - v.started) for v in query.visits] for query in (one, two)]
        assert times[0][:2] == times[1][:2]
        assert times[0][3][1] > times[1][3][1]


def test_prefill_and_decode_pairs_stand_beside_pools_that_do_both(run, pool):
    pair = {"p": replace(pool, role="prefill", hands_to="d"), "d": replace(pool, role="decode")}
    second = {"p2": replace(pool, role="prefill", hands_to="d2"), "d2": replace(pool, role="decode")}
    plan = {"a": Generate("p"), "b": Generate("both"), "c": Generate("p2")}
    served = run(plan, [(0.0, 50, 20)] * 5, {**pair, "both": pool, **second}, LINK)
    assert served.cluster.completed == 5
    kinds = [(visit.stage.value, visit.place) for visit in served.requests[0].visits]
    there, here = ([("prefill", f"p{n}/0"), ("handover", "wire"), ("decode", f"d{n}/0")] for n in ("", "2"))
    assert kinds == [*there, ("prefill", "both/0"), ("decode", "both/0"), *here]


# links


def test_transfers_share_their_link_and_carry_the_context(run):
    plan = {"t": tool(1.0, piece_tokens=Fixed(10)), "send": Transfer("wire", 100.0, 5.0)}
    served = run(plan, [(0.0, 30, 1), (0.0, 30, 1)], links={"wire": LinkSpec("x", 150.0, 0.25)})
    assert served.column("finished") == pytest.approx([1 + 2 * 300 / 150 + 0.25] * 2)
    (_, visit), _ = (query.visits for query in served.requests)
    assert (visit.stage, visit.place, visit.queued, visit.started) == (Stage.TRANSFER, "wire", 1.0, 1.0)


# prefix caches


def computed(served):
    (kv,) = (client.kv for client in served.clients)
    assert isinstance(kv, PrefixPool) and not kv.used
    return kv.looked_up_tokens - kv.hit_tokens


def test_branches_find_the_prompt_they_share_and_turns_all_that_came_before(run, pool):
    cached = {"llm": replace(pool, prefix_caching=True)}
    fork = {"first": Generate(output=Fixed(1)), "f": Fork({"p": Path({"x": Generate(output=Fixed(9))}, 3)})}
    assert computed(run(fork, [(0.0, 39, 1)], cached)) == 39 + 3 * (40 - 36)  # the last token is always computed
    turns = {"r": Repeat({"x": Generate(output=Fixed(8)), "t": tool(1.0, piece_tokens=Fixed(4))}, Exactly(3))}
    assert computed(run(turns, [(0.0, 20, 1)], cached)) == 20 + 2 * (32 - 24)  # the last token written is not cached


def test_tokens_that_were_not_kept_are_not_found_where_others_stand_now(run, pool):
    cached = {"llm": replace(pool, prefix_caching=True)}
    plan = {"a": Generate(output=Fixed(40), keeps=False), "t": tool(1.0, piece_tokens=Fixed(40)), "b": Generate()}
    assert computed(run(plan, [(0.0, 20, 1)], cached)) == 20 + 40


# failures and refusals


def test_a_query_whose_prompt_outgrows_the_pool_is_refused_by_name(run, pool):
    plan = {"t": tool(1.0, piece_tokens=Fixed(20_000)), "answer": Generate()}
    served = run(plan, [(0.0, 10, 5)])
    assert (served.cluster.refused, served.cluster.in_flight) == (1, 0)
    assert "answer: needs 5004 KV blocks" in served.requests[0].refused


def test_a_query_is_lost_with_one_of_its_generations(run):
    faults = GivenFaults({"x": Outage(0.01, 1.0, 0, "llm")}, "lose", 0)
    served = run({"f": Fork({"p": Path({"x": Generate()}, 2)})}, [(0.0, 10, 500)], faults=faults)
    assert (served.cluster.lost, served.cluster.in_flight) == (1, 0)
    assert "llm/0 failed" in served.requests[0].lost


def test_the_demand_foreseen_is_the_demand_served(run, pool):
    plan = {
        "r": Repeat({"x": Generate("a", output=Fixed(8)), "t": tool(0.1, piece_tokens=Uniform(1, 9))}, Uniform(1, 3)),
        "f": Fork({"p": Path({"y": Generate("b", output=Geometric(9), instruction=3)}, 2)}, carries="all"),
        "answer": Generate("a"),
    }
    n, draw = 150, np.random.default_rng(0)
    inputs, outputs = draw.integers(1, 50, n), draw.integers(1, 20, n)
    served = run(plan, list(zip(range(n), inputs.tolist(), outputs.tolist(), strict=True)), {"a": pool, "b": pool})
    traffic = Traffic(np.arange(n, dtype=float), inputs, outputs)
    loads = demand(Pipeline(plan), traffic, 0, {"a": None, "b": None})
    for name, column in (("prompt", "prompted"), ("answer", "generated")):
        foreseen = sum(load.generations * getattr(load, name) for load in loads.values())
        assert foreseen == pytest.approx(np.mean(served.column(column)))
    assert loads["b"].generations == 2


def test_the_demand_of_branches_that_are_called_back_ends_when_they_are(run, pool):
    """The first of three goes on; the others have written as much by then, one step more or less."""
    plan = {
        "f": Fork({"p": Path({"y": Generate(output=Geometric(40))}, 3)}, needs=1, unheard="abort", carries="none"),
        "answer": Generate(),
    }
    n = 60
    served = run(plan, [(100.0 * k, 30, 5) for k in range(n)], {"llm": pool})
    traffic = Traffic(np.arange(n, dtype=float), np.full(n, 30), np.full(n, 5))
    (load,) = demand(Pipeline(plan), traffic, 0, {"llm": None}).values()
    assert load.generations * load.answer == pytest.approx(np.mean(served.column("generated")), rel=0.1)
    whole = {**plan, "f": replace(plan["f"], unheard="run")}
    assert load.answer < demand(Pipeline(whole), traffic, 0, {"llm": None})["llm"].answer / 2


# what cannot be


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Pipeline({}), "stages"),
        (lambda: Maybe({"a": Generate()}, 1.5), "probability = 1.5"),
        (lambda: Fork({}), "paths"),
        (lambda: Fork({"a": Path({"x": Generate()}, 2)}, needs=3), "needs = 3: the fork has 2 branches"),
        (lambda: Path({"x": Generate()}, 0), "copies = 0"),
        (lambda: Choice({"a": Option({"x": Generate()}, 1)}), "options = 1"),
        (lambda: Option({"x": Generate()}, 0), "weight = 0"),
        (lambda: Serve("tool", "t", pieces=2), "pieces = 2: has no effect"),
        (lambda: Serve("tool", "t", items=0), "items = 0"),
        (lambda: Exactly(0), "count = 0"),
        (lambda: Constant(-1.0), "seconds = -1.0"),
    ],
)
def test_what_makes_no_plan_is_refused_by_name(make, told):
    with pytest.raises(InputError, match=told):
        make()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"pipeline": Pipeline({"a": Serve("tool", "x"), "b": Generate()})},
            r"stages\.a\.station = x: this cluster has",
        ),
        ({"pipeline": Pipeline({"a": Transfer("x"), "b": Generate()})}, r"stages\.a\.link = x: no such link"),
        ({"links": {"x": LINK}}, r"links\.x = x: has no effect"),
        ({"pipeline": Pipeline({"b": Generate("big")})}, r"pipeline\.stages\.b\.pool = big.*llm"),
        ({"stations": {"t": DrawnStation()}}, r"stations\.t = t: has no effect"),
        (
            {"stations": {"t": DrawnStation()}, "pipeline": Pipeline({"a": Serve("tool", "t"), "b": Generate()})},
            r"stages\.a\.time",
        ),
        (
            {"stations": {"t": DrawnStation()}, "pipeline": Pipeline({"r": Repeat({"a": tool(1.0)}, Exactly(2))})},
            r"stages\.r\.stages\.a\.station = tools: no such station.*t",
        ),
    ],
)
def test_stages_and_places_must_find_each_other(pool, make_scenario, fields, told):
    with pytest.raises(InputError, match=told):
        make_scenario(pool, **fields)


def test_several_models_must_be_named(pool, make_scenario):
    with pytest.raises(InputError, match=r"stages\.answer\.pool.*one, two"):
        make_scenario({"one": pool, "two": pool})
    with pytest.raises(InputError, match=r"pools\.two = two: has no effect"):
        make_scenario({"one": pool, "two": pool}, pipeline=Pipeline({"a": Generate("one")}))


# the pipelines that come with MIST


def test_every_pipeline_runs_from_the_command_line_and_adds_up(pipeline_name):
    config = compose([f"pipeline={pipeline_name}", "workload.requests=40", "workload.rate=0.05", "slo=none"])
    data = plain(build(Scenario, config))
    assert plain(build(Scenario, data)) == data
    result = simulate(config)
    assert result.verdict == "ok"
    assert result.window.requests.completed == 40
    frame = result.requests_frame()
    if result.stages is None:  # plain ones
        assert pipeline_name in ("chat", "kv_reuse")
        return
    for kind, report in result.stages.items():
        part = frame[(frame.id >= 0) & (frame.id < 40)]
        assert part[f"{kind}_visits"].sum() == report.visits
        rest = report.transfer or report.service
        name = "transfer" if report.transfer else "service"
        assert part[f"{kind}_{name}"].sum() == pytest.approx(rest.mean * report.visits)
        assert rest.p50 <= rest.p90 <= rest.p99
    stations = sum(s.dollars_per_hour for s in (result.stations or {}).values())
    hosts = sum(h.dollars_per_hour for h in (result.hosts or {}).values())
    assert result.dollars_per_hour == pytest.approx(
        sum(p.dollars_per_hour for p in result.pools.values()) + stations + hosts
    )
