"""Files that benchmarks leave behind, to Runs: which tool wrote one is seen from what is in it.

- ``vllm bench serve`` (--save-result, --save-detailed; one object, or appended lines);
- ``sglang.bench_serving`` (--output-file, with --output-details or without);
- AIPerf and GenAI-Perf (profile_export_aiperf.json or .csv, profile_export_genai_perf.*, profile_export.jsonl);
- GuideLLM (benchmarks.json);
- plain CSV: see mist.calibration.plain.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mist.calibration import aiperf, guidellm, plain, serving
from mist.calibration.run import Run, frame, refuse_empty
from mist.errors import InputError, TraceError

FORMATS = (".json", ".jsonl", ".csv")

__all__ = ["FORMATS", "Run", "frame", "read", "read_all"]


def read_all(paths: Iterable[str]) -> list[Run]:
    """All runs of all files."""
    return [run for path in paths for run in read(path)]


def read(name: str) -> list[Run]:
    """The runs of a file; InputError or TraceError, naming the place, where it is none that is known."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError("", name, "is a directory" if path.is_dir() else "no such file")
    if path.suffix.lower() not in FORMATS:
        raise InputError("", name, "no format is known for this file ending", FORMATS)
    try:
        runs = _csv(path) if path.suffix.lower() == ".csv" else _json(path)
    except (UnicodeDecodeError, OSError) as error:
        raise TraceError(name, path.suffix, f"cannot be read: {error}") from None
    refuse_empty(runs, name)
    return runs


def _csv(path: Path) -> list[Run]:
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if first.strip().lower().startswith(("metric,", '"metric"')):
        return _shaped(lambda: [aiperf.run_of_csv(path)], str(path), "AIPerf")
    return _shaped(lambda: plain.runs(path), str(path), "CSV")


def _json(path: Path) -> list[Run]:
    objects = _objects(path)
    if objects and all(aiperf.is_record(data) for data in objects):
        return _shaped(lambda: [aiperf.run_of_records(objects, str(path))], str(path), "AIPerf")
    several = len(objects) > 1
    return [
        run
        for number, data in enumerate(objects, 1)
        for run in _of(data, f"{path}: run {number}" if several else str(path))
    ]


def _of(data: Mapping[str, Any], source: str) -> list[Run]:
    if guidellm.is_report(data):
        return _shaped(lambda: guidellm.runs(data, source), source, "GuideLLM")
    if aiperf.is_export(data):
        return _shaped(lambda: [aiperf.run(data, source)], source, "AIPerf")
    if serving.is_serving(data):
        return _shaped(lambda: [serving.run(data, source)], source, "a serving benchmark")
    tools = ("vllm bench serve", "sglang.bench_serving", "AIPerf", "GenAI-Perf", "GuideLLM", "CSV")
    raise TraceError(source, ", ".join(list(data)[:6]), "is no result of a benchmark that is known", tools)


def _shaped(runs: Callable[[], list[Run]], source: str, tool: str) -> list[Run]:
    """The runs; TraceError, naming the place, for a value or a shape that the tool does not write."""
    try:
        return runs()
    except TraceError:
        raise
    except InputError as error:
        raise TraceError(source, f"{error.field} {error.value}".strip(), error.why, error.choices) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TraceError(source, tool, f"the file is not as this tool writes it: {error}") from None


def _objects(path: Path) -> list[Mapping[str, Any]]:
    """The JSON object of a file, the objects of its list, or one a line."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = json.loads(text)
        found = whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError:
        found = [_line(line, f"{path}:{n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not all(isinstance(data, Mapping) for data in found):
        raise TraceError(str(path), text[:40], "holds JSON, but no objects")
    return found


def _line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(place, line[:40], f"is not JSON: {error.msg}") from None
