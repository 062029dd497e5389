"""Static batching: a batch runs to its last token before the next one starts."""

from collections.abc import Iterator
from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView
from mist.schedulers.memory import whole_prompts, youngest_give_way


@dataclass(frozen=True)
class Static:
    """Request-level batching (the baseline of Orca, OSDI 2022, section 2).

    When the engine is empty it takes what waits, up to ``max_running`` requests and ``token_budget`` prompt
    tokens; nobody joins until all of them have finished. A request that ends early streams its last token
    at once, but its seat stays empty.
    """

    token_budget: int = 8192
    max_running: int = 32

    def __post_init__(self) -> None:
        for field in ("token_budget", "max_running"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        if view.running:
            yield from youngest_give_way(view)
            yield DECODES
        else:
            yield from whole_prompts(view, self.token_budget, self.max_running)
