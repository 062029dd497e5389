import time

import numpy as np
import pytest
import toy

from mist.errors import InputError
from mist.sweep.judging import Job
from mist.sweep.on_ray import OnRay
from mist.sweep.options import RayOptions
from mist.sweep.workers import Serial


def job(number, limit_s=5.0, seeds=(0,), **changes):
    config = toy.compose([f"{key}={value}" for key, value in changes.items()])
    return Job(number, config, {seed: toy.ToyWorkload().traffic(seed) for seed in seeds}, limit_s)


def outcomes(hands, *jobs, patience_s=30.0):
    for one in jobs:
        hands.submit(one)
    told, until = {}, time.monotonic() + patience_s
    while len(told) < len(jobs) and time.monotonic() < until:
        told |= {outcome.number: outcome for outcome in hands.finished(0.5)}
    return [told[one.number] for one in jobs]


JOBS = [
    job(0, seeds=(0, 1, 2)),
    job(1, hardware="a100", tp=2),
    job(2, hardware="l40s"),
    job(3, mode="crash"),
    job(4, mode="slow"),
]


def test_ray_and_serial_give_identical_records(on_ray):
    here, there = outcomes(Serial("toy.judge"), *JOBS), outcomes(on_ray, *JOBS)
    assert [one.record for one in here] == [one.record for one in there]
    assert [(one.error or {}).get("message") for one in here] == [(one.error or {}).get("message") for one in there]


def test_an_exception_that_cannot_be_pickled_comes_back_with_its_traceback(on_ray):
    (crashed,) = outcomes(on_ray, job(0, mode="crash", tp=4))
    assert crashed.record is None and crashed.attempts == 1
    assert crashed.error["type"] == "Unpicklable" and "broke at tp=4" in crashed.error["message"]
    assert "misbehave" in crashed.error["traceback"]


def test_a_trial_that_does_not_stop_is_killed_and_the_others_go_on(on_ray):
    began = time.monotonic()
    hung, fine = outcomes(on_ray, job(0, limit_s=0.5, mode="hang"), job(1, tp=8))
    assert hung.error["type"] == "Timeout" and "limit 0.5 s" in hung.error["message"]
    assert fine.record["verdict"] == "ok" and time.monotonic() - began < 10


def test_a_worker_that_dies_is_replaced_and_its_trial_tried_again(on_ray, monkeypatch, tmp_path):
    flag = tmp_path / "died"
    jobs = [job(0, mode="die_once", note=str(flag)), job(1, tp=2)]
    died, fine = outcomes(on_ray, *jobs)
    assert died.record["verdict"] == fine.record["verdict"] == "ok"
    assert flag.exists() and died.attempts == 2


def test_a_trial_whose_worker_always_dies_is_given_up_after_three_attempts(on_ray):
    (dead,) = outcomes(on_ray, job(0, mode="die"))
    assert dead.error["type"] == "WorkerCrashedError" and dead.attempts == 3


def test_traffic_reaches_workers_whole_and_is_stored_once(on_ray):
    shared = job(0, seeds=(7,))
    before = len(on_ray._stored)
    told = outcomes(on_ray, *(Job(n, shared.config, shared.traffic, 5.0) for n in range(6)))
    (here,) = outcomes(Serial("toy.judge"), shared)
    assert all(one.record == here.record for one in told)
    assert len(on_ray._stored) == before + 1


@pytest.mark.parametrize("answer", [float("nan"), {1, 2}, np.float64(1)])
def test_an_answer_that_is_not_plain_data_is_a_failure_not_a_lie(monkeypatch, answer):
    monkeypatch.setattr(toy, "judge", lambda *_: {"value": answer})
    (told,) = outcomes(Serial("toy.judge"), job(0))
    assert told.record is None or told.record == {"value": 1.0}
    assert (told.error is None) == isinstance(answer, np.floating)


def test_a_cluster_that_does_not_answer_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        OnRay(RayOptions(address="127.0.0.1:9"), "toy.judge")
    assert caught.value.field == "ray.address" and time.monotonic() - began < 6
