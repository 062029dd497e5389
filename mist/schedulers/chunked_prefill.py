"""Chunked prefill: decodes first, what is left of the token budget to prompts."""

from collections.abc import Iterator
from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView, Grant, Preempt
from mist.schedulers.memory import youngest_give_way


@dataclass(frozen=True)
class ChunkedPrefill:
    """Every step carries all decodes and fills up with prompt chunks (Sarathi-Serve, arXiv:2403.02310, section 4).

    Admission is first come, first served: the head of the line enters when its whole known sequence fits
    the free blocks, though only its chunk's are taken. A step that preempts admits nobody, or the two would
    chase each other. No chunk exceeds ``long_prefill_threshold`` tokens, so that short prompts get by a long one.
    """

    token_budget: int = 2048
    max_running: int = 256
    long_prefill_threshold: int = 0  # tokens; 0 is none

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InputError("max_running", self.max_running, "must be at least 1")
        if self.token_budget <= self.max_running:
            # a full batch of decodes would leave prompts nothing, for ever
            raise InputError("token_budget", self.token_budget, f"must exceed max_running ({self.max_running})")
        if self.long_prefill_threshold < 0:
            raise InputError("long_prefill_threshold", self.long_prefill_threshold, "must not be negative")

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        if view.due > view.free:
            yield from youngest_give_way(view)
        budget = self.token_budget - view.decoding
        longest = self.long_prefill_threshold or budget
        yield DECODES
        for request in tuple(view.prefilling):
            if view.preempted and request not in view.prefilling:
                return  # it gave way to one before it, and all behind it had to first
            if budget == 0:
                return
            tokens = view.chunk(request, min(request.pending, longest, budget))
            if tokens == 0:
                continue
            while view.need(request, request.computed + tokens) > view.free:
                victim = view.youngest
                yield Preempt(victim)
                if victim is request:
                    return
            yield Grant(request, tokens)
            budget -= tokens
        if view.preempted:
            return
        while budget and (head := view.head) is not None and len(view.running) < self.max_running:
            if view.need(head, head.known) > view.free:
                return
            tokens = view.chunk(head, min(head.known - view.hit(head), longest, budget))
            if tokens == 0:
                return
            yield Grant(head, tokens)
            budget -= tokens
