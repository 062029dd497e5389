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

Row = tuple[int, int, float]  # devices, elements, seconds

ROUNDS = 20  # calls timed together
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
    rows = [(devices, size, _seconds(module, where, size)) for size in messages]
    if rank == 0:
        queue.put(rows)
    distributed.barrier()
    distributed.destroy_process_group()


def _seconds(module: Any, where: Any, size: int) -> float:
    """Of one sum, ROUNDS of them back to back; in a CUDA graph where one captures them, as engines replay them."""
    tensor, distributed = module.zeros(size, dtype=module.bfloat16, device=where), module.distributed

    def plain() -> None:
        for _ in range(ROUNDS):
            distributed.all_reduce(tensor)

    plain()
    cuda = where.type == "cuda"
    replay = _captured(module, plain) if cuda else plain
    wait: Callable[[], object] = module.cuda.synchronize if cuda else (lambda: None)
    best = inf
    for _ in range(3):
        distributed.barrier()
        wait()
        began = time.perf_counter()
        replay()
        wait()
        best = min(best, time.perf_counter() - began)
    return best / ROUNDS


def _captured(module: Any, plain: Callable[[], None]) -> Callable[[], object]:
    module.cuda.synchronize()
    graph = module.cuda.CUDAGraph()
    with suppress(RuntimeError):
        with module.cuda.graph(graph):
            plain()
        replay: Callable[[], object] = graph.replay
        return replay
    module.cuda.synchronize()
    return plain


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
