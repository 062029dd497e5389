"""Earliest deadline first, with prompt chunks cut to what the decodes' TPOT limits leave."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from mist.errors import InputError
from mist.policy import DECODES, Decision, EngineView, Grant, Preempt
from mist.request import Request
from mist.schedulers.memory import youngest_give_way
from mist.units import Seconds

Chunks = tuple[tuple[int, int], ...]  # (tokens, tokens cached before them) of each


@dataclass(frozen=True)
class SLOAware:
    """Every step carries all decodes; prompts share the rest of it, the one whose first token is due first ahead.

    A request's first token is due at its arrival plus its class's TTFT limit: earliest deadline first (Liu and
    Layland, JACM 20(1), 1973), in line and among prompts begun, so that an urgent prompt overtakes a long one
    between two chunks of it. Token k after the first is due at the first token's time plus k TPOT limits: no
    chunk may make the step last, by the engine's own step model, until some decoding request's next token is
    late (dynamic chunking by slack: Niyama, arXiv:2503.22562, section 3; token allocation under several SLOs:
    SLOs-Serve, arXiv:2504.08784; decodes are never left out: Sarathi-Serve, arXiv:2403.02310). Of the first
    prompt ``least_chunk`` tokens go through whatever they do, or prompts would starve beside decodes that are
    behind. Deadlines alone make everybody late once some must be (the domino effect of EDF), so a prompt's is put
    off by ``patience`` a token: where not all can be served in time, the few long ones are late (hybrid
    prioritisation, Niyama, section 3). Without limits it is chunked prefill, first come, first served.
    """

    token_budget: int = 8192
    max_running: int = 256
    long_prefill_threshold: int = 0  # tokens; 0 is none
    least_chunk: int = 256  # tokens
    patience: Seconds = 0.0  # per token

    def __post_init__(self) -> None:
        for field in ("max_running", "least_chunk"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.token_budget <= self.max_running:
            # a full batch of decodes would leave prompts nothing, for ever
            raise InputError("token_budget", self.token_budget, f"must exceed max_running ({self.max_running})")
        if self.long_prefill_threshold < 0:
            raise InputError("long_prefill_threshold", self.long_prefill_threshold, "must not be negative")
        if self.patience < 0:
            raise InputError("patience", self.patience, "must not be negative")

    def place(self, request: Request) -> float:
        """The deadline of the first token, later by the prompt's length; requests without one come last."""
        return request.deadline + self.patience * request.known

    def schedule(self, view: EngineView) -> Iterator[Decision]:
        yield from youngest_give_way(view)
        due = next_due(view)
        budget = self.token_budget - view.decoding
        yield DECODES
        chunks: Chunks = ()
        begun = sorted(view.prefilling, key=self._urgency, reverse=True)
        while budget:
            head = self._admissible(view)
            newcomer = head is not None and (not begun or self._urgency(head) < self._urgency(begun[-1]))
            request = head if newcomer else begun.pop() if begun else None
            if request is None:
                return
            past = view.hit(request) if newcomer else request.computed
            tokens = self._chunk(view, request, chunks, past, budget, due)
            if not tokens:
                return
            while view.need(request, past + tokens) > view.free:
                victim = view.youngest
                yield Preempt(victim)
                if victim is request:
                    return
                begun = [prompt for prompt in begun if prompt is not victim]
            yield Grant(request, tokens)
            chunks += ((tokens, past),)
            budget -= tokens

    def _urgency(self, request: Request) -> tuple[float, float, int]:
        return self.place(request), request.arrived, request.id

    def _admissible(self, view: EngineView) -> Request | None:
        """The head of the line, if its whole known sequence fits; a step that preempts admits nobody."""
        head = view.head
        if head is None or view.preempted or len(view.running) >= self.max_running:
            return None
        return head if view.need(head, head.known) <= view.free else None

    def _chunk(  # noqa: PLR0917
        self, view: EngineView, request: Request, before: Chunks, past: int, budget: int, due: float
    ) -> int:
        """The most tokens of this prompt that let every decoding request have its next token when it is due."""
        pending = request.known - past
        most = view.chunk(request, min(pending, self.long_prefill_threshold or pending, budget))
        least = 0 if before or not most else _least(view, request, min(most, self.least_chunk))

        def time(tokens: int) -> float:
            return view.step_time((*before, (tokens, past)), request)

        allowed = due - view.now
        if allowed == inf or time(most) <= allowed:
            return most
        return view.chunk(request, least + bisect_right(range(least + 1, most + 1), allowed, key=time))


def _least(view: EngineView, request: Request, tokens: int) -> int:
    """As many tokens, or as few more as a step can take."""
    while not view.chunk(request, tokens):
        tokens *= 2
    return tokens


def next_due(view: EngineView) -> float:
    """When the first of the decoding requests' next tokens is due, seconds; endless without TPOT limits."""
    return min(
        (
            request.first_token + (view.cached(request) - request.input + 1) * request.kind.tpot
            for request in view.running
            if request.joined >= 0 and request.kind.tpot < inf
        ),
        default=inf,
    )
