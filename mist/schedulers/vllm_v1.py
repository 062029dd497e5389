"""The scheduler of vLLM V1, rule for rule."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView, Grant, Preempt
from mist.request import Request


@dataclass(frozen=True)
class VllmV1:
    """No prefill phase and no decode phase: a step is tokens by request (vLLM 0.33, ``v1/core/sched``, documentation
    "Optimization and Tuning").

    Running requests first, in admission order: each gets its known tokens not yet computed, cut by
    ``long_prefill_threshold`` (ignored while it is the only request) and by what is left of the budget. One
    that lacks blocks preempts the last of the list (priority policy: the largest (priority, arrival)) until
    it fits or has preempted itself. Then, unless somebody was preempted, the head of the line, again and
    again, until it does not fit: with ``reserve_full`` its whole known sequence must fit the free blocks,
    though only this step's are taken; ``watermark``, a share of all blocks, is kept free beside it if
    anything runs. Without ``chunked`` a waiting prompt that exceeds the budget left ends admission, and a
    request longer than the whole budget is refused, as vLLM then demands max_model_len <= max_num_batched_tokens.
    ``long_prefill_threshold`` is vLLM's resolved value: what --max-num-partial-prefills > 1 implied in older
    versions, 4 % of max_model_len, is to be given as tokens.
    """

    token_budget: int = 8192
    max_running: int = 256
    policy: Literal["fcfs", "priority"] = "fcfs"
    chunked: bool = True
    long_prefill_threshold: int = 0  # tokens; 0 is none
    reserve_full: bool = True
    watermark: float = 0.0

    def __post_init__(self) -> None:
        for field in ("token_budget", "max_running"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.long_prefill_threshold < 0:
            raise InputError("long_prefill_threshold", self.long_prefill_threshold, "must not be negative")
        if not 0 <= self.watermark < 1:
            raise InputError("watermark", self.watermark, "must lie in [0, 1)")

    @property
    def longest(self) -> float:
        """Most tokens of a request that the engine takes, prompt and answer; inf is no limit of its own."""
        return inf if self.chunked else self.token_budget

    def place(self, request: Request) -> int:
        """Priority classes under the priority policy; first come, first served otherwise."""
        return request.priority if self.policy == "priority" else 0

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        threshold = min(self.long_prefill_threshold or self.token_budget, self.token_budget)
        if len(view.running) + view.waiting == 1:
            threshold = self.token_budget
        budget = self.token_budget
        if self._decodes_come_first(view):
            yield DECODES
            budget -= view.decoding
            line = tuple(view.prefilling)
        else:
            line = tuple(view.running)
        granted: dict[int, int] = {}
        gone: set[int] = set()
        for request in line:
            if not budget:
                break
            if request.id in gone:
                continue
            tokens = view.chunk(request, min(view.pending(request), threshold, budget))
            if tokens == 0:
                continue
            while view.need(request, request.computed + tokens) > view.free:
                victim = self._victim(view)
                yield Preempt(victim)
                gone.add(victim.id)
                budget += granted.pop(victim.id, 0)
                if victim is request:
                    break
            else:
                yield Grant(request, tokens)
                granted[request.id] = tokens
                budget -= tokens
        if not view.preempted:
            yield from self._admissions(view, budget, threshold)

    def _admissions(self, view: EngineView, budget: int, threshold: int) -> Iterator[Grant]:
        while budget and len(view.running) < self.max_running and (head := view.head) is not None:
            hit = view.hit(head)
            tokens = min(head.known - hit, threshold)
            if tokens > budget and not self.chunked:
                return
            tokens = view.chunk(head, min(tokens, budget))
            if tokens == 0:
                return
            reserve = int(self.watermark * (view.blocks + 1)) if view.running else 0  # its null block counts
            if view.need(head, head.known if self.reserve_full else hit + tokens) + reserve > view.free:
                return
            yield Grant(head, tokens)
            budget -= tokens

    def _decodes_come_first(self, view: EngineView) -> bool:
        """Whether the list's decodes all get their token before any prompt gets a chunk."""
        if view.due > view.free or view.decoding > self.token_budget:
            return False
        return not view.prefilling or (len(view.prefilling) == 1 and view.youngest.joined < 0)

    def _victim(self, view: EngineView) -> Request:
        if self.policy == "fcfs":
            return view.youngest
        return max(view.running, key=lambda request: (request.priority, request.arrived))
