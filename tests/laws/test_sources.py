"""Laws of the sources: every number of a data sheet says beside it where it is from, in words that lead there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
NOUNS = ("hardware", "link", "network", "node", "power", "price", "tiers")
SHEETS = [path for noun in NOUNS for path in sorted((CONF / noun).glob("*.yaml"))]

NUMBER = re.compile(r"[-+]?\.?\d")
# what can be looked up: an address, a paper, a standard, a file of a repository, or a document with its publisher
DOCUMENT = re.compile(
    r"""https?://\S+\.\S+ | \barXiv:\d{4}\.\d{5}\b | \bdoi\ 10\.\d{4,} | \b[a-z][\w-]+(\.[\w-]+)*\.(com|org|net|io|se)\b
    | \bv\d/[a-z]+@[0-9a-f]{8}\b | \bstas00/ml-engineering\ @\ [0-9a-f]{8}\b | \bInferenceX\ constants\.ts\b
    | \b[NR]CCL\ src/\S+ | \baiconfigurator-core\ 0\.\d+
    | \bPCI-SIG\b | \bIEEE\ \d{3}\.\d | \bJEDEC\ \w+ | \bISCA\ \d{4}
    | \b(NVIDIA|AMD|Intel|AWS|Samsung|Micron|Arm|EPYC|Grace\ CPU|EC2)\b[^;]*
      \b(data\ ?sheet|white\ ?paper|brief|guide|overview|page|pricing|architecture)\b""",
    re.VERBOSE,
)
# a number of this project's own says so
OWN = re.compile(r"^(estimate|assumption|assumed|configuration|not published|not printed)\b|; assumption\b")
# words that stand for a line at the head of the file
HEAD = {"sheet": "# Sheet: ", "ARK": "# ARK: ", "announcement": "# Announcement: ", "nvidia-smi": "# nvidia-smi: "}
ABOVE = re.compile(r"\b(see above|as above|the same)\b")
FIELD = re.compile(r"\bsee (\w+)\b")
UNREAD = "not re-read on "


def address(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def figures(text: str) -> Iterator[tuple[str, str]]:
    """Every numeric leaf: its key, and the comment behind it on its line."""

    def leaves(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield from leaves(value, name.value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                yield from leaves(value, key)
        else:
            yield key, node

    lines = text.splitlines()
    for key, node in leaves(yaml.compose(text), ""):
        if key != "date" and NUMBER.match(node.value):
            found = re.search(r"\s#\s*(.*)$", lines[node.end_mark.line][node.end_mark.column :])
            yield key, found[1] if found else ""


def named_at_the_head(start: str, head: list[str]) -> bool:
    """Whether the head has the line that a word stands for, and it names a document (a tool needs none)."""
    lines = [line for line in head if line.startswith(start)]
    return bool(lines) and (start == HEAD["nvidia-smi"] or any(DOCUMENT.search(line) for line in lines))


def is_sourced(comment: str, head: list[str], earlier: dict[str, bool]) -> bool:
    """``earlier`` says of the numbers before this one whether they are."""
    if words := [word for word in HEAD if re.search(rf"(?<!data )\b{word}\b", comment)]:
        return all(named_at_the_head(HEAD[word], head) for word in words)
    if ABOVE.search(comment):
        return any(DOCUMENT.search(line) for line in head) or any(earlier.values())
    if field := FIELD.search(comment):
        return earlier.get(field[1], False)
    return bool(DOCUMENT.search(comment) or OWN.search(comment))


def unsourced(text: str) -> list[str]:
    """The keys of the numbers whose comment names no source, or points at one that is not there."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    sourced: dict[str, bool] = {}
    bad = []
    for key, comment in figures(text):
        sourced[key] = is_sourced(comment, head, sourced)
        bad += [] if sourced[key] else [key]
    return bad


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_every_number_names_a_source_that_can_be_followed(path: Path) -> None:
    assert unsourced(path.read_text()) == []


@pytest.mark.parametrize("path", sorted((CONF / "hardware").glob("*.yaml")), ids=address)
def test_a_hardware_sheet_says_what_of_it_was_read_and_when(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert [line for line in head if re.match(r"# (Read|Not re-read) on 20\d\d-\d\d-\d\d\b", line)]


@pytest.mark.parametrize("path", SHEETS, ids=address)
def test_what_was_not_verified_is_said_in_one_phrase_that_can_be_searched_for(path: Path) -> None:
    said = re.findall(r"not (?:re-?read|verified|checked|confirmed)[^;,.)\n]*", path.read_text(), re.IGNORECASE)
    assert not [words for words in said if not re.fullmatch(rf"{UNREAD}20\d\d-\d\d-\d\d", words, re.IGNORECASE)]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("power: 700 W\n", "power"),
        ("power: 700 W # a lot\n", "power"),
        ("power: 700 W # data sheet\n", "power"),  # whose?
        ("power: 700 W # sheet\n", "power"),  # which?
        ("# Sheet: somewhere\npower: 700 W # sheet\n", "power"),
        ("power: 700 W # see above\n", "power"),
        ("a: 1 W # guess\nb: 2 W # as above\n", "b"),
        ("power: 700 W # see idle_power\n", "power"),
        ("idle_power: 1 W # guess\npower: 700 W # see idle_power\n", "power"),
        ("power: 700 W # what nvidia-smi reports\n", "power"),
        ("# https://example.com\npower: 700 W\n", "power"),  # a head alone is no comment beside the number
        ("a: {b: 1, c: 2}\n", "c"),  # flow maps count
        ("a:\n  b: 1 # arXiv:2407.21783\n  c: 2\n", "c"),
        ("power: '700 W' # mine\n", "power"),
        ('power: "700 W # https://example.com"\n', "power"),  # a hash in a string is no comment
        ("rate: -1 # minus\n", "rate"),
        ("rate: .5 # half\n", "rate"),
    ],
)
def test_the_law_of_sources_is_not_fooled(text: str, key: str) -> None:
    assert key in unsourced(text)


@pytest.mark.parametrize(
    "text",
    [
        "power: 700 W # https://www.nvidia.com/en-us/data-center/h100/\n",
        "# Sheet: https://www.nvidia.com/en-us/data-center/h100/\npower: 700 W # sheet, up to\n",
        "power: 700 W # NVIDIA A100 datasheet, not re-read on 2026-11-21\n",
        "a: 1 W # arXiv:2407.21783\nb: 2 W # as above\n",
        "a: 1 W # arXiv:2407.21783\nb: 2 W # its own, see a\n",
        "a: 1 W # estimate: a tenth of full power\n",
        "name: a100\ndate: 2026-11-21\n",
    ],
)
def test_the_law_of_sources_lets_a_source_through(text: str) -> None:
    assert unsourced(text) == []
