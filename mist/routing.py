"""What the replicas of a pool look like to its router."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from mist.clients.llm import LLMClient
from mist.memory.lookup import cached_prefixes
from mist.memory.prefix import PrefixPool
from mist.perf.base import StepModel, StepShape
from mist.request import Request


class Candidates:
    """The RouteView of a pool. ``turn``, ``request``, ``replicas`` and ``outstanding`` are set for every request.

    ``stages`` are the pool's step models, one per pipeline stage; ``chunk`` is the most prompt tokens of a step.
    """

    __slots__ = ("_chunk", "_clients", "_draw", "_stages", "_stream", "outstanding", "replicas", "request", "turn")

    def __init__(
        self,
        clients: Sequence[LLMClient],
        stages: Sequence[StepModel],
        chunk: int,
        stream: Callable[[], np.random.Generator],
    ) -> None:
        self._clients, self._stages, self._chunk, self._stream = clients, stages, chunk, stream
        self._draw: np.random.Generator | None = None
        self.turn = 0
        self.request: Request
        self.replicas: Sequence[int] = ()
        self.outstanding: Sequence[int] = ()

    @property
    def session(self) -> Hashable:
        session: Hashable = getattr(self.request.content, "conversation", None)
        return ("request", self.request.id) if session is None else session

    def tokens(self) -> list[int]:
        return [outstanding_tokens(self._clients[index]) for index in self.replicas]

    def cached(self) -> list[int]:
        pools = [self._clients[index].kv for index in self.replicas]
        if isinstance(pools[0], PrefixPool):
            for index in self.replicas:
                self._clients[index].catch_up()
        return cached_prefixes(pools, self.request)

    def ttft(self) -> list[float]:
        own = self.request.known - self.request.computed
        return [
            predicted_ttft(self._clients[index], self._stages, self._chunk, max(own - cached, 1), cached)
            for index, cached in zip(self.replicas, self.cached(), strict=True)
        ]

    def chance(self) -> float:
        if self._draw is None:
            self._draw = self._stream()
        return float(self._draw.random())


def lanes(client: LLMClient) -> Sequence[LLMClient]:
    """The batches in flight of an engine: one per pipeline stage."""
    return getattr(client, "lanes", (client,))


def backlog(client: LLMClient) -> int:
    """Known tokens still to be computed, of those in line and of admitted prompts."""
    return client.line.tokens + sum(r.known - r.computed for lane in lanes(client) for r in lane.prefilling)


def outstanding_tokens(client: LLMClient) -> int:
    """The backlog, tokens of hand-overs without room, and what the KV blocks in use can hold."""
    held = client.used_by_now * client.kv.block_tokens
    return backlog(client) + sum(lane.takeover.tokens for lane in lanes(client)) + held


def predicted_ttft(client: LLMClient, stages: Sequence[StepModel], chunk: int, own: int, cached: int) -> float:
    """Seconds until ``own`` more prompt tokens after ``cached`` ones are computed, behind the backlog.

    All of it in steps of ``chunk`` tokens that every decoding request joins; in a pipeline a full step passes at the
    pace of the slowest stage, the last one through all of them.
    """
    full, rest = divmod(backlog(client) + own, chunk)
    full, rest = (full, rest) if rest else (full - 1, chunk)
    batches = lanes(client)
    if len(batches) > 1:
        client.catch_up()
    decodes = sum(lane.decoding + len(lane.takeover) for lane in batches) // len(batches)
    context = sum(lane.context_by_now for lane in batches) // len(batches)
    last = sum(stage.step_time(StepShape(decodes, context, ((rest, cached),))) for stage in stages)
    if not full:
        return last
    return full * max(stage.step_time(StepShape(decodes, context, ((chunk, 0),))) for stage in stages) + last
