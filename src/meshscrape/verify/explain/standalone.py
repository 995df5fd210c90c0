"""Ask a scrape proxy without a mesh what it announces, and explain its targets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from meshscrape.errors import InputError, UnavailableError
from meshscrape.spiffe.certificates import identity_of, load_certificates
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.files import read_input
from meshscrape.system.http.client import FetchLimits, fetch
from meshscrape.verify.explain.announced import (
    Announced,
    Discovered,
    announced_targets,
    parse_http_sd,
    parse_index,
)
from meshscrape.verify.explain.explanation import Explanation
from meshscrape.verify.explain.gather import ProxyPlace, explain_proxied, read_files
from meshscrape.verify.explain.scraper import ScraperFiles
from meshscrape.verify.observations import printable
from meshscrape.verify.probes import Timeouts

_RUNNING = (
    "check that `meshscrape proxy` runs and that this is its --discovery; its stderr tells why it ended"
)
_TOKEN = "name the file that the proxy was started with (--token-file; by default token, in its --dir)"  # noqa: S105


async def explain_standalone(
    proxy: ProxyPlace, discovery: str, credentials: Sequence[tuple[str, Path]], text: str, now: datetime,
    timeouts: Timeouts,
) -> tuple[Explanation, ...]:  # fmt: skip
    """Explain the targets that `text` names among those that HTTP SD at `discovery` (`host:port`) announces.

    `credentials` are the proxy's, by the trust domain of their targets (empty: the certificate's own). Raises
    InputError for a `text` that names nothing. Never raises for what the peers do.
    """
    discovered = await discover(discovery, proxy.token_file, timeouts)
    held = await asyncio.to_thread(lambda: [(name, read_files(str(place))) for name, place in credentials])
    return tuple(
        [
            await explain_proxied(proxy, files_for(target.identity, held), target, now, timeouts)
            for target in announced_targets(discovered, text)
        ]
    )


async def discover(address: str, token_file: Path, timeouts: Timeouts) -> Discovered:
    """Return everything that the discovery at `address` announces in all jobs, or why it does not answer."""
    limits = FetchLimits(timeouts.connect, timeouts.answer, timeouts.total, body_bytes=1 << 28)
    try:
        token = read_input(token_file, "the proxy's token").decode("ascii", "replace").strip()
    except InputError as error:
        return Discovered(address, problem=str(error), remedy=_TOKEN)
    headers = {"Authorization": f"Bearer {token}"}

    async def ask(path: str) -> bytes:
        status, body = await fetch(f"http://{address}{path}", headers=headers, limits=limits)
        if status != 200:
            words = f"HTTP {status} ({printable(body)})"
            raise UnavailableError(words, where=f"http://{address}{path}", status=status)
        return body

    try:
        index = parse_index(await ask("/targets"))
        announced: list[Announced] = []
        for job in index.jobs:
            announced += parse_http_sd(job, await ask(f"/targets/{job}"))
    except UnavailableError as error:
        remedy = _TOKEN if error.status == 401 else _RUNNING
        return Discovered(address, problem=f"HTTP SD does not answer: {error}", remedy=remedy)
    except ValueError as error:
        return Discovered(address, problem=f"HTTP SD at {address}: {error}", remedy=_RUNNING)
    return Discovered(address, tuple(announced), doubts=index.doubts, contested=index.contested)


def files_for(expected: SpiffeId | None, held: Sequence[tuple[str, ScraperFiles]]) -> ScraperFiles:
    """Return the credentials that the proxy uses for a target, or files with a `problem` when it has none."""
    domains = [name or _own_trust_domain(files) for name, files in held]
    if expected is None:
        return held[0][1]
    for domain, (_, files) in zip(domains, held, strict=True):
        # The `problem` of files that cannot be read tells what is wrong.
        if domain == expected.trust_domain or (not domain and len(held) == 1):
            return files
    known = ", ".join(domain or "?" for domain in domains)
    return ScraperFiles(
        held[0][1].directory,
        problem=f"no credentials for the trust domain {expected.trust_domain}, only for {known}",
    )


def _own_trust_domain(files: ScraperFiles) -> str:
    try:
        return identity_of(load_certificates(files.chain, files.directory)[0]).trust_domain
    except InputError:
        return ""
