"""`meshscrape explain`: explain step by step why a target is down or refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from meshscrape.cli.proxy import default_directory, domain_and_directory
from meshscrape.cli.status import STATE, state_path
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


@click.command()
@click.argument("target")
@STATE
@click.option(
    "--as", "scraper", default="", metavar="NAMESPACE/NAME",
    help="Scrape as this workload.  [default: the mesh's Prometheus]",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, metavar="SECONDS",
    help="How long to wait for each connection and each answer, in seconds.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--proxy", metavar="IP:PORT",
    help="Explain a target of the `meshscrape proxy` that listens here; no mesh is needed.",
)  # fmt: skip
@click.option(
    "--discovery",
    metavar="IP:PORT",
    help="With --proxy: the address of its --discovery.  [default: same IP, port 15095]",
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="With --proxy: the file with its token.  [default: token in the proxy's default --dir]",
)  # fmt: skip
@click.option(
    "--credentials", "credentials", multiple=True, metavar="[TRUST_DOMAIN=]DIR",
    help="With --proxy: the directory of its --credentials (repeatable).",
)  # fmt: skip
def command(
    target: str, state: Path | None, scraper: str, timeout: float, output: str, proxy: str | None,
    discovery: str | None, token_file: Path | None, credentials: tuple[str, ...],
) -> int:  # fmt: skip
    """Explain why TARGET is down or refused, step by step, and what to do.

    TARGET is a workload (NAME or NAMESPACE/NAME: all its targets), ADDRESS:PORT, or a target's URL as
    Prometheus shows it. With --proxy, explain a target of a scrape proxy that runs without a mesh.
    Exit codes: 0 healthy, 1 something is wrong, 2 could not run.
    """
    timeouts = Timeouts(timeout, timeout, timeout, 3 * timeout)
    if proxy is not None:
        if state is not None or scraper:
            raise InputError(
                "--proxy cannot be combined with --state or --as", where="--proxy", remedy="leave them out"
            )
        found = _standalone(target, proxy, discovery, token_file, credentials, timeouts)
    elif discovery or token_file or credentials:
        raise InputError(
            "--discovery, --token-file and --credentials need --proxy", remedy="add --proxy IP:PORT"
        )
    else:
        mesh = parse_mesh(read_status(state_path(state)))
        targets = find_targets(mesh, target)
        found = asyncio.run(explain_all(mesh, scraper_of(mesh, scraper), targets, utcnow(), timeouts))
    if output == "json":
        click.echo(json.dumps(_document(found), indent=2))
    else:
        click.echo("\n\n".join("\n".join(_lines(each)) for each in found))
    return 1 if any(each.broken for each in found) else 0


def _standalone(
    target: str, proxy: str, discovery: str | None, token_file: Path | None, credentials: Sequence[str],
    timeouts: Timeouts,
) -> tuple[Explanation, ...]:  # fmt: skip
    """Explain a target of a proxy without a mesh."""
    if not credentials:
        raise InputError(
            "the proxy's credentials are needed", where="--credentials", remedy="name their directory"
        )
    host, port = parse_host_port(proxy, "--proxy")
    asked = parse_host_port(discovery, "--discovery") if discovery else (host, PROXY_DISCOVERY_PORT)
    place = ProxyPlace(host_port(host, port), token_file or default_directory() / "token")
    held = [domain_and_directory(each) for each in credentials]
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


def _document(found: tuple[Explanation, ...]) -> dict[str, Any]:
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
