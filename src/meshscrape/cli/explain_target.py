"""`meshscrape explain TARGET`: explain step by step why a target is down or refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from meshscrape.cli.live import chosen_access, progress
from meshscrape.cli.output import coloured, print_document
from meshscrape.cli.proxy import default_directory, domain_and_directory
from meshscrape.cli.status import state_path
from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port, parse_host_port
from meshscrape.istio.names import DOCUMENT_VERSION
from meshscrape.local.state import read_status
from meshscrape.prometheus.config import PROXY_DISCOVERY_PORT
from meshscrape.system.clock import utcnow
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.gather import ProxyPlace, explain_all
from meshscrape.verify.explain.standalone import explain_standalone
from meshscrape.verify.explain.target import find_targets
from meshscrape.verify.mesh_status import parse_mesh
from meshscrape.verify.probes import Timeouts
from meshscrape.verify.run import scraper_of

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN", "skipped": "-"}
_COLOURS = {"ok": "green", "note": "yellow", "broken": "red", "skipped": None}


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The options of `explain TARGET`."""

    state: Path | None
    scraper: str
    timeout: float
    proxy: str | None
    discovery: str | None
    token_file: Path | None
    credentials: tuple[str, ...]


def explain_target(target: str, options: TargetOptions, output: str) -> int:
    """Print the explanation of a target. Return 0 when it is healthy, else 1."""
    timeouts = Timeouts(options.timeout, options.timeout, options.timeout, 3 * options.timeout)
    if options.proxy is not None:
        if options.state is not None or options.scraper:
            raise InputError(
                "--proxy cannot be combined with --state or --as", where="--proxy", remedy="omit them"
            )
        found = _standalone(target, options.proxy, options, timeouts)
    elif options.discovery or options.token_file or options.credentials:
        raise InputError(
            "--discovery, --token-file and --credentials need --proxy", remedy="add --proxy IP:PORT"
        )
    else:
        mesh = parse_mesh(read_status(state_path(options.state)))
        targets = find_targets(mesh, target)
        found = asyncio.run(explain_all(mesh, scraper_of(mesh, options.scraper), targets, utcnow(), timeouts))
    return _print(found, output)


def explain_in_kubernetes(target: str, output: str) -> int:
    """Print the explanation of a pod of the cluster that the options name. Return 0 when it is healthy."""
    from meshscrape.cluster.verifying import explain_in_cluster

    access = chosen_access()
    with progress(access) as told:
        found = asyncio.run(explain_in_cluster(access, target, told))
    return _print(found, output)


def _print(found: tuple[Explanation, ...], output: str) -> int:
    if output == "text":
        shown = "\n\n".join("\n".join(_lines(each)) for each in found)
        click.echo(shown if coloured(sys.stdout) else click.unstyle(shown))
    else:
        print_document(explanation_document(found), output)
    return 1 if any(each.broken for each in found) else 0


def _standalone(
    target: str, proxy: str, options: TargetOptions, timeouts: Timeouts
) -> tuple[Explanation, ...]:
    """Explain a target of a proxy without a mesh."""
    if not options.credentials:
        raise InputError(
            "the proxy's credentials are needed", where="--credentials", remedy="name their directory"
        )
    host, port = parse_host_port(proxy, "--proxy")
    asked = (
        parse_host_port(options.discovery, "--discovery")
        if options.discovery
        else (host, PROXY_DISCOVERY_PORT)
    )
    place = ProxyPlace(host_port(host, port), options.token_file or default_directory() / "token")
    held = [domain_and_directory(each) for each in options.credentials]
    return asyncio.run(explain_standalone(place, host_port(*asked), held, target, utcnow(), timeouts))


def _lines(explanation: Explanation) -> Iterator[str]:
    """Yield the lines for one target: its steps, and the remedy of the broken one."""
    target = explanation.target
    title = f"{target.title} " if target.title else ""
    yield click.style(f"{title}{target.url if target.port else ''}".rstrip(), bold=True)
    width = max(len(step.name) for step in explanation.steps)
    for step in explanation.steps:
        mark = click.style(f"{_MARKS[step.outcome]:<7}", fg=_COLOURS[step.outcome])
        yield f"  {mark} {step.name:<{width}}  {step.seen}"
        if step.remedy:
            yield f"  {'':<7} {'':<{width}}  do: {step.remedy}"
    if explanation.broken is None:
        yield "  healthy"


def explanation_document(found: tuple[Explanation, ...]) -> dict[str, Any]:
    """Return the Explanation document (docs/explain.md)."""
    return {
        "apiVersion": DOCUMENT_VERSION,
        "kind": "Explanation",
        "healthy": not any(each.broken for each in found),
        "targets": [
            {
                "workload": each.target.title,
                "url": each.target.url,
                "spiffeId": each.target.expected,
                "healthy": each.broken is None,
                "broken": each.broken.name if each.broken else "",
                "steps": [
                    {"step": step.name, "outcome": step.outcome, "seen": step.seen, "remedy": step.remedy}
                    for step in each.steps
                ],
            }
            for each in found
        ],
    }
