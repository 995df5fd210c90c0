"""Write results as SARIF 2.1.0, which code hosts show on a change.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html

GitHub shows only results with a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from meshscrape.kube.objects import Ref
from meshscrape.observe.reporting.results import PipelineResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
# Characters of a path that need no escaping in a URI (RFC 3986). `:` is not among them, because it could end
# a scheme.
_AS_THEY_ARE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/")
_LEVELS = {"critical": "error", "error": "error", "warning": "warning", "info": "note"}


def sarif(
    results: Sequence[PipelineResult], *, version: str, verb: str, help_of: Mapping[str, str]
) -> dict[str, Any]:
    """Return the SARIF document of one run. `help_of` has the explanation of a code, if there is one.

    File names stay as they were given; relative ones are relative to the directory of the run.
    """
    codes = sorted({result.code for result in results})
    rules = [_rule(code, [result for result in results if result.code == code], help_of) for code in codes]
    driver = {"name": f"meshscrape {verb}", "version": version, "semanticVersion": version, "rules": rules}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_result(result, codes.index(result.code)) for result in results],
            }
        ],
    }


def _rule(code: str, results: Sequence[PipelineResult], help_of: Mapping[str, str]) -> dict[str, Any]:
    text = help_of.get(code, "")
    rule: dict[str, Any] = {
        "id": code,
        "name": "".join(word.capitalize() for word in code.split("-")),
        "shortDescription": {"text": code.replace("-", " ")},
        "defaultConfiguration": {"level": _LEVELS[results[0].severity]},
    }
    return rule | ({"help": {"text": text}} if text else {})


def _result(result: PipelineResult, index: int) -> dict[str, Any]:
    named = f"{result.ref}: " if result.ref else ""
    remedy = f"\n{result.remedy}" if result.remedy else ""
    document: dict[str, Any] = {
        "ruleId": result.code,
        "ruleIndex": index,
        "level": _LEVELS[result.severity],
        "message": {"text": f"{named}{result.text}{remedy}"},
        "partialFingerprints": {"objectAndCode/v1": _fingerprint(result)},
    }
    if place := _location(result):
        document["locations"] = [place]
    if result.suppressed:
        kind = "external" if result.suppressed.startswith("--") else "inSource"
        document["suppressions"] = [{"kind": kind, "justification": result.suppressed}]
    return document


def _location(result: PipelineResult) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if result.file:
        place["physicalLocation"] = {
            "artifactLocation": {"uri": _uri(result.file)},
            "region": {"startLine": max(result.line, 1)},
        }
    if result.ref:
        place["logicalLocations"] = [{"fullyQualifiedName": str(result.ref), "kind": "object"}]
    return place


def _uri(file: str) -> str:
    path = "".join(
        chr(byte) if byte in _AS_THEY_ARE else f"%{byte:02X}"
        for byte in file.removeprefix("./").encode(errors="surrogateescape")
    )
    return f"file://{path}" if path.startswith("/") else path


def _fingerprint(result: PipelineResult) -> str:
    ref = result.ref or Ref("", "", "", "")
    parts = (result.code, ref.group, ref.kind, ref.namespace, ref.name, "" if result.ref else result.text)
    return sha256("\0".join(parts).encode()).hexdigest()[:32]
