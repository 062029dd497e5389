"""A user's question whose answer takes a plan, and the generations that it is made of."""

from collections.abc import Hashable, Sequence

from mist.plan.steps import Forking, Generating, Steps, answering, generates
from mist.request import UNCLASSED, Content, Passage, Passaged, Request, RequestClass

BLOCK_BITS = 32  # of a key, for the block; the branch stands above them: whole numbers are quickly looked up


class Query(Request):
    """One user's question: the cursor's owner, never an engine's request itself.

    Its first token and its TPOT are those of the last generation outside all branches. Where there is none, as after
    a vote, or where it does not stream, the answer arrives whole at the end.
    """

    __slots__ = ("_whole", "answer", "answering", "asked", "generated", "prompted", "steps")

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
        self._whole = -1.0  # s
        self.answer: Request | None = None  # the generation that the user reads
        super().__init__(id, arrived, input, output, priority, content, kind)
        self.asked = output  # tokens of its own answer, wherever the plan has it written
        self.steps: Steps = ()
        self.answering = -1  # which step that generation is
        self.prompted = 0  # tokens of all its generations' prompts
        self.generated = 0  # tokens that all of them wrote

    def plan(self, steps: Steps) -> None:
        """What it will do; its output is what the user reads."""
        self.steps, self.answering = steps, answering(steps)
        last = steps[self.answering] if self.answering >= 0 else None
        if type(last) is Generating and last.output is not None:
            self.output = last.output
        elif last is None and not generates(steps):
            self.output = 0

    @property
    def first_token(self) -> float:
        return self._whole if self.answer is None else self.answer.first_token

    @first_token.setter
    def first_token(self, time: float) -> None:
        self._whole = time

    @property
    def tpot(self) -> float:
        return 0.0 if self.answer is None else self.answer.tpot


class Thread:
    """A place in a plan that moves on: the trunk's, or that of a branch of a fork."""

    __slots__ = ("at", "content", "context", "doing", "join", "number", "query", "steps", "stopped")

    def __init__(  # noqa: PLR0917
        self, query: Query, steps: Steps, context: int, content: "Grown", join: "Join | None" = None, number: int = 0
    ) -> None:
        self.query, self.steps, self.join = query, steps, join
        self.number = number  # of the branch
        self.at = 0  # the next step
        self.context = context  # tokens so far
        self.content = content  # what they are
        self.doing: Generation | Join | None = None  # what it waits for, of what can be called back
        self.stopped = False  # nobody waits for it any more


class Join:
    """Where branches meet: their thread goes on when enough of them have ended."""

    __slots__ = ("base", "branches", "ended", "step", "thread")

    def __init__(self, thread: Thread, step: Forking) -> None:
        self.thread, self.step = thread, step
        self.base = thread.context  # tokens where they parted
        self.branches: list[Thread] = []
        self.ended: list[Thread] = []  # in that order


class Generation(Request):
    """One generation of a query, as an engine sees it."""

    __slots__ = ("step", "thread")

    step: Generating
    thread: Thread


class Grown:
    """The tokens of a plan's context: up to ``tokens`` those of ``root``, from there on its own branch's.

    A later prompt of the same branch contains the earlier ones and what was written after them, and branches of a
    fork share all up to where they parted: this is what a prefix cache finds again. ``branch`` is a number that no
    other has.
    """

    __slots__ = ("_keys", "branch", "found", "root", "tokens")

    def __init__(self, root: Content | None, tokens: int, branch: int) -> None:
        self.root, self.tokens, self.branch = root, tokens, branch
        self._keys: dict[int, list[Hashable]] = {}
        self.found: list[Passage] = []  # after ``tokens``

    def key(self, block: int, block_tokens: int) -> Hashable:
        if self.root is not None and (block + 1) * block_tokens <= self.tokens:
            return self.root.key(block, block_tokens)
        return self.branch << BLOCK_BITS | block

    def keys(self, block_tokens: int) -> list[Hashable]:
        """The keys made so far; those in common with ``root`` are taken from there."""
        known = self._keys.get(block_tokens)
        if known is None:
            shared = self.root.keys(block_tokens) if isinstance(self.root, Grown) else []
            known = self._keys[block_tokens] = shared[: self.tokens // block_tokens]
        return known

    def passages(self) -> Sequence[Passage]:
        """Those in common with ``root``, and those found since."""
        before: Sequence[Passage] = self.root.passages() if isinstance(self.root, Passaged) else ()
        return [*(passage for passage in before if passage.begin + passage.tokens <= self.tokens), *self.found]

    def find(self, named: Sequence[tuple[Hashable, int]], begin: int) -> None:
        """Passages stand from ``begin`` on, one after another."""
        for name, tokens in named:
            self.found.append(Passage(name, begin, tokens))
            begin += tokens

    def forget_keys(self) -> None:
        """Nobody will ask for long; they can be made again."""
        self._keys.clear()
