"""The options of `observe` and `plan` for pipelines: threshold, suppressions, SARIF and JUnit XML."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from meshscrape import __version__
from meshscrape.cli.codes import explanations
from meshscrape.cli.output import print_document, say
from meshscrape.errors import InputError
from meshscrape.istio.names import SUPPRESS
from meshscrape.kube.objects import Inventory
from meshscrape.observe.model import Severity
from meshscrape.observe.reporting.junit import junit
from meshscrape.observe.reporting.results import (
    SEVERITIES,
    PipelineResult,
    Suppression,
    fails,
    parse_suppression,
    suppressed,
)
from meshscrape.observe.reporting.sarif import sarif

FORMATS = ("sarif", "junit")


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The threshold (None: results do not affect the exit code) and the suppressions."""

    threshold: Severity | None
    suppressions: tuple[Suppression, ...]
    annotations: bool

    def judge(self, results: Sequence[PipelineResult], inventory: Inventory) -> tuple[PipelineResult, ...]:
        """Return the results with their suppressions, and print the number of suppressions to stderr."""
        judged = suppressed(results, self.suppressions, inventory, trust=self.annotations)
        by = [each for each in judged if each.suppressed]
        if by:
            named = ", ".join(sorted({f"{each.code} ({each.suppressed})" for each in by}))
            say(f"{len(by)} suppressed: {named}")
        return judged

    def failed(self, results: Sequence[PipelineResult]) -> bool:
        """Return whether --fail-on turns the results into exit code 1."""
        return self.threshold is not None and fails(results, self.threshold)


def pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --fail-on, --suppress and --ignore-suppress-annotations."""
    for option in (
        click.option(
            "--ignore-suppress-annotations", "ignore_annotations", is_flag=True,
            help=f"Count what the annotation {SUPPRESS} of an object suppresses.",
        ),
        click.option(
            "--suppress", "suppress", multiple=True, metavar="CODE[=OBJECT]",
            help="Do not count this code, of one object ([KIND ]NAMESPACE/NAME) or of all (repeatable). "
            f"The annotation {SUPPRESS}: CODE,… of an object does the same for it.",
        ),
        click.option(
            "--fail-on", "fail_on", type=click.Choice(SEVERITIES),
            help="Exit with 1 for a result of this severity or worse, and not for anything else.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def read_options(
    fail_on: Severity | None, suppress: Sequence[str], ignore_annotations: bool
) -> PipelineOptions:
    """Return the options. Raise InputError for an unknown code, because it would suppress nothing."""
    rules = tuple(parse_suppression(each) for each in suppress)
    for rule in rules:
        if rule.code not in explanations():
            near = difflib.get_close_matches(rule.code, explanations(), 3)
            raise InputError(
                f"no code {rule.code!a}",
                where="--suppress",
                remedy=f"did you mean {' or '.join(near)}?" if near else "see meshscrape explain --code list",
            )
    return PipelineOptions(fail_on, rules, not ignore_annotations)


def print_results(
    results: Sequence[PipelineResult], form: str, verb: str, threshold: Severity | None
) -> None:
    """Print SARIF or JUnit XML. Without a threshold, JUnit calls errors and worse failures."""
    if form == "junit":
        click.echo(junit(results, verb, threshold or "error"), nl=False)
        return
    help_of = {code: each.text for code, each in explanations().items()}
    print_document(sarif(results, version=__version__, verb=verb, help_of=help_of), "json")
