"""Memory decisions that several schedulers share."""

from collections.abc import Iterator

from mist.policy import EngineView, Grant, Preempt


def youngest_give_way(view: EngineView) -> Iterator[Preempt]:
    """Preempt, last admitted first, until every decoding request can have its next block: they have least to redo."""
    while view.due > view.free:
        yield Preempt(view.youngest)


def whole_prompts(view: EngineView, token_budget: int, seats: int) -> Iterator[Grant]:
    """Prompts from the head of the line while budget, seats and memory last; one longer than the budget goes alone.

    A block for each decoding request stays free, or the next decode step would evict what was just admitted
    (vLLM V0 kept a watermark for the same reason).
    """
    budget = token_budget
    while seats > 0 and (request := view.head) is not None:
        tokens = request.known - view.hit(request)
        if view.need(request, request.known + 1) > view.free - view.decoding:
            return
        if tokens > budget and budget < token_budget:
            return
        yield Grant(request, tokens)
        budget -= tokens
        seats -= 1
