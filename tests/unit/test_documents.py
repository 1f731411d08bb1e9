"""README and its kin name what is there: files, headings, switches and limits."""

import re
from pathlib import Path

import max.pipelines
import pytest

from max_mistral import switches
from max_mistral.chat import schemas, tool_choice
from max_mistral.chat.client_messages import LONGEST_ID, MOST_CALLS
from max_mistral.server import request_fields, request_json, request_limits

ROOT = Path(__file__).parents[2]
MAX = Path(max.pipelines.__file__).parents[1]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "benchmarks" / name / "README.md" for name in (".", "results")),
]
# Where a path that is not of the root may be.
ROOMS = [
    *(ROOT, ROOT / "max_mistral", ROOT / "max_mistral" / "kernels"),
    *(ROOT / "benchmarks" / "results", MAX, MAX / "pipelines"),
]


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def anchors(path):
    """The headings of a file, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    kept = [re.sub(r"[^\w\- ]", "", each.lower()) for each in headings]
    return {each.replace(" ", "-") for each in kept}


def test_paths_are_there(document):
    path = r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|mojo|md|sh|toml))`"
    named = re.findall(path, document.read_text())
    for path in named:
        made = path.startswith("build/")
        assert made or any((room / path).exists() for room in ROOMS), path


def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_has_every_switch():
    settings = (ROOT / "README.md").read_text().partition("## Settings and caches")[2]
    rows = re.findall(r"^\| `(MAX_MISTRAL_\w+)`", settings, re.M)
    assert sorted(rows) == sorted(switches.ALL)


def test_limits_are_those_of_the_code():
    text = (ROOT / "docs" / "requests.md").read_text()
    for row in (
        f"more than {request_limits.MOST_STOPS} of them or "
        f"{request_limits.LONGEST_STOPS:,} characters in all",
        f"more than {request_fields.MOST_TEXTS:,} prompts",
        f"128 in one object, or {schemas.MAX_PROPERTIES} in small objects",
        f"| choices of `enum` | {schemas.MAX_CHOICES:,} in one |",
        f"in a `pattern`) | {schemas.MAX_COUNT:,} |",
        f"lists | {schemas.MAX_NODES:,} | {schemas.MAX_NODES_TOGETHER:,} |",
        f"{tool_choice.MOST_TOOLS:,} tools or {MOST_CALLS:,} tool calls in a message, "
        f"a call's id of more than {LONGEST_ID:,} characters, "
        f"objects of more than {request_json.MOST_NAMES:,} fields",
        f"| levels of nesting | {schemas.MAX_DEPTH} |",
        f"| characters | {schemas.MAX_CHARACTERS:,} | "
        f"{schemas.MAX_CHARACTERS_TOGETHER:,} |",
    ):
        assert row in text
