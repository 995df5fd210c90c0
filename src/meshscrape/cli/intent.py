"""The options that describe the wanted state of a cluster; `plan` and `render` share them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from meshscrape.cli.assumptions import read_assumptions
from meshscrape.cli.complaints import complain, usage_line
from meshscrape.cli.image_reference import check_image
from meshscrape.cli.live import cluster_options
from meshscrape.cli.manifests import files_option, read_inventory
from meshscrape.cli.options import text_of
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
from meshscrape.plan.reads import joined, parse_reads
from meshscrape.prometheus.rules import RUNBOOK
from meshscrape.prometheus.scrape_proxy_pod import CSI_DRIVER, ISTIOD

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DIRECTORY = re.compile(r"(/[\w.-]+)+")
_PORT = click.IntRange(1, 65535)
DETAILED = "--detailed-exitcode"
_OPTIONS = (
    click.option(
        "--mode",
        type=click.Choice(["auto", "native", "bootstrap", "legacy"]),
        default="auto",
        show_default=True,
        help="How to secure workloads; auto decides by the version of each proxy.",
    ),
    click.option(
        "--scope",
        type=click.Choice(["mesh", "namespace", "workload"]),
        default="workload",
        show_default=True,
        help="Where native and bootstrap mode put their settings: into each pod template, or into Istio's "
        "defaults for the namespace or the mesh. Pods get defaults at their next restart.",
    ),
    click.option(
        "-n",
        "--namespace",
        "namespaces",
        multiple=True,
        metavar="NAME",
        help="Limit to this namespace (repeatable).",
    ),
    click.option(
        "-l", "--selector", metavar="LABELS", help="Limit to workloads whose pods have these labels."
    ),
    click.option(
        "--scraper",
        "scrapers",
        multiple=True,
        metavar="ENTRY",
        help="Let this identity scrape (repeatable): spiffe:SPIFFE_ID or dns:NAME. Default: the Prometheus "
        "among the objects.",
    ),
    click.option(
        "--harden/--no-harden",
        default=True,
        show_default=True,
        help="Close plaintext ports when no scrape job reads them any more.",
    ),
    click.option(
        "--network-policy/--no-network-policy",
        default=False,
        show_default=True,
        help="Let only the scraper's pods reach the secure ports.",
    ),
    click.option(
        "--inject/--no-inject",
        default=None,
        help="Give a sidecar to workloads without one. Default: only with --namespace or --selector.",
    ),
    click.option(
        "--prometheus",
        type=click.Choice(["existing", "addon", "operator", "none"]),
        default="existing",
        show_default=True,
        help="Change the existing Prometheus, write a new one (addon, operator), or plan no scraping (none).",
    ),
    click.option(
        "--scrape-proxy/--no-scrape-proxy",
        default=None,
        help="Scrape through a scrape proxy in Prometheus's pod, which verifies every target's SPIFFE ID. "
        "Needs --proxy-image. Default: only with --prometheus addon.",
    ),
    click.option(
        "--proxy-image",
        default="",
        metavar="REF",
        help="Image of the scrape proxy (see the Dockerfile); none is published. Without it, scrapes are "
        "direct and targets are not verified.",
    ),
    click.option(
        "--proxy-certificates",
        default=ISTIOD,
        show_default=True,
        metavar="SOURCE",
        help=f"Source of the scrape proxy's certificate: {ISTIOD} (by an agent of its own), {CSI_DRIVER} (a "
        "volume of cert-manager's driver), or the directory where a container of Prometheus's pod has "
        "certificate files (an istio-proxy with OUTPUT_CERTS, spiffe-helper).",
    ),
    click.option(
        "--prometheus-namespace",
        default=ROOT_NAMESPACE,
        show_default=True,
        metavar="NAME",
        help="Namespace of a new Prometheus.",
    ),
    click.option(
        "--runbook-url",
        "runbook",
        default=RUNBOOK,
        show_default=True,
        metavar="URL",
        help="Where you serve docs/runbook.md; the alerts of a new Prometheus link to their sections there.",
    ),
    click.option(
        "--merged-port",
        type=_PORT,
        default=SECURE_MERGED,
        show_default=True,
        metavar="PORT",
        help="Serve the merged metrics on this secure port.",
    ),
    click.option(
        "--envoy-port",
        type=click.IntRange(0, 65535),
        default=0,
        metavar="PORT",
        help="Also serve Envoy's statistics alone on this port (Istio's is 15091; not in legacy mode). "
        "The merged metrics include them.",
    ),
    click.option(
        "--legacy-source",
        type=click.Choice(["merged", "envoy"]),
        default="merged",
        show_default=True,
        help="Serve the merged metrics, or Envoy's statistics alone, on legacy mode's one port.",
    ),
    click.option(
        "--assume-unread",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Close plaintext ports without waiting for the scrapers in this file: a YAML list with scraper, "
        "reason and date.",
    ),
    click.option(
        "--reads",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Close plaintext ports only where these measured reads are explained by known scrape jobs "
        "(repeatable): the answer of a Prometheus's API to the query in docs/kubernetes.md.",
    ),
    click.option(
        "--new-job",
        is_flag=True,
        help="Set the label `job` of moved scrapes to the new job's name. Default: keep the old name.",
    ),
    click.option(
        "--keep-own-series",
        is_flag=True,
        help="Keep `up` and `scrape_*` that an application exposes, for federation. Default: the jobs drop "
        "them, because Prometheus adds its own.",
    ),
    click.option(
        "--istio-version",
        metavar="VERSION",
        help="Version of Istio to use if no object shows which version new proxies get.",
    ),
)


def intent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return all options of `make_plan`."""
    for option in reversed((files_option, *_OPTIONS)):
        function = option(function)
    return function


def live_intent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `make_intent`, and those that choose a cluster."""
    for option in reversed((cluster_options, *_OPTIONS)):
        function = option(function)
    return function


def make_plan(*, files: Sequence[str], **options: Any) -> tuple[Inventory, Plan]:
    """Return the objects that were read and the plan for them, from the values of `intent_options`.

    Raises InputError for options that cannot be meant: a mistyped namespace must not look like "nothing to
    do".
    """
    intent = make_intent(**options)
    inventory = read_inventory(files)
    return inventory, plan_for(inventory, intent)[1]


def make_intent(
    *,
    namespaces: tuple[str, ...],
    selector: str | None,
    scrapers: Sequence[str],
    inject: bool | None,
    assume_unread: Path | None = None,
    reads: Sequence[Path] = (),
    **options: Any,
) -> Intent:
    """Return what is wanted, from the values of `intent_options` without the files."""
    _check(options)
    _check_scope(options["scope"], options["mode"], namespaces, selector)
    return Intent(
        namespaces=namespaces,
        selector=parse_selector(selector) if selector else None,
        scrapers=parse_scrapers(",".join(scrapers), "--scraper"),
        inject=bool(namespaces or selector) if inject is None else inject,
        assumed_unread=read_assumptions(assume_unread),
        reads=joined(parse_reads(text_of(path, "--reads"), str(path)) for path in reads) if reads else None,
        **options,
    )


def plan_for(inventory: Inventory, intent: Intent) -> tuple[Observation, Plan]:
    """Return what the objects contain and the plan. Raise InputError for an intent that chooses nothing."""
    observation = observe(inventory, istio_version=intent.istio_version)
    _check_chosen(observation, inventory, intent)
    return observation, plan(observation, inventory, intent)


def _check(options: Mapping[str, Any]) -> None:
    version, namespace = options["istio_version"], options["prometheus_namespace"]
    _check_proxy(options)
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


def _check_proxy(options: Mapping[str, Any]) -> None:
    """Refuse wrong values for the scrape proxy, and values for one that is not planned."""
    image, source, asked = options["proxy_image"], options["proxy_certificates"], options["scrape_proxy"]
    if source not in (ISTIOD, CSI_DRIVER) and not _DIRECTORY.fullmatch(source):
        raise InputError(
            f"{source!a} is neither {ISTIOD}, {CSI_DRIVER} nor an absolute directory",
            where="--proxy-certificates",
            remedy="write a directory as /etc/certs",
        )
    if image:
        check_image(image, "--proxy-image")
    if asked or (asked is None and options["prometheus"] == "addon"):
        return
    for option, given in (("--proxy-image", image), ("--proxy-certificates", source != ISTIOD)):
        if given:
            raise InputError(
                "it has no effect, because no scrape proxy is planned",
                where=option,
                remedy=f"add --scrape-proxy, or omit {option}"
                if asked is None
                else f"omit {option}, or --no-scrape-proxy",
            )


def _check_scope(scope: str, mode: str, namespaces: Sequence[str], selector: str | None) -> None:
    """Refuse a choice of workloads that is smaller than the scope of what the plan changes."""
    if scope == "workload":
        return
    narrower = "--selector" if selector else "--namespace" if namespaces and scope == "mesh" else ""
    if narrower:
        raise InputError(
            f"a default for the {scope} also reaches workloads outside {narrower}",
            where="--scope",
            remedy=f"omit {narrower}, or use a smaller scope",
        )
    if mode == "legacy":
        raise InputError(
            f"Istio has no default for the {scope} in legacy mode",
            where="--scope",
            remedy="use --scope workload",
        )


def _check_chosen(observation: Observation, inventory: Inventory, intent: Intent) -> None:
    used = {each.namespace for each in observation.workloads}
    for name in intent.namespaces:
        if name not in used and inventory.get(Ref("", "Namespace", "", name)) is None:
            raise InputError(
                f"no object is in namespace {name!r}",
                where="--namespace",
                remedy="correct the name, or give a dump that includes it",
            )
    if intent.selector is not None and not any(
        selects(intent.selector, each.labels)
        and (not intent.namespaces or each.namespace in intent.namespaces)
        for each in observation.workloads
    ):
        raise InputError(
            "the selector matches no workload", where="--selector", remedy="correct it, or the namespace"
        )


class DetailedExitCode(click.Command):
    """A command that exits like terraform with --detailed-exitcode: 2 for changes, 1 for every error."""

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **options: Any
    ) -> click.Context:
        detailed = DETAILED in args
        try:
            return super().make_context(info_name, args, *more, **options)
        except click.UsageError as error:
            if not detailed:
                raise
            complain(usage_line(error))
            raise click.exceptions.Exit(1) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshscrapeError as error:
            if not ctx.params.get("detailed_exitcode"):
                raise
            fail(error)


def fail(error: MeshscrapeError) -> NoReturn:
    """Write one line to standard error and exit with 1."""
    complain(str(error))
    raise click.exceptions.Exit(1)
