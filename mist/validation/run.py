"""Validation as a whole: every measured set at a path, replayed with one or several choices, and scored."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mist.errors import InputError, MistError
from mist.validation.coverage import Coverage, coverage
from mist.validation.effect import refuse_idle
from mist.validation.harness import Overrides, composed
from mist.validation.measured import MeasuredSet, measured_sets
from mist.validation.replay import Comparison, Job, as_overrides, jobs, replayed
from mist.validation.score import Score, scored


@dataclass(frozen=True)
class Validation:
    """What was compared and how it scored, and what became of every row; ``foreign`` files belong to no set."""

    compared: Sequence[Comparison]
    scores: Sequence[Score]
    foreign: Sequence[Path]
    sets: Mapping[str, MeasuredSet]
    coverage: Sequence[Coverage] = ()

    @property
    def problems(self) -> list[str]:
        """Why cells were not predicted, each once."""
        told = [f"{line.name}: {line.problem}" for line in self.compared if line.problem]
        return list(dict.fromkeys(told))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        unscored: dict[str, Any] = {"foreign": [file.name for file in self.foreign], "problems": self.problems}
        unscored |= {"coverage": [asdict(one) for one in self.coverage]}
        return {"scores": [asdict(score) for score in self.scores], **unscored}


def validate(path: Path, variants: Sequence[str] = ("",)) -> Validation:
    """Replay every measurement at ``path`` once for each variant (overrides, spaces between them).

    Raises InputError where there is nothing to replay or a variant is wrong for every set; a cell that
    cannot be replayed is counted, with its reason.
    """
    for variant in variants:
        check_overrides(as_overrides(variant))
    work, sources, foreign = jobs(path, list(dict.fromkeys(variants)))
    if not sources:
        raise InputError("", path, "no set of conf/validation describes what is there")
    _refuse_idle(work)
    answered, sets = replayed(work), measured_sets()
    compared = [line for one in answered for line in one.lines]
    scores = scored(compared, {name: kind.slices for name, kind in sets.items()})
    return Validation(compared, scores, foreign, sets, coverage(sources, answered))


def _refuse_idle(work: Sequence[Job]) -> None:
    """InputError for overrides that no replay depends on."""
    typed = next((job.variant for job in work if job.variant), "")
    if typed and not any(job.kind.deployed for job in work):
        names = ", ".join(dict.fromkeys(job.name for job in work))
        raise InputError("", typed, f"has no effect: no serving engine is replayed for {names}")
    for variant in dict.fromkeys(job.variant for job in work if job.variant):
        deployments = [deployed for job in work if job.variant == variant and (deployed := _deployed(job)) is not None]
        refuse_idle(deployments, as_overrides(variant))


def _deployed(job: Job) -> Overrides | None:
    """What a cell was measured on; None where that cannot be known, which its replay tells."""
    if not job.kind.deployed or job.cell.problem:
        return None
    try:
        return job.overrides()
    except InputError:
        return None


def check_overrides(overrides: Overrides) -> None:
    """InputError for an override that no deployment takes."""
    errors: list[MistError] = []
    for cluster in ("one_pool", "disaggregated"):
        try:
            composed({"cluster": cluster}, overrides)
        except InputError as error:
            errors.append(error)
        else:
            return
    raise errors[0]
