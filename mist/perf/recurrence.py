"""Linear attention: a state per sequence that every token updates, whatever the context."""

from typing import NamedTuple

from mist.model import ModelSpec
from mist.perf.base import Replica

CHUNK = 64  # tokens that the chunkwise form takes together: flash-linear-attention, chunk_gated_delta_rule
ACTIVATION = 2.0  # bytes per element


class Recurrence(NamedTuple):
    """Seconds on one device over all linear-attention layers of a stage."""

    state: float  # reading and writing the states of one sequence
    token: float  # one token of a prompt

    def prompt(self, tokens: int) -> float:
        """One prompt chunk; what was cached before it is in the state."""
        return self.state + tokens * self.token


def token_work(model: ModelSpec, devices: int) -> tuple[float, float]:
    """Operations and bytes of a prompt token in one layer, on one of ``devices`` that share it.

    The chunkwise form (Yang et al., arXiv:2412.06464, section 3.3): per token and value head 2 C (3 k + 2 v) operations
    within a chunk of C tokens and 6 k v between chunks, for heads of k and v elements.
    """
    key, value = model.linear_key_dim, model.linear_value_dim
    operations = model.linear_value_heads / devices * (2 * CHUNK * (3 * key + 2 * value) + 6 * key * value)
    moved = (model.linear_width + 2 * model.linear_value_heads * value) / devices * ACTIVATION
    return operations, moved


def recurrence(replica: Replica, flops: float, bandwidth: float) -> Recurrence:
    """At ``flops`` and ``bandwidth`` that are reached; zero without such layers.

    A token decoded reads and writes the state once; prompts take the chunkwise form.
    """
    model, tp = replica.model, replica.tp
    if not model.linear_layers:
        return Recurrence(0.0, 0.0)
    operations, moved = token_work(model, tp)
    each = max(operations / flops, moved / bandwidth)
    state = 2 * model.state_bytes_per_layer / tp / bandwidth
    return Recurrence(model.linear_layers * state, model.linear_layers * each)
