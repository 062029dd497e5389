"""MIST schedules as vLLM V1 does, step for step, on decisions recorded from the unmodified scheduler."""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.perf.base import StepShape, Stretch
from mist.request import Request
from mist.schedulers.vllm_v1 import VllmV1

HERE = Path(__file__).parent / "recorded"
DATA = Path(os.environ["MIST_DATA"], "vllm_scheduler") if "MIST_DATA" in os.environ else None
RECORDINGS = sorted(HERE.glob("*.jsonl.gz")) + (sorted(DATA.glob("*.jsonl.gz")) if DATA else [])


@dataclass(frozen=True)
class RecordedTimes:
    """The recording's own step time, in nanoseconds: the clock counts whole ones, so sums are exact."""

    base: float
    per_token: float
    per_context: float
    leap: bool

    def step_time(self, shape: StepShape) -> float:
        context = shape.context + sum(past for _, past in shape.chunks)
        return self.base + self.per_token * shape.tokens + self.per_context * context

    def decode_stretch(self, decodes: int, context: int) -> Stretch:
        steps = 1 << 40 if self.leap else 1
        return Stretch(steps, self.step_time(StepShape(decodes, context)), self.per_context * decodes)


@dataclass(frozen=True)
class Conversation:
    """Tokens below ``shared`` are the group's stream, the others the session's."""

    group: int
    session: int
    shared: int

    def key(self, block: int, block_tokens: int) -> tuple[str, int, int]:
        whole = (block + 1) * block_tokens <= self.shared
        return ("group", self.group, block) if whole else ("session", self.session, block)


def requests(rows: list[dict[str, Any]]) -> list[Request]:
    made = []
    for row in rows:
        content = Conversation(row["group"], row["session"], row["shared_prefix_tokens"]) if "group" in row else None
        arrived = row["arrival_us"] * 1000.0
        made.append(Request(row["id"], arrived, row["prompt_tokens"], row["output_tokens"], row["priority"], content))
    return made


class Replay:
    """One client under the recorded settings; what it does, in the recording's own words."""

    def __init__(self, settings: dict[str, Any], rows: list[dict[str, Any]], *, leap: bool) -> None:
        times = settings["step_time_ns"]
        self.kernel = Kernel()
        pool = PrefixPool if settings["enable_prefix_caching"] else BlockPool
        self.kv = pool(settings["usable_blocks"], settings["block_size"])
        self.client = LLMClient(
            self.kernel,
            "vllm",
            scheduler=VllmV1(
                token_budget=settings["max_num_batched_tokens"],
                max_running=settings["max_num_seqs"],
                policy=settings["policy"],
                chunked=settings["enable_chunked_prefill"],
                long_prefill_threshold=settings["long_prefill_token_threshold"],
                reserve_full=settings["scheduler_reserve_full_isl"],
                watermark=settings["watermark"],
            ),
            steptimes=RecordedTimes(times["base"], times["per_scheduled_token"], times["per_context_token"], leap),
            kv=self.kv,
            finished=lambda request: self.ended.append(request.id),
        )
        self.client.watch = self.watch
        self.steps: list[dict[str, Any]] = []
        self.preempted: list[list[int]] = []
        self.admitted: list[list[int]] = []
        self.spy()
        self.ended: list[int] = []
        self.requests = requests(rows)
        for request in self.requests:
            self.kernel.at(request.arrived, self.client.submit, request)

    def spy(self) -> None:
        """Note what a step line tells of preemptions and hits."""
        client, preempt, admit = self.client, self.client._preempt, self.client._admit

        def noted_preempt(request: Request) -> None:
            joined = request.joined >= 0
            self.preempted.append([request.id, client.decodes.computed(request) if joined else request.computed])
            preempt(request)

        def noted_admit(request: Request) -> None:
            admit(request)
            self.admitted.append([request.id, request.computed])

        client._preempt, client._admit = noted_preempt, noted_admit  # type: ignore[method-assign]

    def watch(self, client: LLMClient, time: float) -> None:
        self.close()
        step: dict[str, Any] = {"i": len(self.steps), "t_ns": int(client.now), "dt_ns": int(time)}
        scheduled, context = [], 0
        for request in client.running:
            if request.id in client.granted:
                tokens = client.granted[request.id].tokens
            elif request.joined >= 0:
                tokens = 1
            else:
                continue
            scheduled.append([request.id, tokens])
            context += client.decodes.computed(request) if request.joined >= 0 else request.computed
        step |= {"tok": sum(tokens for _, tokens in scheduled), "ctx": context, "s": scheduled}
        step |= {"pre": self.preempted, "hits": sorted(self.admitted)}
        self.preempted, self.admitted = [], []
        step |= {"nr": len(client.running), "nw": client.waiting, "free": self.kv.free}
        if isinstance(self.kv, PrefixPool):
            step["cached"] = self.kv.contents
        self.steps.append(step)

    def close(self) -> None:
        """What stands at the end of the step before."""
        if self.steps:
            self.steps[-1]["fin"] = self.ended
            self.ended = []

    def run(self) -> "Replay":
        self.kernel.run()
        self.close()
        return self


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with gzip.open(path, "rt") as lines:
        head = json.loads(next(lines))
        return head, [json.loads(line) for line in lines if line.strip()]


COMPARED = ("i", "t_ns", "dt_ns", "tok", "ctx", "s", "nr", "nw", "free", "cached")
each_recording = pytest.mark.parametrize(
    "path",
    RECORDINGS,
    ids=lambda path: f"{path.parent.name}-{path.name.partition('_seed')[0].removesuffix('.jsonl.gz')}",
)


@each_recording
def test_every_recorded_step_is_reproduced(path: Path) -> None:
    head, recorded = read(path)
    replay = Replay(head["settings"], head["requests"], leap=False).run()
    for mine, theirs in zip(replay.steps, recorded, strict=False):
        expected = {key: theirs[key] for key in COMPARED if key in theirs}
        assert {key: mine[key] for key in expected} == expected
        assert sorted(mine["fin"]) == sorted(theirs.get("fin", []))
        assert mine["pre"] == theirs.get("pre", [])
        assert mine["hits"] == sorted(theirs.get("new", []) + theirs.get("res", []))
    assert len(replay.steps) >= len(recorded)
    if "excerpt" not in head:
        assert len(replay.steps) == len(recorded)
        assert replay.client.preemptions == head["summary"]["preemptions"]


@pytest.mark.parametrize("leap", [False, True], ids=["stepped", "leapt"])
@each_recording
def test_every_token_comes_at_its_nanosecond(path: Path, leap: bool) -> None:
    head, _ = read(path)
    replay = Replay(head["settings"], head["requests"], leap=leap).run()
    end = head.get("end_ns", head["summary"]["end_ns"])
    for request, row in zip(replay.requests, head["requests"], strict=True):
        for mine, theirs in ((request.first_token, row["first_token_ns"]), (request.finished, row["finish_ns"])):
            assert mine == theirs or theirs > end  # an excerpt lacks what arrived after its end
