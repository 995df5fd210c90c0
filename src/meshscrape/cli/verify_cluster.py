"""The options of `meshscrape verify` that are about a cluster, and its verifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import click

from meshscrape.cli.image_reference import check_image
from meshscrape.cli.live import chosen_access, progress
from meshscrape.cli.output import say
from meshscrape.errors import InputError
from meshscrape.verify.findings import Report
from meshscrape.verify.run import VerifyOptions
from meshscrape.verify.watch import VerifyOnce


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What the options say about a cluster. Without an `image`, nothing runs inside it."""

    kubernetes: bool = False
    namespaces: tuple[str, ...] = ()
    image: str = ""
    stranger: str = "default"
    pull_secret: str = ""
    seconds: float = 300.0
    labels: tuple[tuple[str, str], ...] = ()


def _labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the labels KEY=VALUE."""
    pairs = []
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise InputError(f"{value!a} is not a label", where="--scraper-label", remedy="write KEY=VALUE")
        pairs.append((key, text))
    return tuple(pairs)


_OPTIONS = (
    click.option(
        "--kubernetes",
        is_flag=True,
        help="Verify the mesh of a cluster by what its API server and its Prometheus tell.",
    ),
    click.option(
        "-n",
        "--namespace",
        "namespaces",
        multiple=True,
        metavar="NAME",
        help="With --kubernetes: limit to workloads of this namespace (repeatable).",
    ),
    click.option(
        "--image",
        default="",
        metavar="REF",
        help="With --kubernetes: verify from inside. Two short-lived Jobs of this image (meshscrape) visit "
        "the pods, one with the scraper's ServiceAccount, one as a stranger.",
    ),
    click.option(
        "--stranger-namespace",
        "stranger",
        default="default",
        show_default=True,
        metavar="NAME",
        help="With --image: the stranger's Job and ServiceAccount are made in this namespace.",
    ),
    click.option(
        "--scraper-label",
        "labels",
        multiple=True,
        callback=_labels,
        metavar="KEY=VALUE",
        help="With --image: a label for the scraper's pod, which network policies want (repeatable).",
    ),
    click.option(
        "--pull-secret",
        default="",
        metavar="NAME",
        help="With --image: the Secret to pull it with, in the namespaces of both Jobs.",
    ),
    click.option(
        "--timeout",
        "seconds",
        type=click.FloatRange(10, 3600),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="With --image: how long a Job may take.",
    ),
)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, which the function gets as `cluster`."""

    @wraps(function)
    def collected(
        kubernetes: bool, namespaces: tuple[str, ...], image: str, stranger: str, pull_secret: str,
        seconds: float, labels: tuple[tuple[str, str], ...], **others: Any,
    ) -> Any:  # fmt: skip
        chosen = ClusterOptions(kubernetes, namespaces, image, stranger, pull_secret, seconds, labels)
        for option, value in (("--image", image), ("--namespace", namespaces)):
            if value and not kubernetes:
                raise InputError("needs --kubernetes", where=option, remedy="add --kubernetes")
        if image:
            check_image(image, "--image")
        _refuse_without_image(chosen)
        return function(**others, cluster=chosen)

    made: Callable[..., Any] = collected
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def _refuse_without_image(chosen: ClusterOptions) -> None:
    """Raise InputError for an option about the Jobs of --image when there are none."""
    own = ClusterOptions()
    given = {
        "--stranger-namespace": chosen.stranger != own.stranger,
        "--scraper-label": chosen.labels != own.labels,
        "--pull-secret": chosen.pull_secret != own.pull_secret,
        "--timeout": chosen.seconds != own.seconds,
    }
    for option in (option for option, differs in given.items() if differs and not chosen.image):
        raise InputError("needs --image", where=option, remedy=f"add --image REF, or omit {option}")


@contextmanager
def runs(cluster: ClusterOptions, asked: VerifyOptions, quiet: bool) -> Iterator[VerifyOnce]:
    """Provide verifications of the cluster that the options name."""
    from meshscrape.cluster.permissions import MissingRightsError
    from meshscrape.cluster.verifying import InsideOptions, verify_cluster

    access = chosen_access()
    inside = (
        InsideOptions(
            cluster.image,
            cluster.stranger,
            cluster.seconds,
            asked.scraper,
            cluster.pull_secret,
            cluster.labels,
        )
        if cluster.image
        else None
    )
    with progress(access) as told:
        shown = (lambda line: None) if quiet else told

        async def verify_once() -> Report:
            try:
                report = await verify_cluster(access, cluster.namespaces, shown, inside)
            except MissingRightsError as error:
                for right in error.missing:
                    say(f"no right to {right}")
                raise
            kept = tuple(
                result
                for result in report.checks
                if (not asked.only or result.check in asked.only) and result.check not in asked.skip
            )
            return replace(report, checks=kept)

        yield verify_once
