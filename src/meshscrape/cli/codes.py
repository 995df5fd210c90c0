"""The registry of codes: the meaning of each pitfall, check, plan note, refusal and alert.

The text is that of the documentation. The pages are part of the package (`pages/` links to `docs/`), so that
no second text can differ from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from meshscrape.envoy.refusals import CATALOGUE
from meshscrape.istio.names import DOCUMENT_VERSION

_SECTION = re.compile(r"^### (\S+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
# Pages with a section for each code, and the kind of their codes. The first page with a code counts.
_SECTIONS = {"pitfalls.md": "pitfall of observe", "verify.md": "check of verify", "runbook.md": "alert"}
_PLAN_CODES = "plan-codes.md"


@dataclass(frozen=True, slots=True)
class CodeExplanation:
    """The meaning of a code: `of` is its kind, `text` is for users, `page` is its documentation."""

    code: str
    of: str
    text: str
    page: str


@cache
def explanations() -> dict[str, CodeExplanation]:
    """Return every code with its explanation, sorted by code."""
    found: dict[str, CodeExplanation] = {}
    for each in _all():
        found.setdefault(each.code, each)
    return dict(sorted(found.items()))


def code_document(explained: CodeExplanation) -> dict[str, str]:
    """Return the CodeExplanation document."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "CodeExplanation",
        "code": explained.code,
        "of": explained.of,
        "text": explained.text,
        "page": explained.page,
    }


def _all() -> Iterator[CodeExplanation]:
    for page, of in _SECTIONS.items():
        for code, text in _SECTION.findall(_page(page)):
            yield CodeExplanation(code, of, _plain(text), f"docs/{page}#{code.lower()}")
    for code, meaning, remedy in _ROW.findall(_page(_PLAN_CODES)):
        text = _plain(f"What it means: {meaning}\nWhat to do: {remedy}")
        yield CodeExplanation(code, "note, refusal or gate of plan", text, f"docs/{_PLAN_CODES}")
    for each in CATALOGUE:
        text = f"What it means: {each.meaning}\nWhat to do: {each.remedy}"
        yield CodeExplanation(each.reason, "refusal of the scrape proxy", text, "docs/scrape-proxy.md")


def _page(name: str) -> str:
    return files("meshscrape.cli").joinpath("pages", name).read_text(encoding="utf-8")


def _plain(markdown: str) -> str:
    """Return Markdown as text for a terminal, without markup for bold words and links."""
    return _LINK.sub(r"\1", markdown).replace("**", "").strip()
