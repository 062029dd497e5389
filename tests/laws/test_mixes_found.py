"""What random mixes of features found, each shrunk to a law of its own."""

from dataclasses import dataclass, fields, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist.autoscalers.queue_length import QueueLength
from mist.autoscalers.target_utilization import TargetUtilization
from mist.clients.llm import LLMClient
from mist.errors import UnmeetableSLO
from mist.faults import DrawnFaults, GivenFaults, Outage
from mist.handover import HandoverSpec
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.network import LinkSpec
from mist.policy import Grant, PoolView, Preempt
from mist.request import Request, RequestClass, Stage
from mist.scaling import Autoscale
from mist.schedulers.chunked_prefill import ChunkedPrefill
from mist.simulate import refuse_unmeetable, serve
from mist.speculation import NGram

STEP, TOKEN, CACHED = 1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5


@dataclass(frozen=True)
class Same:
    """The tokens of everybody, prompts and answers."""

    def key(self, block, block_tokens):
        return block, block_tokens


@dataclass(frozen=True)
class Watching:
    """An autoscaling policy that keeps what it saw, and a pool of three as it is."""

    seen: list[PoolView]

    def replicas(self, view):
        self.seen.append(view)
        return 3


@pytest.fixture
def pool(make_pool, tiny, linear):
    """Blocks of four tokens, steps without a common measure with anything else."""

    def make(**fields):
        fields = {"perf": linear(STEP, TOKEN, CACHED), **fields}
        return make_pool(model=tiny, engine={"block_tokens": 4, "reserved_blocks": 0}, **fields)

    return make


def test_who_waits_in_line_enters_when_a_leap_would_have_cached_its_prefix(pool, drive):
    """The second prompt lacks one block until the first request's answer has filled one that they share."""
    one = pool(kv_blocks=3, prefix_caching=True, limits={"token_budget": 64, "max_running": 4})
    load = [(0.0, 4, 8), (1.5 * STEP, 11, 1)]
    fast, slow = (drive(one, load, contents=lambda _: Same(), one_by_one=twin) for twin in (False, True))
    first, second = fast.requests
    assert second.finished < first.finished
    assert fast.column("finished") == pytest.approx(slow.column("finished"), rel=1e-12)


def test_an_autoscaler_sees_the_memory_that_a_leap_has_taken_so_far(pool, drive):
    scaling = Autoscale(TargetUtilization("memory", 0.4, 0.1), 0.02, 0.05, 0.0, 1, 3)
    one = pool(kv_blocks=30, autoscaler=scaling)
    runs = [drive(one, [(0.0, 10, 100)], one_by_one=twin, until=0.2) for twin in (False, True)]
    fast, slow = (run.cluster.pools["llm"].fleet.history() for run in runs)
    assert len(fast) > 2
    assert fast == slow


def test_an_idle_pool_was_busy_for_exactly_no_time_whatever_its_clients_did(pool, drive):
    """Seconds of stepping are summed over clients that come and go: in another order they must give the same sum."""
    load, faults = [(0.23 * i, 9, 19 + 3 * i) for i in range(20)], DrawnFaults(0.4, 0.005, "lose", 0)
    idle = 0
    for seed in range(5):
        policy = Watching([])
        served = pool(replicas=3, autoscaler=Autoscale(policy, 0.02, 0.05, 0.0, 0, 3))
        run = drive(served, load, faults=faults, seed=seed, until=6.0)
        assert run.cluster.pools["llm"].fleet.failures
        for number, view in enumerate(policy.seen):
            since, until = 0.05 * number, 0.05 * (number + 1)
            if not any(since - STEP <= v.finished and v.started <= until for r in run.requests for v in r.visits):
                assert view.busy == 0.0
                idle += 1
    assert idle > 100


def test_a_pool_at_its_target_of_use_stays_as_it_is_stepping_or_leaping(pool, drive):
    """One of two replicas is busy throughout: half the time but for rounding, and rounding orders no replica."""
    one = pool(replicas=2, autoscaler=Autoscale(TargetUtilization("busy", 0.5, 0.0), 0.02, 0.05, 0.0, 2, 4))
    for late in range(5):
        for twin in (False, True):
            run = drive(one, [(0.003 * late, 9, 400)], one_by_one=twin, until=0.7)
            history = run.cluster.pools["llm"].fleet.history()
            assert [span[:3] for span in history] == [(0, "up", 0.0), (1, "up", 0.0)]


@given(data=st.data())
def test_a_share_that_is_the_target_times_a_whole_number_wants_that_many_whatever_was_rounded(data):
    up = data.draw(st.integers(1, 64))
    percent, wanted = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 64))
    exact, noise = Fraction(wanted * percent, 100 * up), data.draw(st.floats(-1e-13, 1e-13))
    policy = TargetUtilization("busy", percent / 100, 0.0)
    view = PoolView(up, up, 0, up, 0.0, float(exact) * (1 + noise), None)
    assert policy.replicas(view) == wanted


def test_who_waits_for_room_behind_a_claim_that_is_given_up_gets_it(pool, drive):
    """A prefill client preempts a request whose claim is first in line for decode memory: the next one may fit."""
    pools = {
        "prefill": pool(
            role="prefill", kv_blocks=29, limits={"token_budget": 9, "max_running": 3}, scheduler="slo_aware"
        ),
        "decode": pool(role="decode", kv_blocks=29, limits={"token_budget": 43, "max_running": 1}),
    }
    urgent, plain, batch = RequestClass("urgent", ttft=0.02), RequestClass("plain"), RequestClass("batch", ttft=1.0)
    kinds = [plain, batch, batch, urgent, urgent, plain, urgent]
    load = [(2e-3, 21, 2), (3e-3, 21, 2), (4e-3, 17, 2), (5e-3, 5, 2), (8e-3, 13, 2), (0.01, 1, 1), (0.011, 25, 2)]
    run = drive(pools, load, LinkSpec("wire", 1e8, 0.0), handover=HandoverSpec(layerwise=True), kinds=kinds)
    assert run.cluster.in_flight == 0


def test_a_wait_for_a_hand_over_begins_when_the_prompt_is_computed_again(pool, drive, linear):
    """The decode replica fails, then, during the next hand-over, the prefill replica."""
    pools = {role: pool(role=role, perf=linear(1.0)) for role in ("prefill", "decode")}
    faults = GivenFaults(
        {"sink": Outage(4.5, 0.1, 0, "decode"), "source": Outage(5.7, 0.1, 0, "prefill")}, "migrate", 3
    )
    run = drive(
        pools, [(0.0, 10, 20)], LinkSpec("wire", 5e3, 0.0), handover=HandoverSpec(layerwise=True), faults=faults
    )
    (request,) = run.requests
    assert request.retries > 0
    assert [v.stage for v in request.visits].count(Stage.DECODE) > 1
    assert all(v.queued <= v.started <= v.finished for v in request.visits)


@pytest.mark.parametrize("threshold", [0, 1, 9, 29, 40])
def test_prompts_are_served_without_chunks_whatever_the_long_prefill_threshold(threshold, pool, drive):
    limits = {"token_budget": 29, "max_running": 1, "chunked": False, "long_prefill_threshold": threshold}
    run = drive(pool(scheduler="vllm_v1", limits=limits), [(0.0, 26, 3), (0.0, 17, 3), (0.0, 1, 3)])
    assert run.cluster.completed == 3


@pytest.mark.parametrize("granted", [True, False])
def test_a_claim_that_is_forgotten_lets_the_next_in_line_have_the_room_at_once(granted, linear):
    """Nothing else happens at the client: nobody would look again."""
    kernel, kv, given = Kernel(), BlockPool(10, 4), []
    client = LLMClient(
        kernel, "decode/0", scheduler=ChunkedPrefill(64, 4), steptimes=linear(1.0), kv=kv, finished=lambda _: None
    )
    ahead, large, small = (Request(id_, 0.0, tokens, 5) for id_, tokens in enumerate((16, 36, 8)))
    for claim in (large, small) if granted else (ahead, large, small):
        claim.computed = claim.input
        client.expect(claim, given.append)
    kernel.run()
    assert given == [large if granted else ahead]
    client.forget(large, granted)
    kernel.run()
    assert given[1:] == [small]
    assert kv.used == sum(claim.input // 4 for claim in given if claim is not large)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_who_gave_way_gets_nothing_in_the_step_that_took_its_memory(
    prefix_caching, preempting_name, pool, drive, poisson
):
    """Of several prompts begun, in short chunks, an older one may take a younger one's blocks."""
    limits = {"token_budget": 40, "max_running": 8}
    one = pool(scheduler=preempting_name, kv_blocks=16, prefix_caching=prefix_caching, limits=limits)
    short = {"long_prefill_threshold": 3} if hasattr(one.scheduler, "long_prefill_threshold") else {}
    one = replace(one, scheduler=recorded(replace(one.scheduler, **short)))
    run = drive(one, poisson(5, 60, 1000.0, (1, 40), (1, 20)))
    assert run.clients[0].preemptions
    assert run.cluster.in_flight == 0


def recorded(scheduler):
    """The same scheduler, whose every step is looked at."""

    def schedule(self, view):
        gone = set()
        for decision in kind.schedule(self, view):
            if isinstance(decision, Preempt):
                gone.add(decision.request.id)
            assert not isinstance(decision, Grant) or decision.request.id not in gone
            yield decision

    kind = type(scheduler)
    options = {field.name: getattr(scheduler, field.name) for field in fields(scheduler)}
    return type(kind.__name__, (kind,), {"schedule": schedule})(**options)


def test_no_pipeline_stage_has_worked_for_longer_than_the_clock_has_run(pool, drive):
    """Batches that have been sent in are work ahead: a run may be looked at, or end, before they are through."""

    def looked_at(run):
        assert 0 <= run.clients[0].busy <= run.kernel.now * (1 + 1e-12)

    run = drive(pool(pp=2), [(0.0, 200, 9), (0.0, 300, 5), (0.004, 90, 30)], after_each=looked_at)
    assert run.clients[0].busy > 0.5 * run.kernel.now


def test_watts_of_a_device_are_those_of_the_devices_that_were_rented_and_drafts_those_of_all_replicas(
    make_pool, make_scenario, drawn
):
    """Replicas come and go: neither the number at the beginning nor those left at the end are all."""
    scaling = Autoscale(QueueLength(1.0, 2.0), 0.5, 0.2, 0.2, 0, 8)
    served = make_pool(autoscaler=scaling, speculation=NGram(tokens=2, acceptance=0.5))
    scenario = make_scenario(served, drawn(n=100, answer=80.0))
    result = serve(scenario, scenario.workload.traffic(3), 12.0)
    report, device = result.pools["llm"], served.hardware
    assert report.fleet.most > 3 * served.replicas
    assert device.idle_power < report.watts < device.power
    answered = sum(request.output - 1 for request in result.requests if request.finished >= 0)
    assert report.speculation.accepted + report.speculation.drafted / 2 >= answered  # a verification drafts two


def test_a_limit_that_nobody_keeps_because_nobody_is_answered_is_refused_with_the_reason(pool, make_scenario, drawn):
    """It said that the fastest takes inf s."""
    scenario = make_scenario(pool(kv_blocks=3), drawn(n=5))
    traffic = scenario.workload.traffic(0)
    with pytest.raises(UnmeetableSLO, match=r"none is answered \(needs \d+ KV blocks, a replica of llm has 3\)"):
        refuse_unmeetable(scenario, traffic, serve(scenario, traffic, 1.0))
