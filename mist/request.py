"""A request: how far it has come, and when each stage happened."""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple, Protocol, runtime_checkable


class Stage(StrEnum):
    """The kinds of work a plan is made of; a plan may repeat them."""

    ROUTE = "route"  # which model serves it
    EMBED = "embed"  # text to vector
    RETRIEVE = "retrieve"  # vector to passages
    RERANK = "rerank"
    FETCH_KV = "fetch_kv"  # a stored KV cache
    PREFILL = "prefill"
    HANDOVER = "handover"  # KV from a prefill client to a decode client
    DECODE = "decode"
    SCORE = "score"  # a reward model's or a judge's verdict
    PROCESS = "process"  # anything else on a CPU: tokenising, parsing, a guardrail
    TOOL = "tool"  # an outside call
    TRANSFER = "transfer"  # bytes over a link


class Content(Protocol):
    """What the tokens of a request are, as far as another request may share them."""

    def key(self, block: int, block_tokens: int) -> Hashable:
        """Equal for two requests if and only if their tokens up to the end of this block are the same."""


class Passage(NamedTuple):
    """Part of a prompt that others may hold elsewhere: what it is, where it begins and how long it is, tokens."""

    name: Hashable
    begin: int
    tokens: int


@runtime_checkable
class Passaged(Protocol):
    """Content that says which passages it holds."""

    def passages(self) -> Sequence[Passage]:
        """In the order of the prompt."""


@runtime_checkable
class Keyed(Protocol):
    """Content that remembers its keys, for all the requests that hold it."""

    def keys(self, block_tokens: int) -> list[Hashable]:
        """Those made so far, from the first block on; whoever needs more puts them behind these."""


class RequestClass(NamedTuple):
    """What requests of one kind have in common: what they are called and what they were promised."""

    name: str = ""
    priority: int = 0  # smaller is served first, by policies that look at it
    ttft: float = inf  # s, limit on the time to the first token
    tpot: float = inf  # s, limit on the mean time of those after it


UNCLASSED: Final = RequestClass()


class Visit(NamedTuple):
    """One stage as it happened: queued, started and finished in seconds, and where."""

    stage: Stage
    place: str  # "llm/0": pool and replica, or the link
    queued: float
    started: float
    finished: float


class Request:
    """One user's question. ``computed`` of its ``known`` tokens have their KV cached; ``left`` are to sample."""

    __slots__ = (
        "aborted", "admitted", "arrived", "blocks", "computed", "content", "finished", "first_token", "id", "input",
        "joined", "keys", "kind", "known", "leaves", "left", "lost", "output", "preemptions", "priority", "queued",
        "refused", "replica", "retries", "started", "table", "visits",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        id: int,  # noqa: A002
        arrived: float,
        input: int,  # noqa: A002
        output: int,
        priority: int = 0,
        content: Content | None = None,
        kind: RequestClass = UNCLASSED,
    ) -> None:
        self.id = id  # position in the traffic; negative during warm-up
        self.arrived = arrived  # s
        self.input = input  # tokens
        self.output = output  # tokens
        self.known = input  # prompt and sampled tokens
        self.computed = 0  # tokens whose KV is cached
        self.left = output  # tokens still to sample
        self.priority = priority  # smaller is served first, by policies that look at it
        self.content = content  # what its tokens are, for prefix caching; None is like no other request's
        self.keys: list[Hashable] | None = None  # of its blocks' content, as far as they were asked for
        self.kind = kind  # its class
        self.blocks = 0  # KV blocks held
        self.table: list[int] = []  # which, in a pool that tells them apart
        self.admitted = 0  # ordinal of its last admission
        self.joined = -1  # decode step at which it joined the lockstep set; -1 outside it
        self.leaves = -1  # decode step at which it samples its last token
        self.preemptions = 0
        self.replica = -1  # of the pool it is in
        self.queued = arrived  # s, at the client it is with
        self.started = -1.0  # s, first step of the stage it is in; -1 before
        self.first_token = -1.0  # s; -1 before
        self.finished = -1.0  # s; -1 before
        self.refused = ""  # why, if it can never be served
        self.retries = 0  # times it was sent again after a replica failed
        self.aborted = False  # nobody waits for it any more
        self.lost = ""  # how, if it will never be answered
        self.visits: list[Visit] = []

    @property
    def pending(self) -> int:
        """Known tokens not yet in the cache."""
        return self.known - self.computed

    @property
    def deadline(self) -> float:
        """When its first token is due, seconds."""
        return self.arrived + self.kind.ttft

    @property
    def ttft(self) -> float:
        """Seconds from arrival to first token."""
        return self.first_token - self.arrived

    @property
    def tpot(self) -> float:
        """Mean seconds per token after the first; 0 for a one-token answer."""
        return (self.finished - self.first_token) / (self.output - 1) if self.output > 1 else 0.0

    @property
    def e2e(self) -> float:
        """Seconds from arrival to last token."""
        return self.finished - self.arrived
