"""What the pages say exists, exists: files, commands, their options, and the addresses that they set."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mist.arguments import read
from mist.build import build
from mist.cli import COMMANDS
from mist.compose import compose
from mist.errors import InputError
from mist.inert import refuse_inert
from mist.scenario import Scenario

ROOT = Path(__file__).parents[1]
OWN = {"conf/hardware/mybox.yaml", "conf/engine/mine.yaml"}  # what a reader makes
UNSAID = re.compile(r"\.\.\.|<|\[|\{flat")  # a form and not a command


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "results/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> Iterator[str]:
    """Those of indented blocks and of backticks, without what is said of them."""
    for page in pages():
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found = re.findall(r"^ {2,}(mist .*)$", text, re.MULTILINE) + re.findall(r"`(mist [^`]+)`", text)
        yield from (" ".join(command.partition(" # ")[0].split()) for command in found)


def words(command: str) -> list[str]:
    return shlex.split(command)[1:]


SAID = sorted({command for command in commands() if not UNSAID.search(command) and len(words(command)) > 1})
DEPLOYED = [
    command for command in SAID if words(command)[0] in ("simulate", "capacity") and "engine=mine" not in command
]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_path_in_backticks_exists(page: Path) -> None:
    for told in re.findall(r"`((?:mist|conf|tests|sweeps|docs|results)/[^`\s]*)`", page.read_text(encoding="utf-8")):
        path = told.partition("::")[0].rstrip("/")
        assert told in OWN or "<" in told or ("*" in told and list(ROOT.glob(path))) or (ROOT / path).exists(), told


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("command", SAID)
def test_a_command_has_the_options_it_is_shown_with(command: str) -> None:
    try:
        read(words(command), dict.fromkeys(COMMANDS, lambda _arguments: 0))
    except InputError as error:
        if not re.search("arguments are required|expected one argument", error.why):  # named, and not typed in full
            raise


@pytest.mark.parametrize("command", DEPLOYED)
def test_a_deployment_that_is_shown_can_be_built(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, arguments = read(words(command), dict.fromkeys(COMMANDS, lambda _arguments: 0))
    overrides = [text for text in arguments.overrides if "mychip" not in text and "mybox" not in text]
    try:
        config = compose(overrides)
        refuse_inert(overrides, config)
        build(Scenario, config)
    except InputError as error:
        if error.why != "no such file":  # the reader's own
            raise
