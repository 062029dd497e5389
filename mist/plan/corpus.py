"""What searches find: documents that others find too."""

from collections.abc import Hashable
from dataclasses import dataclass

from mist.errors import InputError
from mist.plan.draws import Chance
from mist.workload.lengths import Lengths
from mist.workload.passages import by_popularity

Named = tuple[tuple[Hashable, int], ...]  # passages and the tokens of each


@dataclass(frozen=True)
class Corpus:
    """So many ``passages``, of which the r-th most popular is found in proportion to r^-``skew`` (Zipf).

    None is endless: nobody finds what another has found. Searches of one pipeline share a corpus of one ``name``.
    """

    passages: int | None = None
    skew: float = 0.0
    name: str = "documents"

    def __post_init__(self) -> None:
        if self.passages is not None and self.passages < 1:
            raise InputError("passages", self.passages, "must be at least 1, or null for a corpus without end")
        if self.skew < 0:
            raise InputError("skew", self.skew, "must not be negative")
        if self.skew and self.passages is None:
            raise InputError("skew", self.skew, "has no effect on a corpus without end (passages=null)")

    def find(self, place: str, pieces: int, tokens: Lengths, chance: Chance) -> Named:
        """What one request finds there: different passages, each as long as it always is; none of an endless corpus."""
        passages, skew = self.passages, self.skew
        if passages is None:
            return ()
        lengths = chance.draws.column(f"{self.name}.lengths", lambda _n, random: tokens.draw(passages, random))
        which = f"{place}.pieces"
        found = chance.draws.column(which, lambda n, random: by_popularity(n, pieces, passages, skew, random))
        return tuple([((self.name, name), lengths[name]) for name in found[chance.position]])


ENDLESS = Corpus()
