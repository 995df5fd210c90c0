"""`meshscrape curl`: send a request with a workload's credentials and verify the server's SPIFFE ID."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshscrape.cli.status import STATE, state_path
from meshscrape.errors import InputError
from meshscrape.local.request import WorkloadHttpRequest, answered, check_url, endpoint_of
from meshscrape.local.state import read_status
from meshscrape.system.http.client import FetchedResponse

HTTP_ERROR = 22


@click.command()
@click.argument("url")
@click.option(
    "--as", "caller", required=True, metavar="NS/SA", help="The workload whose certificate is used."
)
@STATE
@click.option("-X", "--request", "method", metavar="METHOD", help="[default: GET, with -d POST]")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'")
@click.option("-d", "--data", metavar="TEXT", help="Send this body.")
@click.option("-i", "--include", is_flag=True, help="Also print status line and headers of the response.")
@click.option("-v", "--verbose", is_flag=True, help="Show what is sent and received on stderr.")
@click.option("-m", "--max-time", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True,
              help="Seconds to wait for the connection and for each part of the answer.")  # fmt: skip
def command(
    url: str, caller: str, state: Path | None, method: str | None, headers: tuple[str, ...],
    data: str | None, include: bool, verbose: bool, max_time: float,
) -> int:  # fmt: skip
    """Request URL as the workload NS/SA. The host may be a pod address, NAME or NAME.NAMESPACE.

    With https:// the request carries the workload's certificate, and nothing is sent unless the server is
    trusted and has exactly the SPIFFE ID that the mesh expects at that address. http:// is plain text.
    Redirects are not followed. Exit codes: 0 answered, 22 status of 400 or more (as curl -f), 2 could not run
    or no answer.
    """
    request = WorkloadHttpRequest(
        method=method or ("POST" if data is not None else "GET"),
        url=url,
        headers=_headers(headers, data),
        body=(data or "").encode(),
    )
    check_url(url)
    document = read_status(state_path(state))
    credentials = Path(_workload_of(document, caller)["credentials"])
    endpoint = endpoint_of(url, document)

    def tell(line: str) -> None:
        if verbose:
            print(line, file=sys.stderr)

    tell(f"* connecting to {endpoint.address}:{endpoint.port} as {caller}")

    async def ask() -> int:
        async with answered(endpoint, request, credentials, patience=max_time, tell=tell) as answer:
            await _print(answer, include, verbose)
        return answer.status

    return HTTP_ERROR if asyncio.run(ask()) >= 400 else 0


async def _print(answer: FetchedResponse, include: bool, verbose: bool) -> None:
    version, reason = answer.head
    head = [f"HTTP/{version} {answer.status} {reason}".rstrip()]
    head += [f"{name}: {value}" for name, value in answer.raw_headers]
    if verbose:
        print("\n".join(f"< {line}" for line in head), file=sys.stderr)
    output = sys.stdout.buffer
    if include:
        output.write(("\n".join(head) + "\n\n").encode())
    async for chunk in answer.body:
        output.write(chunk)
    output.flush()


def _workload_of(document: Mapping[str, Any], caller: str) -> Mapping[str, Any]:
    """Return a workload that runs as NS/SA; an InputError lists the existing ones."""
    namespace, slash, account = caller.partition("/")
    suffix = f"/ns/{namespace}/sa/{account}"
    for workload in document["workloads"]:
        if slash and workload["spiffeId"] == f"spiffe://{document['trustDomain']}{suffix}":
            return dict(workload)
    known = sorted({"/".join(w["spiffeId"].split("/")[-3::2]) for w in document["workloads"]})
    raise InputError(
        f"no workload runs as {caller!r}", where="--as", remedy=f"use one of: {', '.join(known) or 'none'}"
    )


def _headers(lines: tuple[str, ...], data: str | None) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise InputError(f"{line!r} is not a header", where="-H", remedy="write 'Name: value'")
        headers.append((name.strip(), value.strip()))
    given = {name.lower() for name, _ in headers}
    if data is not None and "content-type" not in given:
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))
    if "accept" not in given:
        headers.insert(0, ("Accept", "*/*"))
    return headers
