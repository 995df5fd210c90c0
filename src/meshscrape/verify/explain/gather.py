"""Observe everything between the scraper and a target, for `explanation` to judge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError, UnavailableError
from meshscrape.istio.host_port import parse_host_port
from meshscrape.spiffe.bundles import load_bundle
from meshscrape.spiffe.certificates import identity_of, key_matches, load_certificates
from meshscrape.spiffe.keys import load_key
from meshscrape.system.credentials import read_credential_files
from meshscrape.system.files import read_input
from meshscrape.verify.explain.explanation import Explanation, Observed, ProxyAnswer, explain
from meshscrape.verify.explain.scraper import ScraperFiles
from meshscrape.verify.explain.sources import drops_lines
from meshscrape.verify.explain.target import ExplainTarget
from meshscrape.verify.identities import IdentityFiles, tls_contexts
from meshscrape.verify.mesh_status import MeshStatus, MeshWorkload
from meshscrape.verify.observations import NotObserved, Observation, Presented
from meshscrape.verify.probe import PLAIN, SCRAPER, WHOLE, Probe
from meshscrape.verify.probes import Timeouts, TlsContexts, observe
from meshscrape.verify.prometheus_api import scraping
from meshscrape.verify.prometheus_checks import Scraping


@dataclass(frozen=True, slots=True)
class ProxyPlace:
    """Where a scrape proxy takes scrapes (`host:port`), and the file with its bearer token."""

    address: str
    token_file: Path


async def explain_all(
    mesh: MeshStatus,
    scraper: MeshWorkload,
    targets: tuple[ExplainTarget, ...],
    now: datetime,
    timeouts: Timeouts,
) -> tuple[Explanation, ...]:
    """Visit every target as `scraper`, and explain what was seen. Never raises for what the peers do."""
    files = await asyncio.to_thread(read_files, scraper.output_certificates or scraper.credentials)
    contexts = _contexts(files)
    scraping = await _prometheus(mesh)
    proxy = ProxyPlace(mesh.scrape_proxy, Path(mesh.proxy_token)) if mesh.scrape_proxy else None
    explanations = []
    for target in targets:
        observed = await _observe(proxy, target, files, contexts, timeouts)
        # Judging reads the whole body; in a thread it does not delay the next visits.
        explanations.append(
            await asyncio.to_thread(explain, target, replace(observed, prometheus=scraping), now)
        )
    return tuple(explanations)


async def explain_proxied(
    proxy: ProxyPlace, files: ScraperFiles, target: ExplainTarget, now: datetime, timeouts: Timeouts
) -> Explanation:
    """Explain a target of a scrape proxy without a mesh. Prometheus is not asked."""
    return explain(target, await _observe(proxy, target, files, _contexts(files), timeouts), now)


def read_files(directory: str) -> ScraperFiles:
    """Return the scraper's files, all of one generation. `problem` says what cannot be read."""
    try:
        return ScraperFiles(directory, *read_credential_files(Path(directory)))
    except InputError as error:
        return ScraperFiles(directory, problem=f"{error.where}: {error.what}")


def _contexts(files: ScraperFiles) -> TlsContexts | None:
    """Return how to open TLS with these files, or None when they cannot be used (the steps tell why)."""
    try:
        chain = load_certificates(files.chain, files.directory)
        if not key_matches(load_key(files.key, files.directory), chain[0]):
            return None
        load_bundle(files.roots, files.directory)
        own = IdentityFiles(files.chain, files.key, identity_of(chain[0]), chain[0].not_valid_after_utc)
        return tls_contexts(files.roots, own)
    except MeshscrapeError:
        return None


async def _observe(
    place: ProxyPlace | None, target: ExplainTarget, files: ScraperFiles, contexts: TlsContexts | None,
    timeouts: Timeouts,
) -> Observed:  # fmt: skip
    # An address that discovery does not know gets no connection, so that no certificate is shown to it.
    if target.fault or contexts is None:
        return Observed(files)
    proxy = await _ask_proxy(place, target, timeouts) if place else None
    probe = Probe(target.address, target.port, SCRAPER, path=target.path, limit=WHOLE)
    handshake = await observe(replace(probe, kind="certificate"), contexts, timeouts)
    answer: Observation | None = None
    again: Observation | None = None
    if isinstance(handshake, Presented):
        answer = await observe(probe, contexts, timeouts)
        if await asyncio.to_thread(drops_lines, answer):
            again = await observe(probe, contexts, timeouts)
    return Observed(files, proxy, handshake, answer, again)


async def _ask_proxy(place: ProxyPlace, target: ExplainTarget, timeouts: Timeouts) -> ProxyAnswer:
    """Make a scrape through the proxy, as Prometheus does."""
    try:
        token = read_input(place.token_file, "the proxy's token").decode("ascii", "replace").strip()
        host, port = parse_host_port(place.address)
    except InputError as error:
        return ProxyAnswer(place.address, NotObserved(str(error)))
    probe = Probe(
        host, port, PLAIN, path=f"http://{target.authority}{target.path}",
        headers=(("Authorization", f"Bearer {token}"),),
    )  # fmt: skip
    return ProxyAnswer(place.address, await observe(probe, None, timeouts))


async def _prometheus(mesh: MeshStatus) -> Scraping | str | None:
    if not mesh.prometheus_url:
        return None
    try:
        return await scraping(mesh)
    except UnavailableError as error:
        return str(error)
