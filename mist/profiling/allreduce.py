"""All-reduce over the devices of one machine, a process each."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from math import inf
from typing import Any

from mist.profiling.device import torch
from mist.profiling.plan import MESSAGES

Row = tuple[int, int, float, bool]  # devices, elements, seconds, as a graph replays it

ROUNDS, SMALL_ROUNDS = 20, 100  # calls timed together
SMALL = 2**17  # elements: up to here it is latency that is measured
LARGEST = 2**28  # elements: 512 MiB of bfloat16


def allreduce(devices: int, kind: str = "cuda", messages: tuple[int, ...] = MESSAGES) -> list[Row]:
    """Seconds of a sum over ``devices`` by message size; ``kind`` is cuda (NCCL, RCCL) or cpu (gloo)."""
    multiprocessing = torch().multiprocessing
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    sizes = tuple(size for size in messages if size <= LARGEST)
    multiprocessing.spawn(_process, (devices, kind, sizes, _port(), queue), nprocs=devices)
    rows: list[Row] = queue.get()
    return rows


def _process(rank: int, devices: int, kind: str, messages: tuple[int, ...], port: int, queue: Any) -> None:  # noqa: PLR0917
    module = torch()
    distributed = module.distributed
    where = module.device(kind, rank) if kind == "cuda" else module.device("cpu")
    if kind == "cuda":
        module.cuda.set_device(where)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=devices,
        timeout=timedelta(minutes=2),
    )
    rows = [(devices, size, *_seconds(module, where, size)) for size in messages]
    if rank == 0:
        queue.put(rows)
    distributed.barrier()
    distributed.destroy_process_group()


def _seconds(module: Any, where: Any, size: int) -> tuple[float, bool]:
    """Of one sum, many back to back, and whether a CUDA graph replayed them, as engines do.

    On a GPU by events, so that neither the launch of the graph nor the waiting for its end is in the figure.
    """
    tensor, distributed = module.zeros(size, dtype=module.bfloat16, device=where), module.distributed
    rounds = SMALL_ROUNDS if size <= SMALL else ROUNDS

    def plain() -> None:
        for _ in range(rounds):
            distributed.all_reduce(tensor)

    plain()
    cuda = where.type == "cuda"
    graph = _captured(module, plain) if cuda else None
    best = inf
    for _ in range(3):
        distributed.barrier()
        best = min(best, _timed(module, graph or plain, cuda))
    return best / rounds, graph is not None


def _timed(module: Any, call: Callable[[], object], cuda: bool) -> float:
    if not cuda:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    module.cuda.synchronize()
    begin, end = (module.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _captured(module: Any, plain: Callable[[], None]) -> Callable[[], object] | None:
    """The calls as a graph; None where they cannot be captured.

    What NCCL's watchdog thread asks of its events must not end the capture, hence the mode of this thread only.
    """
    module.cuda.synchronize()
    graph = module.cuda.CUDAGraph()
    with suppress(RuntimeError):
        with module.cuda.graph(graph, capture_error_mode="thread_local"):
            plain()
        replay: Callable[[], object] = graph.replay
        return replay
    module.cuda.synchronize()
    return None


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
