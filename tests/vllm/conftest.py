"""One MIST client under the settings of a recording of vLLM's scheduler, and what it does in the recording's words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mist.clients.leaping import LeapingClient
from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.perf.base import StepShape, Stretch
from mist.request import Request
from mist.schedulers.vllm_v1 import VllmV1

# Settings that change decisions and that MIST knows only this value of: a recording with another is refused by name.
ONLY = {
    "async_scheduling": False,
    "num_lookahead_tokens": 0,
    "prefill_schedule_interval": 1,
    "long_prefill_token_threshold_adaptive": False,
}
# A setting that a recording does not name has vLLM 0.33's default.
DEFAULTS = {
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "long_prefill_token_threshold": 0,
    "policy": "fcfs",
    "scheduler_reserve_full_isl": True,
    "watermark": 0.0,
    "block_size": 16,
}


class Spied(LeapingClient):
    """With attributes of its own, for those who listen in."""


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
    session: int | str
    shared: int

    def key(self, block: int, block_tokens: int) -> tuple[str, int | str, int]:
        whole = (block + 1) * block_tokens <= self.shared
        return ("group", self.group, block) if whole else ("session", self.session, block)


def requests(rows: list[dict[str, Any]]) -> list[Request]:
    made = []
    for row in rows:
        # content that no row shares is the request's own
        whose = row.get("group", -1), row.get("session", f"request {row['id']}"), row.get("shared_prefix_tokens", 0)
        arrived, priority = row["arrival_us"] * 1000.0, row.get("priority", 0)
        tokens = row["prompt_tokens"], row["output_tokens"]
        made.append(Request(row["id"], arrived, *tokens, priority, Conversation(*whose)))
    return made


class Replay:
    """One client under the recorded settings; what it does, in the recording's own words."""

    def __init__(self, settings: dict[str, Any], rows: list[dict[str, Any]], *, leap: bool) -> None:
        others = {key: settings[key] for key, only in ONLY.items() if settings.get(key, only) != only}
        assert not others, f"recorded with {others}, MIST knows {ONLY}"
        settings = DEFAULTS | settings
        times = settings["step_time_ns"]
        self.kernel = Kernel()
        pool = PrefixPool if settings["enable_prefix_caching"] else BlockPool
        # one block is vLLM's null block
        self.kv = pool(settings.get("usable_blocks", settings["num_blocks"] - 1), settings["block_size"])
        self.client = Spied(
            self.kernel,
            "vllm",
            scheduler=VllmV1(
                token_budget=settings.get("max_num_scheduled_tokens") or settings["max_num_batched_tokens"],
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
        step["run"] = [request.id for request in client.running]
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


@pytest.fixture(scope="session")
def replay() -> Callable[..., Replay]:
    """replay(settings, request rows, leap=...): a client that has served them."""

    def run(settings: dict[str, Any], rows: list[dict[str, Any]], *, leap: bool) -> Replay:
        return Replay(settings, rows, leap=leap).run()

    return run
