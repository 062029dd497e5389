"""What can go wrong, as a tree.

MistError
├── InputError            the user's: names field, value and choices; the command line exits 2
│   ├── ImpossibleLayout  a parallel degree the model cannot be cut into
│   ├── UnmeetableSLO     a limit below what one request alone needs
│   ├── OutsideProfile    a step that the user's step log does not cover
│   ├── TraceError        a trace file, with its line number
│   └── StaleRun          a run whose inputs have changed since it began
├── Infeasible            an answer, not a failure: the design fits nowhere, and why
├── DeadlineExceeded      a simulation ran past its wall-clock limit
└── CausalityError        a bug: something was asked to happen in the past
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

MANY, SHOWN = 40, 12  # of so many choices, only the first, which are the most likely ones


class MistError(Exception):
    """Everything MIST raises on purpose."""


class InputError(MistError):
    """One field of the user's input is wrong.

    The message reads ``field = value: why (valid: a, b, c)``; a close match is offered first.
    """

    def __init__(self, field: str, value: object, why: str, choices: Iterable[str] = ()) -> None:
        self.field, self.value, self.why = field, value, why
        self.choices = tuple(choices)
        super().__init__(field, value, why, self.choices)

    def __str__(self) -> str:
        text = f"{self.field} = {self.value}: {self.why}" if self.field else f"{self.value}: {self.why}"
        if not self.choices:
            return text
        # of a misspelt option it is the name that is like a choice, and a number is no misspelling
        words = [word for word in (self.value, self.field.rpartition(".")[2]) if isinstance(word, str)]
        words += [word.partition(".")[0] for word in words if "." in word]
        close = [match for word in words for match in get_close_matches(word, self.choices, n=1)]
        hint = f"; did you mean {close[0]}?" if close else ""
        shown = self.choices if len(self.choices) < MANY else self.choices[:SHOWN]
        more = f" and {len(self.choices) - len(shown)} more" if len(shown) < len(self.choices) else ""
        return f"{text}{hint} (valid: {', '.join(shown)}{more})"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, self.value, self.why, self.choices)


class ImpossibleLayout(InputError):
    """The model cannot be cut into this many parts."""


class UnmeetableSLO(InputError):
    """Even a request that is alone on the deployment misses the limit."""


class OutsideProfile(InputError):
    """A step lies outside what was measured, and nothing is extrapolated."""


class TraceError(InputError):
    """A trace is empty or malformed; the field is ``path:line``."""


class StaleRun(InputError):
    """An input of the run has changed since it began."""


class Infeasible(MistError):
    """The design fits nowhere; the message says why, with numbers."""


class DeadlineExceeded(MistError):
    """The simulation used more wall-clock time than it was given."""


class CausalityError(MistError):
    """An event was scheduled before the present instant: a bug in MIST."""


@contextmanager
def as_typed(pools: Collection[str]) -> Iterator[None]:
    """InputErrors raised inside name an address of the config as users type it.

    Without ``pools.``, and without the pool's name where it is the only one of ``pools``.
    """
    try:
        yield
    except InputError as error:
        parts = error.field.split(".")
        if parts[0] == "pools" and len(parts) > 1:
            parts = parts[1:]
            if len(pools) == 1 and parts[0] in pools and len(parts) > 1:
                parts = parts[1:]
            error.field = ".".join(parts)
        raise
