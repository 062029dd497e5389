"""MIST schedules as vLLM V1 does, step for step, on decisions recorded from the unmodified scheduler.

Every ``*.jsonl`` and ``*.jsonl.gz`` under ``$MIST_DATA/vllm_scheduler`` is replayed with its own settings.
"""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "recorded"
DATA = Path(os.environ["MIST_DATA"], "vllm_scheduler") if "MIST_DATA" in os.environ else None


def recordings(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield from sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")])


RECORDINGS = [*recordings(HERE), *recordings(DATA)]


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        head = json.loads(next(lines))
        return head, [json.loads(line) for line in lines if line.strip()]


COMPARED = ("i", "t_ns", "dt_ns", "tok", "ctx", "s", "nr", "nw", "free", "cached")
each_recording = pytest.mark.parametrize(
    "path",
    RECORDINGS,
    ids=lambda path: f"{path.parent.name}-{path.name.partition('.')[0]}",
)


@each_recording
def test_every_recorded_step_is_reproduced(path: Path, replay) -> None:
    head, recorded = read(path)
    run = replay(head["settings"], head["requests"], leap=False)
    for mine, theirs in zip(run.steps, recorded, strict=False):
        expected = {key: theirs[key] for key in COMPARED if key in theirs}
        assert {key: mine[key] for key in expected} == expected
        assert sorted(mine["fin"]) == sorted(theirs.get("fin", []))
        assert mine["run"] == theirs.get("run", [request for request, _ in theirs.get("s", [])])
        assert mine["pre"] == theirs.get("pre", [])
        assert mine["hits"] == sorted(theirs.get("new", []) + theirs.get("res", []))
    assert len(run.steps) >= len(recorded)
    if "excerpt" not in head:
        assert len(run.steps) == len(recorded)
        assert run.client.preemptions == head["summary"]["preemptions"]


@pytest.mark.parametrize("leap", [False, True], ids=["stepped", "leapt"])
@each_recording
def test_every_token_comes_at_its_nanosecond(path: Path, leap: bool, replay) -> None:
    head, _ = read(path)
    run = replay(head["settings"], head["requests"], leap=leap)
    end = head.get("end_ns", head["summary"]["end_ns"])
    for request, row in zip(run.requests, head["requests"], strict=True):
        for mine, theirs in ((request.first_token, row["first_token_ns"]), (request.finished, row["finish_ns"])):
            assert mine == theirs or theirs > end  # an excerpt lacks what arrived after its end
