"""The options that say what is wanted of a cluster; `plan` and `render` share them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

from meshscrape.cli.manifests import files_option, read_inventory
from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.istio.ports import SECURE_MERGED
from meshscrape.istio.versions import parse_version
from meshscrape.kube.objects import Inventory, Ref, selects
from meshscrape.kube.selectors import parse_selector
from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.plan.model import Intent, Plan
from meshscrape.plan.planner import plan

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT = click.IntRange(1, 65535)
_OPTIONS = (
    files_option,
    click.option(
        "--mode",
        type=click.Choice(["auto", "native", "bootstrap", "legacy"]),
        default="auto",
        show_default=True,
        help="How workloads are secured; auto: each by the version of its proxy.",
    ),
    click.option("-n", "--namespace", "namespaces", multiple=True, metavar="NAME", help="Only this one."),
    click.option("-l", "--selector", metavar="LABELS", help="Only workloads whose pods have these labels."),
    click.option(
        "--scraper",
        "scrapers",
        multiple=True,
        metavar="ENTRY",
        help="Who may scrape: spiffe:spiffe://… or dns:NAME; the Prometheus that is found by default.",
    ),
    click.option(
        "--harden/--no-harden",
        default=True,
        show_default=True,
        help="Close the plaintext ports where nobody needs them any more.",
    ),
    click.option(
        "--network-policy/--no-network-policy",
        default=False,
        show_default=True,
        help="Let only the scraper reach the secure ports.",
    ),
    click.option(
        "--inject/--no-inject",
        default=None,
        help="Take in workloads without a sidecar; by default only with --namespace or --selector.",
    ),
    click.option(
        "--prometheus",
        type=click.Choice(["existing", "addon", "operator", "none"]),
        default="existing",
        show_default=True,
        help="Change the Prometheus that is found, write a complete one, or leave scraping alone.",
    ),
    click.option(
        "--prometheus-namespace",
        default=ROOT_NAMESPACE,
        show_default=True,
        metavar="NAME",
        help="Where a complete Prometheus goes.",
    ),
    click.option("--merged-port", type=_PORT, default=SECURE_MERGED, show_default=True, metavar="PORT"),
    click.option(
        "--envoy-port",
        type=click.IntRange(0, 65535),
        default=0,
        metavar="PORT",
        help="A port for Envoy's statistics alone too (Istio's is 15091), not in legacy mode; the merged "
        "ones include them.",
    ),
    click.option(
        "--legacy-source",
        type=click.Choice(["merged", "envoy"]),
        default="merged",
        show_default=True,
        help="What legacy mode's one port serves: the merged metrics, or Envoy's statistics alone.",
    ),
    click.option("--istio-version", metavar="VERSION", help="What the control plane gives to new proxies."),
)


def intent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All options of `make_plan`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def make_plan(
    *,
    files: Sequence[str],
    namespaces: tuple[str, ...],
    selector: str | None,
    scrapers: Sequence[str],
    inject: bool | None,
    **options: Any,
) -> tuple[Inventory, Plan]:
    """The objects that were read and the plan for them, from the values of `intent_options`.

    Raises InputError for options that cannot be meant: a mistyped namespace must not look like "nothing to
    do".
    """
    _check(options)
    intent = Intent(
        namespaces=namespaces,
        selector=parse_selector(selector) if selector else None,
        scrapers=parse_scrapers(",".join(scrapers), "--scraper"),
        inject=bool(namespaces or selector) if inject is None else inject,
        **options,
    )
    inventory = read_inventory(files)
    observation = observe(inventory, istio_version=intent.istio_version)
    _check_chosen(observation, inventory, intent)
    return inventory, plan(observation, inventory, intent)


def _check(options: Mapping[str, Any]) -> None:
    version, namespace = options["istio_version"], options["prometheus_namespace"]
    if version is not None and not parse_version(version).known:
        raise InputError(
            f"{version!r} is not a version of Istio", where="--istio-version", remedy="write it as 1.31.0"
        )
    if not _NAMESPACE.fullmatch(namespace):
        raise InputError(
            f"{namespace!r} is not the name of a namespace",
            where="--prometheus-namespace",
            remedy="use lower-case letters, digits and -",
        )


def _check_chosen(observation: Observation, inventory: Inventory, intent: Intent) -> None:
    used = {each.namespace for each in observation.workloads}
    for name in intent.namespaces:
        if name not in used and inventory.get(Ref("", "Namespace", "", name)) is None:
            raise InputError(
                f"no object is in {name!r}",
                where="--namespace",
                remedy="correct it, or give a dump that has it",
            )
    if intent.selector is not None and not any(
        selects(intent.selector, each.labels)
        and (not intent.namespaces or each.namespace in intent.namespaces)
        for each in observation.workloads
    ):
        raise InputError("it selects no workload", where="--selector", remedy="correct it, or the namespace")


class OneIsError(click.Command):
    """A command whose exit code 2 means changes: every error, of its options too, is 1."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(1) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshscrapeError as error:
            fail(error)


def fail(error: MeshscrapeError) -> NoReturn:
    """One line on standard error, and exit code 1."""
    print(f"meshscrape: {error}", file=sys.stderr)
    raise click.exceptions.Exit(1)
