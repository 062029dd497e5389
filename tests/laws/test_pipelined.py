"""Laws of pipelines: stages, the batches in flight in them, and what is sent between."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist.network import LinkSpec
from mist.node import NodeSpec

FREE_HOP = NodeSpec("wire", 8, 1e18, 0.0)


@pytest.fixture
def pipelined(make_pool, tiny, linear):
    """A pool whose stages each take what ``linear`` says; sends between them take ``hop`` seconds."""

    def of(pp, perf=None, hop=0.0, scheduler="chunked_prefill", **fields):
        limits = {"token_budget": 64, "max_running": 32, **fields.pop("limits", {})}
        pool = make_pool(
            model=replace(tiny, layers=8), scheduler=scheduler, limits=limits, pp=pp, perf=perf or linear(1e-3),
            engine={"block_tokens": 4}, kv_blocks=fields.pop("kv_blocks", 10_000), **fields,
        )  # fmt: skip
        wire = replace(pool.hardware, scale_up_bandwidth=1e30, scale_up_latency=hop)
        return replace(pool, hardware=wire)

    return of


@pytest.mark.parametrize("pp", [2, 4])
def test_a_request_alone_takes_the_sum_of_stages_and_sends(pp, pipelined, drive):
    run = drive(pipelined(pp, hop=1e-4), [(0.0, 20, 10)])
    step = pp * 1e-3 + (pp - 1) * 1e-4
    assert run.requests[0].first_token == pytest.approx(step)
    assert run.requests[0].finished == pytest.approx(10 * step)


@pytest.mark.parametrize("pp", [2, 3, 4])
def test_a_saturated_pipeline_makes_a_step_in_every_stage_time(pp, pipelined, drive):
    # Four decode for each lane; all arrive at once, so that the lanes fill one after the other.
    run = drive(pipelined(pp, limits={"max_running": 4 * pp}), [(0.0, 1, 500)] * (4 * pp))
    (client,) = run.clients
    makespan = max(request.finished for request in run.requests)
    assert client.steps / makespan == pytest.approx(1 / 1e-3, rel=0.02)
    assert client.busy == pytest.approx(makespan, rel=0.02)
    tokens = 500 * 4 * pp / makespan
    assert tokens == pytest.approx(4 / 1e-3, rel=0.02)


def test_the_slowest_stage_sets_the_pace(pipelined, drive, linear):
    class Uneven:
        def of(self, part):
            return linear(3e-3 if "stage 2" in part.model.name else 1e-3)

    run = drive(pipelined(3, perf=Uneven(), limits={"max_running": 12}), [(0.0, 1, 300)] * 12)
    makespan = max(request.finished for request in run.requests)
    assert run.clients[0].steps / makespan == pytest.approx(1 / 3e-3, rel=0.02)
    alone = drive(pipelined(3, perf=Uneven()), [(0.0, 1, 300)])
    assert alone.requests[0].finished == pytest.approx(300 * 5e-3)


@settings(max_examples=25)
@given(data=st.data())
def test_no_request_is_in_two_batches_and_nothing_is_lost(data, scheduler_name, pipelined, drive, poisson, linear):
    blocks = data.draw(st.sampled_from([30, 60, 10_000]))
    load = poisson(data.draw(st.integers(0, 2**32)), data.draw(st.integers(1, 40)), 2000.0, (1, 60), (1, 50))
    limits = {"max_running": data.draw(st.sampled_from([2, 8, 31]))}
    perf = linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5)
    pool = pipelined(
        data.draw(st.integers(2, 4)), perf, 1e-5, scheduler_name, kv_blocks=blocks, limits=limits,
        replicas=data.draw(st.integers(1, 2)), router="least_loaded",
    )  # fmt: skip

    def sound(run):
        for client in run.clients:
            assert 0 <= client.kv.used <= client.kv.peak <= client.kv.total
            ids = [request.id for request in client.running]
            assert len(ids) == len(set(ids))

    run = drive(pool, load, after_each=sound)
    assert (run.cluster.arrived, run.cluster.in_flight) == (len(load), 0)
    for request in run.requests:
        assert bool(request.refused) != (request.finished >= 0)
        if not request.refused:
            assert (request.left, request.computed, request.blocks) == (0, request.known - 1, 0)
    for client in run.clients:
        assert client.kv.used == client.waiting == len(client.running) == 0
        assert client.busy <= run.kernel.now * (1 + 1e-9)


@settings(max_examples=60)
@given(data=st.data())
def test_what_lanes_leap_is_what_they_would_step(data, pipelined, drive, poisson, linear):
    blocks = data.draw(st.sampled_from([30, 60, 10_000]))
    load = poisson(data.draw(st.integers(0, 2**32)), data.draw(st.integers(1, 40)),
                   data.draw(st.sampled_from([20.0, 200.0, 2000.0])), (1, 60), (1, 90))  # fmt: skip
    pool = pipelined(
        data.draw(st.integers(2, 4)), linear(1e-3 * 2**0.5, 1e-5 * 3**0.5, 1e-6 * 5**0.5), 1e-5, "vllm_v1",
        kv_blocks=blocks, limits={"max_running": data.draw(st.sampled_from([4, 31]))},
    )  # fmt: skip
    looks: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    runs = {}
    for singly, seen in looks.items():

        def look(run, seen=seen):
            if any(request.finished == run.kernel.now for request in run.requests):
                (client,) = run.clients
                seen.append((run.kernel.now, client.busy, client.load, client.steps, client.kv.peak))

        runs[singly] = drive(pool, load, one_by_one=singly, after_each=look)
    for name in ("preemptions", "refused"):
        assert runs[False].column(name).tolist() == runs[True].column(name).tolist()
    for name in ("started", "first_token", "finished"):
        np.testing.assert_allclose(runs[False].column(name), runs[True].column(name), rtol=1e-11)
    np.testing.assert_allclose(looks[False], looks[True], rtol=1e-11)


def test_a_pipeline_leaps(pipelined, drive):
    run = drive(pipelined(2, limits={"max_running": 2}), [(0.0, 1, 2000), (0.0, 1, 2000)])  # one in each lane
    assert run.clients[0].steps == 4000
    assert run.kernel.events < 200  # some hundredths of one event for each step


@pytest.mark.parametrize("blocks", [40, 5000])
def test_a_hand_over_between_pipelines_conserves_requests(blocks, scheduler_name, pipelined, drive, poisson, linear):
    pools = {
        role: pipelined(pp, linear(1e-3, 1e-5), 1e-5, scheduler_name, kv_blocks=blocks, role=role)
        for role, pp in (("prefill", 2), ("decode", 3))
    }
    run = drive(pools, poisson(3, 80, 3000.0, (1, 60), (1, 60)), LinkSpec("wire", 1e7, 1e-4))
    assert (run.cluster.arrived, run.cluster.in_flight) == (80, 0)
    assert all(client.kv.used == 0 for client in run.clients)


def test_a_pipeline_of_one_stage_is_no_pipeline(pipelined, drive, poisson, linear):
    load = poisson(5, 50, 1000.0, (1, 60), (1, 50))
    perf = linear(1e-3, 1e-5, 1e-6)
    one, other = drive(pipelined(1, perf), load), drive(replace(pipelined(1, perf), node=FREE_HOP), load)
    for name in ("started", "first_token", "finished"):
        assert one.column(name).tolist() == other.column(name).tolist()
