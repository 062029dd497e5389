"""A plan: what one request does, one step after another, every chance in it drawn."""

from collections.abc import Hashable
from typing import Literal, NamedTuple

from mist.request import Stage

Carries = Literal["one", "all", "none"]


class Generating(NamedTuple):
    """One generation by a model: the whole context is its prompt, unless it has one of its own."""

    place: str  # address in the pipeline, repetitions counted: "rounds.2.call"
    pool: str | None  # the service; None is the only one
    instruction: int  # tokens put behind the prompt
    prompt: int | None  # tokens of a prompt of its own
    output: int | None  # tokens; None is the request's own answer
    keeps: bool  # instruction and output stay in the context
    streams: bool  # shown as it is written, if it is what the user reads


class Serving(NamedTuple):
    """One visit to a station."""

    place: str
    kind: Stage
    station: str
    items: int  # to work on: queries, passages, answers
    tokens: int | None  # of each; None is the whole context
    seconds: float | None  # where no model says how long it takes
    added: int  # tokens by which the context grows
    found: tuple[tuple[Hashable, int], ...] = ()  # passages among those, by name, and tokens of each


class Sending(NamedTuple):
    """Bytes over a link."""

    place: str
    link: str
    size: float  # bytes
    per_token: float  # further bytes for each token of the context


class Forking(NamedTuple):
    """Branches side by side; the plan goes on when ``needs`` of them have ended."""

    place: str
    branches: tuple["Steps", ...]
    needs: int
    carries: Carries  # whose tokens go on in the context
    share: float  # in [0, 1), which of those ended is the one that goes on
    aborts: bool = False  # the branches that are not waited for

    def winner(self, ended: int) -> int:
        """Of so many that ended, the one that goes on."""
        return int(self.share * ended)


Step = Generating | Serving | Sending | Forking
Steps = tuple[Step, ...]


def answering(steps: Steps) -> int:
    """The last generation outside all branches, which is the one that the user reads; -1 where there is none."""
    return max((index for index, step in enumerate(steps) if type(step) is Generating), default=-1)


def generates(steps: Steps) -> bool:
    """Whether any model writes anything."""
    return any(
        type(step) is Generating or (type(step) is Forking and any(map(generates, step.branches))) for step in steps
    )
