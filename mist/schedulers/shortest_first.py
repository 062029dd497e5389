"""Shortest prompt first, with an age bound, by chunked prefill."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.request import Request
from mist.schedulers.chunked_prefill import ChunkedPrefill


@dataclass(frozen=True)
class ShortestFirst(ChunkedPrefill):
    """Chunked prefill whose line is sorted by the prompt, which is known, and not by the answer, which is not.

    Shortest job first minimises the mean wait (Smith, Naval Research Logistics Quarterly 3, 1956), and starves
    the long. So a request gains ``aging`` tokens for every second it waits (a delay-dependent priority,
    Kleinrock, Naval Research Logistics Quarterly 11, 1964): a prompt of p tokens is overtaken only by requests
    that arrive less than p / ``aging`` seconds after it. 0 is plain shortest first. Prompts once begun are not
    interrupted; a preempted request comes back with what it had sampled as part of its prompt.
    """

    aging: float = 0.0  # tokens/s

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aging < 0:
            raise InputError("aging", self.aging, "must not be negative")

    def place(self, request: Request) -> float:
        """Tokens to compute, each second of later arrival counting as ``aging`` more: the order among those that
        wait never changes as time goes by."""
        return request.known + self.aging * request.arrived
