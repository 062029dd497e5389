"""What a policy sees and what it returns. A policy decides; only its client acts."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from mist.request import Request


class Step(NamedTuple):
    """One engine step: a token for every decoding request or not, and prompt chunks in order.

    A chunk of a waiting request admits it.
    """

    decode: bool
    chunks: Sequence[tuple[Request, int]] = ()  # (request, tokens)


class EngineView(Protocol):
    """What a scheduler may look at: a client between two steps."""

    @property
    def waiting(self) -> Collection[Request]:
        """Not admitted, first in line first."""

    @property
    def prefilling(self) -> Collection[Request]:
        """Admitted, prompt not finished, in admission order."""

    @property
    def decoding(self) -> int:
        """Requests past their prompt."""

    @property
    def preempted(self) -> int:
        """Requests put back for want of memory since the last step."""

    @property
    def room(self) -> int:
        """Free KV blocks once every decoding request has what its next token needs."""

    @property
    def free(self) -> int:
        """Free KV blocks now."""

    def shortfall(self, request: Request, tokens: int) -> int:
        """Blocks the request lacks to cache ``tokens`` more."""


class Scheduler(Protocol):
    """Which requests share the next step, and how many tokens each gets.

    ``token_budget`` bounds the tokens of one step, ``max_running`` the requests between admission and
    last token. A scheduler must not look past a head of line it does not admit: the client relies on it
    when it leaps over steps whose batch cannot change.
    """

    @property
    def token_budget(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    def next_step(self, view: EngineView) -> Step: ...


class Router(Protocol):
    """Which replica of a pool gets the request."""

    def choose(self, turn: int, outstanding: Sequence[int]) -> int:
        """A replica's index, given how many requests were routed before and each replica's unfinished ones."""
