"""How files spell models, devices and engine versions, reduced to what tells one from another."""

import re
from collections.abc import Iterable

# Words of a published name that change no shape: how it was tuned, when, and how its weights are stored.
TUNED = {"instruct", "inst", "chat", "it", "hf", "base", "pt", "preview", "thinking", "text", "turbo"}
STORED = {
    "bf16", "fp16", "fp8", "fp4", "nvfp4", "mxfp4", "int8", "int4", "awq", "gptq", "w8a8", "w4a16", "w8a16", "w4a8",
    "dynamic", "static", "block", "kv", "quantized", "marlin", "4bit", "8bit", "128g",
}  # fmt: skip
PUBLISHERS = {"meta", "c4ai", "mistralai", "nvidia"}  # before the model's own name, without a slash
DATED = re.compile(r"\d{4}|v[01]\.\d+")  # 2507, 0528, v0.3; but v3.1 tells models apart
# Words of a device's name that tell no two sheets apart: vendors, brands, form factors, generations.
DEVICE = {
    "nvidia", "amd", "intel", "google", "aws", "instinct", "geforce", "tesla", "gpu", "gpus", "hgx", "dgx", "oam",
    "nvl72", "blackwell", "server", "edition", "superchip", "generation",
}  # fmt: skip
FORM = re.compile(r"sxm\d?|hbm\d?e?|\d+x|x\d+")  # sxm5, hbm3e; eight of them
COUNTED = re.compile(r"^\d+x(?=[a-z])|(?<=\d)x\d$")  # 8xh100, b200x8
MEMORY = re.compile(r"(\d+)gi?b?")  # 80gb, 80g
AGREES = 0.08  # relative difference up to which a size of memory is the sheet's: GB of 1e9 or 2**30, as sold or as seen


def model_words(said: str) -> list[str]:
    """What is left of a model's name without its organisation, tuning, date and number format."""
    spoken = re.split(r"/|--", said.strip().rstrip("/"))[-1].lower()
    spoken = re.sub(r"(?<=[-_ ])v(?=[2-9]\.\d)", "", spoken)  # Llama v3.1
    words = [word for word in re.split(r"[-_ ]+|(?<=quantized)\.", spoken) if word]
    kept = [word for word in words if word not in TUNED | STORED and not DATED.fullmatch(word)]
    return kept[1:] if kept and kept[0] in PUBLISHERS and len(kept) > 1 else kept


def stored_as(said: str) -> list[str]:
    """The words of a model's name that say how its weights are stored."""
    return [word for word in re.split(r"[-_ ./]+", said.lower()) if word in STORED]


def device_words(said: str) -> tuple[list[str], float | None]:
    """What is left of a device's name, sorted, and its memory in GB where the name tells it."""
    words = [word for word in re.split(r"[^a-z0-9]+", said.lower()) if word]
    sizes = [float(found[1]) for word in words if (found := MEMORY.fullmatch(word))]
    kept = [w for w in words if w not in DEVICE and not FORM.fullmatch(w) and not MEMORY.fullmatch(w)]
    return sorted(COUNTED.sub("", word) for word in kept), sizes[0] if sizes else None


def holds(memory: float, gigabytes: float) -> bool:
    """Whether a device of ``memory`` bytes is sold as one of so many GB."""
    return any(abs(memory / unit / gigabytes - 1) <= AGREES for unit in (1e9, 2**30))


def engine_words(said: str) -> tuple[str, str]:
    """An engine's name and version: ``vllm 0.11.2``, ``TensorRT-LLM v1.0.0rc4`` and, of file names, ``vllm0201``."""
    found = re.fullmatch(r"(.*?[a-z])[-_ =]*(?:v(?=\d))?(\d[\w.+-]*)?", said.strip().lower())
    if found is None:
        return said, ""
    name, version = found[1], found[2] or ""
    return name, version if "." in version else _dotted(version)


def _dotted(digits: str) -> str:
    """0201 is 0.20.1 and 014 is 0.14, as versions are written where a point may not stand."""
    if len(digits) >= 3 and digits.startswith("0") and digits.isdigit():
        return ".".join(part for part in ("0", digits[1:3], digits[3:]) if part)
    return digits


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare: 0.10.2rc1 is (0, 10, 2)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def newest_not_after(asked: str, since: Iterable[tuple[str, str]]) -> str | None:
    """Of (name, first version) the last whose first version is not after ``asked``; else the first; None of none."""
    ordered = sorted(since, key=lambda item: release(item[1]))
    not_after = [name for name, first in ordered if release(first) <= release(asked)]
    return not_after[-1] if not_after else ordered[0][0] if ordered else None
