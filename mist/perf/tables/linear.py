"""Linear attention (gated DeltaNet): convolution and state update, of whole prompts and of one token of a batch."""

from typing import NamedTuple

import numpy as np

from mist.model import ModelSpec
from mist.perf.base import Replica
from mist.perf.recurrence import recurrence
from mist.perf.tables.curve import Curve, Floats, through
from mist.perf.tables.files import MILLISECOND, Rows, System, rows
from mist.perf.tables.grid import Grid, prompt_grid

KERNELS = 2  # one after the other: convolution, scan


class Scan(NamedTuple):
    """Seconds of one of ``layers`` layers, without projections."""

    layers: int
    decode: Curve  # over sequences
    prompt: Grid  # by sequences and tokens of each


def linear_attention(system: System, replica: Replica, bandwidth: float, kernel_time: float) -> Scan:
    """As timed for these heads; analytical, and said to be so, where they were not."""
    model, tp = replica.model, replica.tp
    for path in system.newest("linear_attention", "gdn_perf"):
        found = rows(path, **_heads(model, tp))
        decode, prompt = found.which(phase="generation"), found.which(phase="context")
        if len(decode) and len(prompt):
            batches, _, seconds = _matrix(decode)
            return Scan(model.linear_layers, through(batches, seconds[:, 0]), _prompts(*_matrix(prompt)))
    return _modelled(replica, bandwidth, kernel_time)


def _prompts(batches: Floats, lengths: Floats, seconds: Floats) -> Grid:
    """Beyond what was timed in proportion, not with the square as attention."""
    grid = prompt_grid(batches, lengths, seconds)
    return grid._replace(lengths=grid.lengths[:-1], seconds=tuple(row[:-1] for row in grid.seconds))


def _heads(model: ModelSpec, tp: int) -> dict[str, object]:
    return {
        "num_k_heads": model.linear_key_heads // tp,
        "num_v_heads": model.linear_value_heads // tp,
        "head_k_dim": model.linear_key_dim,
        "head_v_dim": model.linear_value_dim,
        "d_conv": model.linear_convolution,
    }


def _matrix(found: Rows) -> tuple[Floats, Floats, Floats]:
    """Sequences, tokens of each, and the least seconds of every kernel summed; NaN where one was not timed.

    The same heads were timed for several models: the width of a model does not matter to these kernels.
    """
    batches, lengths = np.unique(found["batch_size"]), np.unique(found["seq_len"])
    whole = np.zeros((len(batches), len(lengths)))
    for kernel in np.unique(found["kernel_source"]):
        part = found.where(found["kernel_source"] == kernel)
        seconds = np.full(whole.shape, np.inf)
        place = np.searchsorted(batches, part["batch_size"]), np.searchsorted(lengths, part["seq_len"])
        np.minimum.at(seconds, place, part["latency"] * MILLISECOND)
        whole += seconds
    whole[np.isinf(whole)] = np.nan
    return batches.astype(float), lengths.astype(float), whole


def _modelled(replica: Replica, bandwidth: float, kernel_time: float) -> Scan:
    """Memory-bound, which the chunkwise form is beside the projections."""
    layers, once = replica.model.linear_layers, KERNELS * kernel_time
    state, token = (each / layers for each in recurrence(replica, np.inf, bandwidth))
    batches, lengths = np.array([1.0, 2.0, 4096.0]), np.array([1.0, 2.0**20])
    seconds = once + batches[:, None] * (state + token * lengths)
    decode = Curve((0.0, 1.0), (once, once + state), "analytical")
    return Scan(layers, decode, _prompts(batches, lengths, seconds)._replace(source="analytical"))
