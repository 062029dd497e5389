"""Pipelines that share a prefix cache, fail, and are asked for a step's time."""

from dataclasses import dataclass

import pytest

from mist.clients.stages import Stages
from mist.errors import InputError
from mist.faults import GivenFaults, Outage
from mist.handover import HandoverSpec
from mist.kernel import Kernel
from mist.network import LinkSpec
from mist.perf.base import StepShape


@dataclass(frozen=True)
class Same:
    """Whatever the request, its tokens are those of all others."""

    def key(self, block, block_tokens):
        return block


@pytest.fixture
def pipeline(make_pool, tiny, linear):
    def of(**fields):
        fields = {"pp": 2, "kv_blocks": 500, "perf": linear(1e-3, 1e-4), **fields}
        return make_pool(
            model=tiny, engine={"block_tokens": 4}, limits={"token_budget": 64, "max_running": 8}, **fields
        )

    return of


def test_a_lane_hits_what_another_has_computed(pipeline, drive):
    load = [(0.0, 40, 3), (1.0, 40, 3)]
    cold, warm = (drive(pipeline(prefix_caching=on), load, contents=lambda _: Same()) for on in (False, True))
    first, second = (request.ttft for request in warm.requests)
    assert [request.ttft for request in cold.requests] == pytest.approx([first, first])
    assert first - second == pytest.approx(2 * 36 * 1e-4, rel=1e-3)  # nine blocks, in each of two stages
    assert warm.clients[0].kv.use().hit_tokens == 36


def test_asking_how_long_a_step_would_take_sends_nothing_in(linear):
    stages = Stages(Kernel(), [linear(1e-3), linear(2e-3)], lambda *_: 0.0, [])
    shape = StepShape(3, 30)
    assert [stages.predicted(shape) for _ in range(3)] == [3e-3] * 3
    assert (stages.busy, stages.step_time(shape), stages.step_time(shape)) == (0.0, 3e-3, 5e-3)
    assert stages.busy == pytest.approx(3e-3)


def test_a_failure_loses_the_batches_in_flight(pipeline, drive, linear):
    # A token every 2 s, so that ten are there when the replica fails half a second into the eleventh's batch.
    pool = pipeline(perf=linear(1.0), replicas=2)
    run = drive(pool, [(0.0, 10, 30)], faults=GivenFaults({"one": Outage(20.5, 100.0)}, "migrate", 1))
    (request,) = run.requests
    assert (request.replica, request.retries) == (1, 1)
    assert request.finished == pytest.approx(20.5 + 20 * 2, rel=1e-4)
    busy = [client.busy for client in run.cluster.pools["llm"].everybody]
    assert sorted(busy) == pytest.approx([0.0, (20 + 0.5) / 2, 20 * 2 / 2], rel=1e-4)


def test_layers_are_not_handed_over_out_of_a_pipeline(pipeline, make_scenario):
    pools = {"prefill": pipeline(role="prefill"), "decode": pipeline(role="decode")}
    with pytest.raises(InputError, match=r"pools\.prefill\.pp = 2: layer-wise hand-over out of a pipeline"):
        make_scenario(pools, link=LinkSpec("wire", 1e9, 0.0), handover=HandoverSpec(layerwise=True))
    with pytest.raises(InputError, match=r"pp = 2: preemption by swap"):
        pipeline(preemption="swap")
