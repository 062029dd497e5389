"""Continuous batching, prefill first: whole prompts in steps of their own, ahead of decodes."""

from collections.abc import Iterator
from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView
from mist.schedulers.memory import whole_prompts, youngest_give_way


@dataclass(frozen=True)
class Continuous:
    """Iteration-level batching (Orca, OSDI 2022, section 3.1) in the order of vLLM V0.

    As long as the head of the line fits, a step holds whole prompts only, up to ``token_budget`` tokens
    (a longer prompt goes alone); otherwise every decoding request gets a token.
    """

    token_budget: int = 8192
    max_running: int = 256

    def __post_init__(self) -> None:
        for field in ("token_budget", "max_running"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        alone = True
        for prompt in whole_prompts(view, self.token_budget, self.max_running - len(view.running)):
            alone = False
            yield prompt
        if alone:
            yield from youngest_give_way(view)
            yield DECODES
