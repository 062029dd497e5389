"""Admission of whole prompts, shared by the schedulers that do not chunk."""

from mist.policy import EngineView
from mist.request import Request


def whole_prompts(view: EngineView, token_budget: int, seats: int) -> list[tuple[Request, int]]:
    """The longest run from the head of the line that fits budget, seats and memory.

    A prompt longer than the budget goes alone. One block per decoding request stays free (vLLM V0 kept a
    watermark for the same reason), or the next decode step would evict what was just admitted.
    """
    prompts: list[tuple[Request, int]] = []
    budget, room = token_budget, view.free - view.decoding
    for request in view.waiting:
        tokens = request.pending
        blocks = view.shortfall(request, tokens + 1)
        if seats == 0 or blocks > room or (prompts and tokens > budget):
            break
        prompts.append((request, tokens))
        budget -= tokens
        room -= blocks
        seats -= 1
    return prompts
