"""Drivers in processes of their own, killed and interrupted."""

import os
import random
import signal
import time

import pytest


def wait_for(run, trials):
    until = time.monotonic() + 40
    while time.monotonic() < until:
        if run() and (run()[0] / "trials.jsonl").read_bytes().count(b"\n") >= trials:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {trials} trials after 40 s")


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_lost_or_repeated_when_the_driver_is_killed_at_any_moment(drive, lines, seed):
    dice, kept = random.Random(seed), b""
    driver = drive("run", TOY_SLEEP="0.03")
    wait_for(drive.runs, 1)
    for _ in range(3):
        time.sleep(dice.random() * 0.2)
        driver.kill()
        driver.communicate()
        (run,) = drive.runs()
        told = (run / "trials.jsonl").read_bytes()
        assert told.startswith(kept)
        kept = told[: told.rfind(b"\n") + 1]
        driver = drive("resume", run, TOY_SLEEP="0.03")
        time.sleep(0.6)
    out, _ = driver.communicate(timeout=40)
    assert driver.returncode == 0, out
    assert (run / "trials.jsonl").read_bytes().startswith(kept)
    judged = lines(run, "ok", "infeasible", "failed")
    assert len({line["identity"] for line in judged}) == len(judged) == 20
    assert len(lines(run, rung="confirm")) == 4
    calls = drive.log.read_text().splitlines()
    assert len(calls) - len(set(calls)) <= 3  # what was in flight when the driver died, and nothing else


def test_nothing_is_lost_or_repeated_when_a_driver_on_ray_is_killed(drive, lines):
    driver = drive("run", "workers=ray", "ray.cpus=2", TOY_SLEEP="0.1")
    wait_for(drive.runs, 4)
    driver.kill()
    driver.communicate()
    (run,) = drive.runs()
    kept = (run / "trials.jsonl").read_bytes()
    driver = drive("resume", run)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, out
    assert (run / "trials.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    judged = lines(run, "ok", "infeasible", "failed")
    assert len({line["identity"] for line in judged}) == len(judged) == 20


@pytest.mark.parametrize(
    ("workers", "number"), [("serial", signal.SIGINT), ("serial", signal.SIGTERM), ("ray", signal.SIGINT)]
)
def test_an_interrupted_study_stops_cleanly_and_says_how_to_go_on(drive, workers, number):
    driver = drive("run", f"workers={workers}", "ray.cpus=2", TOY_SLEEP="0.2")
    wait_for(drive.runs, 2)
    os.killpg(driver.pid, number)  # as a terminal does
    out, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130, out
    assert f"mist resume {drive.runs()[0]}" in out and "Traceback" not in out
