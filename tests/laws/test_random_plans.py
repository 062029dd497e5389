"""Laws of any plan at all: everybody ends, and nothing is left or made up."""

from collections import Counter
from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mist.clients.station import DrawnStation
from mist.network import LinkSpec
from mist.plan.branches import Choice, Exactly, Fork, Maybe, Option, Path, Repeat
from mist.plan.draws import Draws
from mist.plan.stages import Generate, Pipeline, Serve, Transfer, unfold
from mist.plan.steps import Forking, Generating, Sending, Serving
from mist.plan.times import Constant, Exponential
from mist.request import Stage
from mist.workload.lengths import Fixed, Geometric, Uniform

LINK = LinkSpec("wire", 1e9, 1e-4)
LENGTHS = st.sampled_from((Fixed(1), Fixed(9), Uniform(1, 30), Geometric(12)))
LEAVES = st.one_of(
    st.builds(
        Generate,
        pool=st.sampled_from(("llm", "p")),
        output=st.one_of(st.none(), LENGTHS),
        prompt=st.one_of(st.none(), LENGTHS),
        instruction=st.integers(0, 5),
        keeps=st.booleans(),
        streams=st.booleans(),
    ),
    st.builds(Transfer, link=st.just("wire"), size=st.sampled_from((0.0, 1e6)), per_token=st.sampled_from((0.0, 1e4))),
    st.builds(
        Serve,
        kind=st.sampled_from(("tool", "retrieve", "process")),
        station=st.sampled_from(("tools", "other")),
        time=st.sampled_from((Constant(0.0), Constant(0.02), Exponential(0.05))),
        piece_tokens=st.one_of(st.none(), LENGTHS),
    ),
)


def named(stages):
    return {f"s{number}": stage for number, stage in zip(count(), stages, strict=False)}


def grown(stages):
    some = st.lists(stages, min_size=1, max_size=3).map(named)
    paths = st.dictionaries(st.sampled_from("ab"), st.builds(Path, some, st.integers(1, 3)), min_size=1)
    return st.one_of(
        st.builds(Repeat, some, st.sampled_from((Exactly(2), Uniform(1, 3)))),
        st.builds(Maybe, some, st.sampled_from((0.0, 0.5, 1.0))),
        st.builds(lambda a, b: Choice({"a": Option(a, 1.0), "b": Option(b, 2.0)}), some, some),
        st.builds(Fork, paths, st.sampled_from((None, 1)), st.sampled_from(("one", "all", "none"))),
    )


PLANS = st.lists(st.recursive(LEAVES, grown, max_leaves=8), min_size=1, max_size=4).map(named)


def visited(steps):
    """Visits by kind, and generations' outputs where they are drawn."""
    seen = Counter()
    for step in steps:
        if isinstance(step, Forking):
            for branch in step.branches:
                seen += visited(branch)
        else:
            known = {Generating: Stage.PREFILL, Sending: Stage.TRANSFER}.get(type(step))
            seen[known or step.kind] += 1
    return seen


def read(steps, context, answer):
    """Context at the end, tokens of all prompts and of all that was written, worked out from the plan alone.

    A branch that is not waited for counts too; whose tokens go on is known only where all are waited for.
    """
    prompted = generated = 0
    for step in steps:
        if isinstance(step, Serving):
            context += step.added
        elif isinstance(step, Generating):
            prompt = (context if step.prompt is None else step.prompt) + step.instruction
            written = answer if step.output is None else step.output
            prompted, generated = prompted + prompt, generated + written
            if step.keeps:
                context += written + (step.instruction if step.prompt is None else 0)
        elif isinstance(step, Forking):
            ends, prompts, writes = zip(*(read(branch, context, answer) for branch in step.branches), strict=True)
            prompted, generated = prompted + sum(prompts), generated + sum(writes)
            one = ends[int(step.share * len(ends))]
            context = {"one": one, "all": context + sum(end - context for end in ends), "none": context}[step.carries]
    return context, prompted, generated


def waits_for_all(steps):
    forks = [step for step in steps if isinstance(step, Forking)]
    return all(f.needs == len(f.branches) and all(map(waits_for_all, f.branches)) for f in forks)


@settings(max_examples=120)
@given(plan=PLANS, caching=st.booleans(), seed=st.integers(0, 5), blocks=st.sampled_from((60, 2000)))
def test_whatever_the_plan_everybody_ends_and_nothing_is_left_or_made_up(
    plan, caching, seed, blocks, make_pool, tiny, linear, drive
):
    assume(not Pipeline(plan).plain)
    spec = make_pool(
        model=tiny, perf=linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-7 * 5**0.5),
        limits={"token_budget": 64, "max_running": 4},
        engine={"block_tokens": 4}, kv_blocks=blocks, prefix_caching=caching,
    )  # fmt: skip
    pools = {
        "llm": spec,
        "p": replace(spec, role="prefill", prefix_caching=False),
        "d": replace(spec, role="decode", prefix_caching=False),
    }
    draw = np.random.default_rng(seed)
    load = [(float(t), int(i), int(o)) for t, i, o in zip(
        np.cumsum(draw.exponential(0.03, 12)), draw.integers(1, 60, 12), draw.integers(1, 20, 12), strict=True
    )]  # fmt: skip
    options = {
        "pipeline": Pipeline(plan), "cycle": 8, "seed": seed, "links": {"wire": LinkSpec("wire", 1e8, 1e-4)},
        "stations": {"tools": DrawnStation(None), "other": DrawnStation(2)},
    }  # fmt: skip
    one, two, stepped = (drive(pools, load, LINK, one_by_one=slow, **options) for slow in (False, False, True))
    cluster = one.cluster
    assert (cluster.arrived, cluster.completed + cluster.refused, cluster.in_flight) == (12, 12, 0)
    assert blocks == 60 or not cluster.refused
    assert not any(client.kv.used for client in one.clients)
    assert not any(any(pool.outstanding) for pool in cluster.pools.values())
    assert [q.visits for q in one.requests] == [q.visits for q in two.requests]
    for query, twin in zip(one.requests, stepped.requests, strict=True):
        assert [visit[:2] for visit in query.visits] == [visit[:2] for visit in twin.visits]
        times = [[time for visit in q.visits for time in visit[2:]] for q in (query, twin)]
        assert times[0] == pytest.approx(times[1], rel=1e-9)
    for query in one.requests:
        if query.refused:
            continue
        steps = unfold(plan, Draws(seed, 8).of(query.id))
        seen = Counter(visit.stage for visit in query.visits)
        assert {kind: seen[kind] for kind in visited(steps)} == dict(visited(steps))
        for visit in query.visits:
            assert query.arrived <= visit.queued <= visit.started <= visit.finished
        assert query.finished >= query.first_token >= query.arrived
        assert all(a.finished <= b.finished for a, b in pairwise(query.visits))
        if waits_for_all(steps):
            assert (query.prompted, query.generated) == read(steps, query.input, load[query.id][2])[1:]
        least = sum(step.seconds for step in steps if isinstance(step, Serving))
        assert query.finished - query.arrived >= least * (1 - 1e-9)
