"""Mixed batching: whole prompts beside decodes in one step."""

from collections.abc import Iterator
from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView
from mist.schedulers.memory import whole_prompts, youngest_give_way


@dataclass(frozen=True)
class Mixed:
    """Every step carries all decodes and as many whole prompts as the rest of the token budget holds.

    Iteration-level scheduling with selective batching (Orca, OSDI 2022, section 3), the hybrid batches without
    chunks that Sarathi-Serve is measured against (arXiv:2403.02310, section 3). A prompt longer than the
    rest of the budget waits until it is the only one, and then goes whole, so that a long prompt holds up every
    decode beside it. A step that preempts admits nobody.
    """

    token_budget: int = 2048
    max_running: int = 256

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InputError("max_running", self.max_running, "must be at least 1")
        if self.token_budget <= self.max_running:
            # a full batch of decodes would leave prompts nothing, for ever
            raise InputError("token_budget", self.token_budget, f"must exceed max_running ({self.max_running})")

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        yield from youngest_give_way(view)
        budget = self.token_budget - view.decoding
        yield DECODES
        if not view.preempted:
            yield from whole_prompts(view, budget, self.max_running - len(view.running))
