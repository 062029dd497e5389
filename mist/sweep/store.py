"""A run on disk: what was asked, from what, and every answer, kept through any crash.

``trials.jsonl`` is the truth: append-only, one JSON object a line, on the disk before the next is begun.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mist.errors import InputError

FORMAT = 2  # of trials.jsonl and manifest.json

Line = dict[str, Any]


def create(root: Path, name: str, identity: str, sweep: Mapping[str, Any], manifest: Mapping[str, Any]) -> Path:
    """A new run folder ``root/name/<time>-<hash8>`` with its sweep and manifest, and ``latest`` beside it."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H%M%S}-{identity[:8]}"
    draft = folder / f".{stem}.{os.getpid()}"  # renamed when whole, so that a run either exists or does not
    draft.mkdir()
    (draft / "sweep.yaml").write_text(yaml.safe_dump(dict(sweep), sort_keys=False, allow_unicode=True, width=110))
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (draft / "trials.jsonl").touch()
    run, twin = folder / stem, 1
    while run.exists():
        twin += 1
        run = folder / f"{stem}-{twin}"
    draft.rename(run)
    _point(folder / "latest", run.name)
    return run


def _point(link: Path, name: str) -> None:
    fresh = link.with_name(f".latest.{os.getpid()}")
    with suppress(OSError):  # a file system without links does without
        fresh.symlink_to(name)
        fresh.replace(link)


def load(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sweep and the manifest of a run; InputError if the folder is not one."""
    try:
        asked, kept = ((run / name).read_text() for name in ("sweep.yaml", "manifest.json"))
    except OSError:
        runs = sorted(str(path.parent) for path in Path("results").glob("*/latest/manifest.json"))
        raise InputError("run", run, "not a run folder (sweep.yaml and manifest.json)", runs) from None
    sweep, manifest = _map(run / "sweep.yaml", asked, yaml.safe_load), _map(run / "manifest.json", kept, json.loads)
    if manifest.get("format") != FORMAT:
        raise InputError("run", run, "was written by another version of MIST")
    return sweep, manifest


def _map(file: Path, text: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    with suppress(ValueError, yaml.YAMLError):
        found = parse(text)
        if isinstance(found, dict):
            return found
    raise InputError("run", file, "is damaged")


class Trials:
    """``trials.jsonl`` of one run, open for appending by one driver at a time.

    Opening reads what is there and cuts a last line that a crash left unfinished.
    """

    def __init__(self, run: Path) -> None:
        self._file = (run / "trials.jsonl").open("r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError("run", run, "another process is working on it") from None
        try:
            whole, self.lines = parse_lines(self._file.read())
        except InputError:
            self._file.close()
            raise
        self._file.truncate(whole)
        self._file.seek(whole)

    def append(self, line: Line) -> None:
        """Add a line; when this returns, it survives the machine."""
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(line)

    def close(self) -> None:
        self._file.close()


def read_lines(run: Path) -> list[Line]:
    """The whole lines of a run that a driver may be writing to."""
    return parse_lines((run / "trials.jsonl").read_bytes())[1]


def write_bounds(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """``bounds.jsonl``: every design of the space and its bound. Written whole or not at all."""
    draft = run / ".bounds.jsonl"
    draft.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    draft.rename(run / "bounds.jsonl")


def read_bounds(run: Path) -> list[Line]:
    """Those of a run; none where its designs do not go by bounds, or have none yet."""
    file = run / "bounds.jsonl"
    whole, lines = parse_lines(file.read_bytes(), file.name) if file.is_file() else (0, [])
    if file.is_file() and whole < file.stat().st_size:
        raise InputError("run", file, "is damaged; delete it, and mist resume works the bounds out again")
    return lines


def concluded(run: Path) -> bool:
    """Whether the last driver came to the end: the table is the last thing it writes."""
    return (run / "trials.parquet").is_file()


def reopen(run: Path) -> None:
    """Take back the end of an earlier driver."""
    for name in ("trials.parquet", "best.yaml"):
        (run / name).unlink(missing_ok=True)


def parse_lines(data: bytes, file: str = "trials.jsonl") -> tuple[int, list[Line]]:
    """How many bytes are whole lines, and the lines. Only the last may be torn; any other is an InputError."""
    lines: list[Line] = []
    whole = 0
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        line = _object(raw)
        if line is None:
            if whole + len(raw) + 1 < len(data):
                raise InputError(f"{file}:{number}", raw[:40], "not a JSON object, and not the last line")
            break
        lines.append(line)
        whole += len(raw) + 1
    return whole, lines


def _object(raw: bytes) -> Line | None:
    with suppress(ValueError):
        found = json.loads(raw)
        return found if isinstance(found, dict) else None
    return None


def write_table(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """``trials.parquet``: one row a line, nested names joined by dots, lists as JSON. Written whole or not at all."""
    import pyarrow as pa  # noqa: PLC0415  a tenth of a second, and only a finished run needs it
    from pyarrow import parquet  # noqa: PLC0415

    rows = [_flat({key: value for key, value in line.items() if key != "overrides"}) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    draft = run / ".trials.parquet"
    parquet.write_table(pa.table({name: _column([row.get(name) for row in rows]) for name in names}), draft)
    draft.rename(run / "trials.parquet")


def _column(values: list[Any]) -> list[Any]:
    """Of one type, as Parquet wants it: numbers become floats where they differ in kind, anything else text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    one = float if kinds == {int, float} else str
    return [None if value is None else one(value) for value in values]


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = json.dumps(item) if isinstance(item, list) else item
    return flat


def write_best(run: Path, best: Mapping[str, Any]) -> None:
    """``best.yaml``: the winning deployment, its answer, and how to replay it."""
    (run / "best.yaml").write_text(yaml.safe_dump(dict(best), sort_keys=False, allow_unicode=True, width=1000))
