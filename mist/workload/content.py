"""What the tokens of a request are, as far as other requests may share them."""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mist.request import Content, Passage


class Contents(Protocol):
    """The content of one cycle's requests, in the arrays of the whole cycle."""

    def of(self, cycle: int, index: int) -> Content:
        """What request ``index`` of cycle ``cycle`` holds."""

    def every(self, keep: int, end: int) -> "Contents":
        """That of requests 0, keep, 2 keep, ... below ``end``."""


class PassageIds(NamedTuple):
    """Passages of recorded prompts, one after another; those of request i are ``ids[ends[i-1]:ends[i]]``."""

    ids: NDArray[np.int64]
    tokens: NDArray[np.int64]  # of each; 0 is not known
    ends: NDArray[np.int64]
    begins: NDArray[np.int64]  # shape [n]: where in its prompt a request's first one begins, tokens

    def of(self, index: int) -> tuple[int, list[tuple[int, int]]]:
        """Where request ``index`` has its first passage, and ids and tokens of all."""
        part = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        return int(self.begins[index]), list(zip(self.ids[part].tolist(), self.tokens[part].tolist(), strict=True))

    def every(self, keep: int, end: int) -> "PassageIds":
        """Those of requests 0, keep, 2 keep, ... below ``end``."""
        parts = [np.arange(self.ends[i - 1] if i else 0, self.ends[i]) for i in range(0, end, keep)]
        kept, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
        return PassageIds(self.ids[kept], self.tokens[kept], ends, self.begins[:end:keep])


class HashedPrefix(NamedTuple):
    """A prompt known by chained hashes: id k stands for everything up to the end of hash block k.

    An engine block is shared if it ends within the prompt and within a hash block whose id is known; all after
    that, the answer too, is the request's own. A trace does not say which blocks its answers would have hashed
    to, so a later turn that contains this answer finds no more than the earlier prompt.
    """

    cycle: int
    request: int
    tokens: int  # of the prompt
    hash_tokens: int
    ids: tuple[int, ...]
    session: int | None = None
    reaches: tuple[int, ...] | None = None  # where each id ends, tokens; None is ``hash_tokens`` each
    parts: tuple[int, Sequence[tuple[int, int]]] = (0, ())  # where its passages begin; ids and tokens of each

    def passages(self) -> list[Passage]:
        """Those that lie whole within the prompt and whose length is known, in order."""
        found, begin = [], self.parts[0]
        for name, tokens in self.parts[1]:
            if begin + tokens > self.tokens:
                break
            if tokens:
                found.append(Passage((self.cycle, name), begin, tokens))
            begin += tokens
        return found

    @property
    def conversation(self) -> Hashable:
        """Equal for the requests of one session; None where the trace names none."""
        return None if self.session is None else (self.cycle, self.session)

    def key(self, block: int, block_tokens: int) -> Hashable:
        end = (block + 1) * block_tokens
        place = (end - 1) // self.hash_tokens if self.reaches is None else bisect_left(self.reaches, end)
        if end <= self.tokens and place < len(self.ids):
            return self.cycle, self.ids[place], block
        return self.cycle, self.request, block, "own"


@dataclass(frozen=True, eq=False)
class HashedBlocks:
    """Chained hash ids of prompts: those of request i are ``ids[ends[i-1]:ends[i]]``, ``hash_tokens`` tokens each.

    Where parts have lengths of their own, ``reaches`` (as long as ``ids``) is how many tokens of its prompt lie before
    the end of each. ``sessions`` (shape [n]) says who belongs together.

    A cycle is the recording played again, not the same users asking the same again: content of different
    cycles is distinct, or every round after the first would hit everything.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]
    inputs: NDArray[np.int64]
    hash_tokens: int = 512
    reaches: NDArray[np.int64] | None = None
    sessions: NDArray[np.int64] | None = None
    passages: PassageIds | None = None

    def __post_init__(self) -> None:
        if len(self.ends) != len(self.inputs) or (len(self.ends) and self.ends[-1] != len(self.ids)):
            raise ValueError(f"{len(self.inputs)} requests, {len(self.ends)} ends, {len(self.ids)} ids")

    def of(self, cycle: int, index: int) -> HashedPrefix:
        begin = int(self.ends[index - 1]) if index else 0
        part = slice(begin, int(self.ends[index]))
        ids = tuple(self.ids[part].tolist())
        session = None if self.sessions is None else int(self.sessions[index])
        reaches = None if self.reaches is None else tuple(self.reaches[part].tolist())
        told = (0, ()) if self.passages is None else self.passages.of(index)
        return HashedPrefix(cycle, index, int(self.inputs[index]), self.hash_tokens, ids, session, reaches, told)

    def every(self, keep: int, end: int) -> "HashedBlocks":
        parts = [np.arange(self.ends[i - 1] if i else 0, self.ends[i]) for i in range(0, end, keep)]
        kept, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
        reaches = None if self.reaches is None else self.reaches[kept]
        sessions = None if self.sessions is None else self.sessions[:end:keep]
        passages = None if self.passages is None else self.passages.every(keep, end)
        return HashedBlocks(self.ids[kept], ends, self.inputs[:end:keep], self.hash_tokens, reaches, sessions, passages)


class Turn(NamedTuple):
    """A prompt that begins with a system prompt and goes on with its session's history.

    The session is one stream of tokens, prompts and answers one after another, so a later turn's prompt
    contains the earlier turns whole. A block that reaches beyond the system prompt belongs to the session.
    """

    group: int  # whose system prompt
    system: int  # tokens of it
    cycle: int  # in which the session began
    session: int

    @property
    def conversation(self) -> Hashable:
        """Equal for the turns of one session."""
        return self.cycle, self.session

    def key(self, block: int, block_tokens: int) -> Hashable:
        if (block + 1) * block_tokens <= self.system:
            return self.group, block
        return self.cycle, self.session, block


@dataclass(frozen=True, eq=False)
class SessionTurns:
    """Request i is a turn of session ``sessions[i]``, which began ``rounds[i]`` cycles before this one.

    Sessions of different cycles are different; the ``groups`` system prompts, ``system`` tokens each, stay.
    """

    sessions: NDArray[np.int64]
    rounds: NDArray[np.int64]
    groups: int
    system: int

    def of(self, cycle: int, index: int) -> Turn:
        session = int(self.sessions[index])
        return Turn(session % self.groups, self.system, cycle - int(self.rounds[index]), session)

    def every(self, keep: int, end: int) -> "SessionTurns":
        return SessionTurns(self.sessions[:end:keep], self.rounds[:end:keep], self.groups, self.system)
