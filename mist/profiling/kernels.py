"""The operators of a transformer layer as torch calls them on a device."""

from collections.abc import Sequence
from typing import Any

from mist.profiling.device import Call, Device
from mist.profiling.plan import Attention, Gemm, Shape

BFLOAT16 = 2  # bytes


def calls(device: Device, shape: Shape, seconds: float) -> tuple[Sequence[Call], str]:
    """Calls of one operator on operands of their own each, and the name of what they call.

    ``seconds`` is about how long one takes. Operands are random: products of zeros draw less power and run faster.
    """
    return _gemm(device, shape, seconds) if isinstance(shape, Gemm) else _attention(device, shape, seconds)


def multiplies_fp8(device: Device) -> bool:
    """Whether torch has an FP8 matrix product for the device."""
    try:
        made, _ = _gemm(device, Gemm(16, 64, 64, "fp8"), 1.0)
        made[0]()
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return False
    return bool(device.gpu)  # elsewhere it is emulated


def _gemm(device: Device, shape: Gemm, seconds: float) -> tuple[Sequence[Call], str]:
    torch, where = device.torch, device.where
    m, n, k = shape.m, shape.n, shape.k
    x = torch.randn(m, k, dtype=torch.bfloat16, device=where)
    weights = _copies(torch.randn(n, k, dtype=torch.bfloat16, device=where), device.copies(n * k * BFLOAT16, seconds))
    if shape.dtype == "bfloat16":
        linear = torch.nn.functional.linear
        return [lambda w=w: linear(x, w) for w in weights], "torch.nn.functional.linear"
    x8, narrow = x.to(torch.float8_e4m3fn), [w.to(torch.float8_e4m3fn) for w in weights]
    one = torch.ones((), device=where)
    scaled = torch._scaled_mm
    made = [lambda w=w: scaled(x8, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16) for w in narrow]
    return made, "torch._scaled_mm"


def _attention(device: Device, shape: Attention, seconds: float) -> tuple[Sequence[Call], str]:
    torch, where = device.torch, device.where
    queries, causal = (shape.length, True) if shape.phase == "context" else (1, False)
    cache = 2 * shape.batch * shape.kv_heads * shape.length * shape.head_dim * BFLOAT16
    kv = (shape.batch, shape.kv_heads, shape.length, shape.head_dim)
    q = torch.randn(shape.batch, shape.heads, queries, shape.head_dim, dtype=torch.bfloat16, device=where)
    number = device.copies(cache, seconds)
    keys, values = (_copies(torch.randn(*kv, dtype=torch.bfloat16, device=where), number) for _ in range(2))
    sdpa, grouped = torch.nn.functional.scaled_dot_product_attention, shape.kv_heads < shape.heads
    made = [
        lambda k=k, v=v: sdpa(q, k, v, is_causal=causal, enable_gqa=grouped) for k, v in zip(keys, values, strict=True)
    ]
    return made, "torch_sdpa"


def _copies(operand: Any, number: int) -> list[Any]:
    return [operand, *(operand.clone() for _ in range(number - 1))]


def copy_bandwidth(device: Device) -> tuple[int, float]:
    """Bytes moved (read and written) by a copy far larger than any cache, and the seconds it takes."""
    size = int(min(max(16 * device.cache, 2**28), device.room / 4))
    source = device.torch.empty(size, dtype=device.torch.int8, device=device.where)
    source.zero_()
    target = device.torch.zeros_like(source)
    return 2 * size, device.time([lambda: target.copy_(source)])


def host_bandwidth(device: Device) -> float | None:
    """Bytes/s from pinned host memory to the device; None for a CPU, whose memory is the host's."""
    if not device.gpu:
        return None
    size, torch = 2**28, device.torch
    source = torch.empty(size, dtype=torch.int8, pin_memory=True)
    target = torch.empty(size, dtype=torch.int8, device=device.where)
    return size / device.time([lambda: target.copy_(source, non_blocking=True)])
