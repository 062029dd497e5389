"""Requests, tokens and blocks are neither lost nor made up, and effects follow their causes."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from mist.network import LinkSpec
from mist.perf.base import StepShape
from mist.request import Stage

LINK = LinkSpec("wire", 1e7, 1e-4)
ENGINE = {"block_tokens": 4, "reserved_blocks": 0}


SCHEDULERS, ROUTERS = (
    sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / noun).glob("*.yaml"))
    for noun in ("scheduler", "router")
)
# Each with the plainest of the other kind; tests/fuzz draws any two together.
PAIRS = [*((scheduler, "round_robin") for scheduler in SCHEDULERS), *(("chunked_prefill", r) for r in ROUTERS)]


@pytest.fixture(params=["one pool", "one pool, little memory", "disaggregated", "disaggregated, little memory"])
def deployment(request, policies, make_pool, tiny, linear):
    """Pools and link, with little memory or plenty."""
    scheduler, router = policies
    blocks = 40 if "little" in request.param else 5000
    common = {
        "model": tiny, "scheduler": scheduler, "router": router, "kv_blocks": blocks, "engine": ENGINE,
        "limits": {"token_budget": 64, "max_running": 31}, "perf": linear(1e-3, 1e-5, 1e-6), "replicas": 2,
    }  # fmt: skip
    if "one" in request.param:
        return {"llm": make_pool(**common)}, None
    return {role: make_pool(**common, role=role) for role in ("prefill", "decode")}, LINK


@pytest.fixture(params=sorted(set(PAIRS)), ids=" ".join)
def policies(request):
    """A scheduler and a router."""
    return request.param


@pytest.fixture
def load(poisson):
    """120 requests, some of which need more than 160 tokens."""
    return poisson(3, 120, 3000.0, (1, 60), (1, 110))


@pytest.fixture(scope="module")
def runs():
    """Those made so far, by what was deployed."""
    return {}


@pytest.fixture
def run(request, runs, deployment, load, drive):
    """The load on the deployment, until nothing is left to do; several laws look at the same one."""
    made = request.node.callspec.id
    if made not in runs:
        pools, link = deployment
        runs[made] = drive(pools, load, link)
    return runs[made]


def test_arrived_is_completed_and_in_flight_and_refused_at_every_instant(deployment, load, drive):
    pools, link = deployment

    def conserved(run):
        here = [r for r in run.requests if r.arrived <= run.kernel.now]
        states = Counter("refused" if r.refused else "completed" if r.finished >= 0 else "in flight" for r in here)
        cluster = run.cluster
        seen = {"completed": cluster.completed, "in flight": cluster.in_flight, "refused": cluster.refused}
        assert Counter(seen) == states
        assert cluster.arrived == len(here)
        for client in run.clients:
            assert 0 <= client.kv.used <= client.kv.peak <= client.kv.total

    run = drive(pools, load, link, after_each=conserved)
    assert (run.cluster.arrived, run.cluster.in_flight) == (len(load), 0)


def test_every_block_is_free_again_when_all_is_done(run):
    for client in run.clients:
        assert client.kv.used == 0
        assert client.decodes.count == client.decodes.cached == client.waiting == len(client.running) == 0
    assert max(client.kv.peak for client in run.clients) > 0
    assert all(not any(pool.outstanding) for pool in run.cluster.pools.values())


def test_a_completed_request_has_sampled_exactly_its_output(run):
    for request in run.requests:
        if not request.refused:
            assert request.left == 0
            assert request.known == request.input + request.output
            assert request.computed == request.known - 1  # the last token is never read
            assert request.blocks == 0


def test_a_request_is_refused_only_if_it_can_never_be_served(deployment, run):
    pools, _ = deployment
    for request in run.requests:
        blocks = next(iter(pools.values())).blocks()
        fits = -(-(request.input + request.output) // ENGINE["block_tokens"]) <= blocks
        assert bool(request.refused) != fits
        assert (request.finished >= 0) == fits
        if not fits:
            assert f"has {blocks}" in request.refused


def test_a_prefill_client_needs_no_room_for_the_answer(scheduler_name, make_pool, drive, tiny):
    common = {
        "model": tiny,
        "scheduler": scheduler_name,
        "engine": ENGINE,
        "limits": {"token_budget": 64, "max_running": 31},
    }
    pools = {role: make_pool(**common, role=role, kv_blocks=n) for role, n in (("prefill", 10), ("decode", 40))}
    run = drive(pools, [(0.0, 39, 100), (0.0, 40, 100), (0.1, 20, 140), (0.2, 20, 141)], LINK)
    assert [bool(request.refused) for request in run.requests] == [False, True, False, True]
    assert run.cluster.completed == 2
    assert "needs 11 KV blocks, a replica of prefill has 10" in run.requests[1].refused
    assert "needs 41 KV blocks, a replica of decode has 40" in run.requests[3].refused


def test_effects_follow_their_causes(deployment, run):
    pools, link = deployment
    front_end = next(iter(pools.values())).engine.front_end
    for request in run.requests:
        if request.refused:
            assert request.visits == []
            continue
        visits = request.visits
        assert request.arrived <= visits[0].started < request.first_token <= request.finished
        assert visits[0].queued == request.arrived + front_end
        assert visits[0].finished == request.first_token
        assert visits[-1].finished == request.finished
        for visit in visits:
            assert visit.queued <= visit.started <= visit.finished
        for before, after in pairwise(visits):
            assert before.finished == after.queued
        plan = [Stage.PREFILL, *([Stage.HANDOVER] if link else []), Stage.DECODE]
        assert [visit.stage for visit in visits] == (plan if request.output > 1 else plan[:1])


def test_every_token_is_computed_once_unless_its_cache_was_taken(deployment, load, drive, monkeypatch, linear):
    pools, link = deployment
    computed = []
    step_time, decode_stretch = linear.step_time, linear.decode_stretch

    def counting(self, shape: StepShape) -> float:
        computed.append(shape.tokens)
        return step_time(self, shape)

    monkeypatch.setattr("mist.routing.predicted_ttft", lambda *_: 0.0)  # asks about steps that nobody makes
    monkeypatch.setattr(linear, "step_time", counting)
    monkeypatch.setattr(linear, "decode_stretch", lambda *args: decode_stretch(*args)._replace(steps=1))
    run = drive(pools, load, link)
    needed = sum(r.input + r.output - 1 for r in run.requests if not r.refused)
    if sum(r.preemptions for r in run.requests):
        assert sum(computed) > needed
    else:
        assert sum(computed) == needed
