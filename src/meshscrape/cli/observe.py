"""`meshscrape observe`: report what a cluster contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from meshscrape.cli.manifests import files_option, read_inventory
from meshscrape.cli.output import console, print_document
from meshscrape.cli.pipeline import FORMATS, pipeline_options, print_results, read_options
from meshscrape.errors import InputError
from meshscrape.istio.versions import parse_version
from meshscrape.observe import observe
from meshscrape.observe.model import ObservedJob, Pitfall, Severity
from meshscrape.observe.observation import Observation
from meshscrape.observe.observation_document import observation_document
from meshscrape.observe.reporting.results import pitfall_results
from meshscrape.observe.workload import ObservedWorkload

_STYLES = {"critical": "bold red", "error": "red", "warning": "yellow", "info": "cyan"}
# How many objects the table shows per pitfall; the documents have all.
_SHOWN = 5
# Width of the tables where there is no terminal.
_WIDTH = 80
_COLUMNS = (("WORKLOAD", 24), ("PROXY", 16), ("SECURE", 9), ("SCRAPED BY", 10), ("NEXT", None))
# The width of all columns but the last, with the gaps between them.
_OTHERS = sum(width + 2 for _, width in _COLUMNS if width)


@click.command()
@files_option
@click.option(
    "--istio-version",
    metavar="VERSION",
    help="Version of Istio, such as 1.31.0. Used only if no object shows the version.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", *FORMATS]),
    default="table",
    show_default=True,
    help="Print tables (wide: one line per row), or one document for programs.",
)
@pipeline_options
def command(
    files: tuple[str, ...], istio_version: str | None, output: str, fail_on: Severity | None,
    suppress: tuple[str, ...], ignore_annotations: bool,
) -> int:  # fmt: skip
    """Report what a cluster contains and which known pitfalls apply.

    The input is the current context's cluster, or with -f manifests or a dump of `kubectl get -A -o yaml`;
    docs/observe.md lists the kinds. Nothing is changed. Exit codes: 0 observed, 1 --fail-on found something,
    2 could not run.
    """
    if istio_version is not None and not parse_version(istio_version).known:
        raise InputError(
            f"{istio_version!r} is not a version of Istio",
            where="--istio-version",
            remedy="write it as 1.31.0",
        )
    asked = read_options(fail_on, suppress, ignore_annotations)
    inventory = read_inventory(files)
    observation = observe(inventory, istio_version=istio_version)
    results = asked.judge(pitfall_results(observation, inventory), inventory)
    counted = [pair for pair in zip(observation.pitfalls, results, strict=True) if not pair[1].suppressed]
    shown = replace(observation, pitfalls=tuple(pitfall for pitfall, _ in counted))
    if output in FORMATS:
        print_results(results, output, "observe", fail_on)
    elif output in ("json", "yaml"):
        hidden = tuple(each for each in results if each.suppressed)
        print_document(observation_document(shown, hidden), output)
    else:
        _print(shown, wide=output == "wide")
    return 1 if asked.failed(results) else 0


def _print(observation: Observation, *, wide: bool) -> None:
    """Print tables as wide as the terminal (`wide`: a line per workload), then pitfalls as whole lines."""
    target = console(wide=wide)
    width = target.width if wide or target.is_terminal else _WIDTH
    for part in _tables(observation, wide=wide, width=width):
        target.print(part, width=width)
        target.print()
    for line in _pitfalls(observation.pitfalls):
        target.print(line, soft_wrap=not target.is_terminal)


def _tables(observation: Observation, *, wide: bool, width: int) -> Iterator[RenderableType]:
    yield _planes(observation)
    yield (
        _workloads(observation, wide=wide, width=width)
        if observation.workloads
        else Text("No workloads in these objects.")
    )
    if observation.scrapers:
        yield _scrapers(observation)
    jobs = [job for job in observation.scrape_jobs if job.matches or not job.certain or job.static]
    if jobs:
        yield _scrape_jobs(jobs)
    if observation.unknown_listers:
        listers = ", ".join(f"{ref.namespace}/{ref.name}" for ref in observation.unknown_listers)
        yield Text(_plain(f"May list pods, and might read metrics: {listers}"))
    if observation.plaintext_components:
        components = [
            f"{each.component} ({each.ref.namespace}, port {each.port})"
            for each in observation.plaintext_components
        ]
        yield Text(_plain(f"Metrics that stay plaintext: {', '.join(components)}"))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: str, wide: bool = False) -> None:
    """Add a row of plain text, so that text from objects cannot act as markup or terminal controls."""
    one_line = (cell.replace("/\n", "/").replace("\n", " ") if wide else cell for cell in cells)
    table.add_row(*(Text(_plain(cell)) for cell in one_line))


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


def _planes(observation: Observation) -> RenderableType:
    if not observation.control_planes:
        return Text(
            "No control plane in these objects; give --istio-version, or add istio-system to the dump."
        )
    table = _table("CONTROL PLANE", "VERSION", "WHERE", "TRUST DOMAIN")
    for plane in observation.control_planes:
        tags = f"\ntags {', '.join(plane.tags)}" if plane.tags else ""
        source = (plane.version_source or "nothing").replace("/", "/\n")
        _add(
            table,
            f"{plane.revision} ({plane.flavour}){tags}",
            f"{plane.version}\nby {source}",
            "not in these objects" if plane.external else plane.namespace,
            plane.mesh.trust_domain,
        )
    return table


def _workloads(observation: Observation, *, wide: bool, width: int) -> Table:
    over = {job.name: job.over for job in observation.scrape_jobs}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, own in _COLUMNS:
        table.add_column(name, overflow="fold", width=None if wide else own)
    for workload in observation.workloads:
        kinds = Counter(over[name] for name in workload.scraped_by)
        scraped = "\n".join(f"{kind} ({count})" for kind, count in sorted(kinds.items())) or "none known"
        step = observation.next_steps.get(workload.ref, "")
        step = step if wide else _brief(step, width - _OTHERS)
        if not workload.in_mesh:
            _add(table, _title(workload), workload.kind, "", scraped, step, wide=wide)
            continue
        _add(
            table,
            _title(workload),
            f"{workload.kind}\n{_versions(workload)}{_mtls(workload)}",
            _secure_ports(workload),
            scraped,
            step,
            wide=wide,
        )
    return table


def _brief(step: str, width: int) -> str:
    """Return a step that a column can hold without breaking words; what it leaves out is listed below."""
    what, colon, _ = step.partition(": ")
    return f"{what}: see below" if colon and any(len(word) > width for word in step.split()) else step


def _title(workload: ObservedWorkload) -> str:
    title = f"{workload.namespace}/{workload.name}"
    if len(title) > _COLUMNS[0][1]:
        title = f"{workload.namespace}/\n{workload.name}"
    return title if workload.ref.kind == "Deployment" else f"{title}\n({workload.ref.kind})"


def _versions(workload: ObservedWorkload) -> str:
    now = ", ".join(map(str, workload.versions.running))
    after = str(workload.versions.after)
    return after if not now or now == after else f"{now}, after restart {after}"


def _secure_ports(workload: ObservedWorkload) -> str:
    metrics = workload.metrics
    lines = [*map(str, metrics.listening), metrics.mode, "hardened" if metrics.hardened else ""]
    return "\n".join(filter(None, lines))


def _mtls(workload: ObservedWorkload) -> str:
    if workload.is_gateway:
        return ""
    modes = [f"{port} {mode}" for port, mode in sorted(workload.mtls.ports.items())]
    return "".join(f"\n{mode}" for mode in (workload.mtls.default, *modes))


def _scrapers(observation: Observation) -> Table:
    table = _table("SCRAPER", "PROGRAM", "CERTIFICATE", "JOBS")
    for scraper in observation.scrapers:
        certificate = scraper.output_certs or ("none (ambient)" if scraper.ambient else "none")
        read = "not known" if scraper in observation.unread_scrapers else "known"
        _add(table, str(scraper.ref), scraper.product, certificate, read)
    return table


def _scrape_jobs(jobs: list[ObservedJob]) -> Table:
    table = _table("SCRAPE JOB", "OVER", "PORTS", "WORKLOADS", "DECLARED IN")
    for job in jobs:
        count = str(len(job.matches)) if job.certain else "unknown"
        _add(table, job.name, job.over, ",".join(map(str, job.ports)), count, str(job.ref))
    return table


def _pitfalls(pitfalls: tuple[Pitfall, ...]) -> Iterator[Text]:
    by_code: dict[tuple[str, str], list[Pitfall]] = {}
    for pitfall in pitfalls:
        by_code.setdefault((pitfall.severity, pitfall.code), []).append(pitfall)
    if not by_code:
        yield Text("No pitfalls found.")
    for (severity, code), same in by_code.items():
        count = f" ({len(same)})" if len(same) > 1 else ""
        yield Text.assemble((f"{severity.upper():<9}", _STYLES[severity]), (f"{code}{count}", "bold"))
        remedies = set()
        for pitfall in same[:_SHOWN]:
            yield Text(_plain(f"  {pitfall.ref}: {pitfall.text}" if pitfall.ref else f"  {pitfall.text}"))
            if pitfall.remedy not in remedies:
                yield Text(_plain(f"  → {pitfall.remedy}"), style="dim")
                remedies.add(pitfall.remedy)
        if len(same) > _SHOWN:
            yield Text(f"  … and {len(same) - _SHOWN} more: -o json shows them all")
