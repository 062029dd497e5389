"""Chunked prefill: decodes first, what is left of the token budget to prompts."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import EngineView, Step
from mist.request import Request


@dataclass(frozen=True)
class ChunkedPrefill:
    """Every step carries all decodes and fills up with prompt chunks (Sarathi-Serve, arXiv:2403.02310, section 4).

    Admission is first come, first served: the head of the line enters when its whole known sequence fits
    the free blocks, though only its chunk's are taken (vLLM V1, ``scheduler_reserve_full_isl``).
    """

    token_budget: int = 2048
    max_running: int = 256

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InputError("max_running", self.max_running, "must be at least 1")
        if self.token_budget <= self.max_running:
            # a full batch of decodes would leave prompts nothing, for ever
            raise InputError("token_budget", self.token_budget, f"must exceed max_running ({self.max_running})")

    def next_step(self, view: EngineView) -> Step:
        budget, room = self.token_budget - view.decoding, view.room
        chunks: list[tuple[Request, int]] = []
        for request in view.prefilling:
            tokens = min(request.pending, budget)
            blocks = view.shortfall(request, tokens)
            if tokens == 0 or blocks > room:
                return Step(True, chunks)
            chunks.append((request, tokens))
            budget -= tokens
            room -= blocks
        if view.preempted:  # a step that evicts admits nobody, or the two would chase each other
            return Step(True, chunks)
        seats = self.max_running - view.decoding - len(view.prefilling)
        for request in view.waiting:
            if seats == 0 or budget == 0 or view.shortfall(request, request.pending) > room:
                break
            tokens = min(request.pending, budget)
            chunks.append((request, tokens))
            budget -= tokens
            room -= view.shortfall(request, tokens)
            seats -= 1
        return Step(True, chunks)
