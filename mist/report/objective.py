"""What a sweep maximises, in words: all are within SLO, at capacity."""

from typing import NamedTuple


class Words(NamedTuple):
    """Of one objective."""

    unit: str  # "output tokens", of which so many per dollar
    short: str  # "tokens"


OBJECTIVES = {
    "tokens_per_dollar": Words("output tokens", "tokens"),
    "requests_per_dollar": Words("requests", "requests"),
    "input_tokens_per_dollar": Words("input tokens", "input tokens"),
}
