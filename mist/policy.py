"""What a policy sees and what it decides. A policy decides; only its client acts."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from mist.request import Request


class Grant(NamedTuple):
    """Tokens of the next step for one request; a grant to the head of the line admits it."""

    request: Request
    tokens: int


class Preempt(NamedTuple):
    """Take this request's memory; it goes back to the line and recomputes later."""

    request: Request


class Decodes(NamedTuple):
    """One token of the next step for every decoding request."""


DECODES: Final = Decodes()

Decision = Grant | Preempt | Decodes


class EngineView(Protocol):
    """What a scheduler may look at: a client between two steps, with every decision so far carried out."""

    @property
    def now(self) -> float:
        """Seconds."""

    @property
    def head(self) -> Request | None:
        """First in line, not admitted."""

    @property
    def waiting(self) -> int:
        """Requests in line."""

    @property
    def running(self) -> Collection[Request]:
        """Admitted requests, in admission order."""

    @property
    def youngest(self) -> Request:
        """The request admitted last."""

    @property
    def prefilling(self) -> Collection[Request]:
        """Running requests with more than their last token to compute, in admission order."""

    @property
    def decoding(self) -> int:
        """Tokens of one decode step: the running requests that compute their last token next, times one token each,
        or one and its drafts under speculation."""

    @property
    def due(self) -> int:
        """Blocks the decoding requests need for those tokens."""

    @property
    def preempted(self) -> int:
        """Requests preempted for the step being made."""

    @property
    def blocks(self) -> int:
        """All KV blocks that requests can use."""

    @property
    def free(self) -> int:
        """Free KV blocks, after what was granted for the step being made."""

    def pending(self, request: Request) -> int:
        """Known tokens of a running request that are not in the cache."""

    def hit(self, request: Request) -> int:
        """Tokens of a waiting request that the prefix cache holds."""

    def chunk(self, request: Request, tokens: int) -> int:
        """The most that a step can take of a request's next ``tokens`` tokens; none where it can take no part of them.

        Fewer than all for a hybrid model whose prefixes are cached: what it keeps, it keeps where chunks end.
        """

    def cached(self, request: Request) -> int:
        """Tokens of a running request that are in the cache."""

    def step_time(self, chunks: tuple[tuple[int, int], ...], last: Request) -> float:
        """Predicted seconds of a step of every decoding request and these prompt chunks (tokens, cached before).

        All but the ``last`` one's were granted.
        """

    def need(self, request: Request, tokens: int) -> int:
        """Free blocks it takes for the request's first ``tokens`` tokens to be in the cache."""

    @property
    def pledged(self) -> int:
        """Blocks that the running requests will hold when they leave the client, together; costs O(running)."""

    def pledge(self, request: Request) -> int:
        """Blocks that one request will hold then."""


class Scheduler(Protocol):
    """Who shares the next step, and how many tokens each gets.

    ``token_budget`` bounds the tokens of one step, ``max_running`` the requests between admission and last
    token. Decisions are carried out one by one as they are made, so the view is always current. A scheduler
    looks no further than the head of the line, and what it decides must depend on nothing but the view: a
    client leaps over steps in which the view cannot change.
    """

    @property
    def token_budget(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    def schedule(self, view: EngineView) -> Iterator[Decision]: ...


@runtime_checkable
class Ranked(Protocol):
    """A scheduler that orders the line itself; the others serve first come, first served."""

    def place(self, request: Request) -> Any:
        """What sorts the line, smallest first; ties go by arrival, then id."""


class RouteView(Protocol):
    """What a router may look at: a request, and the replicas it may go to, which are up, in ascending order.

    A sequence has one value for each of them. What is a call costs something, and nothing where it is not made.
    """

    @property
    def turn(self) -> int:
        """Requests routed before."""

    @property
    def request(self) -> Request:
        """Who is to be sent somewhere."""

    @property
    def replicas(self) -> Sequence[int]:
        """Their numbers in the pool, which stay theirs while others come and go."""

    @property
    def outstanding(self) -> Sequence[int]:
        """Unfinished requests."""

    @property
    def session(self) -> Hashable:
        """Equal for the requests of one session; a request without one is its own."""

    def tokens(self) -> Sequence[int]:
        """Outstanding tokens: those still to be computed of known ones, and those whose KV is held."""

    def cached(self) -> Sequence[int]:
        """Tokens of the request that the replica's prefix cache holds."""

    def ttft(self) -> Sequence[float]:
        """Predicted seconds until the first token of the request."""

    def chance(self) -> float:
        """A random number in [0, 1), from the pool's own stream."""


class Router(Protocol):
    """Which replica of a pool gets the request."""

    def choose(self, view: RouteView) -> int:
        """A place in the view's sequences."""


class PoolView(NamedTuple):
    """What an autoscaler looks at: a pool, and how the interval since the last look went."""

    replicas: int  # ordered and not given up: up, starting, failed
    up: int
    waiting: int  # requests that no engine has admitted
    running: int  # requests that engines have admitted
    memory: float  # share of the KV blocks of the replicas that are up, in use now
    busy: float  # share of the interval they were stepping
    attainment: float | None  # share of the requests that ended in the interval within SLO; None if none ended


class Autoscaler(Protocol):
    """How many replicas a pool should have."""

    def replicas(self, view: PoolView) -> int:
        """Wanted now; the pool's bounds and its stabilization are applied by who asks."""


class RoleView(NamedTuple):
    """One of two pools that trade replicas: what it has and what waits for it."""

    up: int
    waiting: int  # requests that no engine has admitted, hand-overs without room included


class RolePolicy(Protocol):
    """Which way a replica changes its role, if any."""

    def towards(self, prefill: RoleView, decode: RoleView) -> str:
        """``prefill`` or ``decode``, the role that gets one replica more, or nothing."""


class FetchView(Protocol):
    """What a fetch policy may look at: one request, whose prompt goes on in a tier beyond what the device holds."""

    @property
    def tokens(self) -> int:
        """What would be fetched."""

    def fetch_time(self) -> float:
        """Predicted seconds until all of it is here, with everything now in flight on its way."""

    def recompute_time(self) -> float:
        """Predicted seconds until the engine would have computed the prompt, less what the rest takes anyway."""


class FetchPolicy(Protocol):
    """Whether the stored part of a prompt is fetched or computed again."""

    def fetch(self, view: FetchView) -> bool:
        """True to fetch."""
