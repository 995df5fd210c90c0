"""Publish the workload's credentials on disk: in the agent's own directory and in the application's.

If the disk is full, Envoy gets a new certificate from a file system in memory. If that fails too, Envoy keeps
the previous certificate. The credentials are written to disk as soon as there is space.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from meshscrape.agent.issued import Issued, judge
from meshscrape.envoy.options import SCRAPERS_BUNDLE
from meshscrape.errors import MeshscrapeError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.spiffe.certificates import load_certificates
from meshscrape.spiffe.ids import SpiffeId
from meshscrape.system.files import publish, read_input, unpublish_from_memory
from meshscrape.system.followed import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """The directories for credentials: the agent's own, and the application's, if any."""

    credentials: Path
    output: Path | None = None
    output_mode: int = 0o600
    scrapers_ca: Path | None = None


class Publication:
    """The credentials to write, and whether they are on disk.

    The application's directory never points into memory: it may be a volume that other containers read.
    """

    def __init__(self, places: Places) -> None:
        self.problem = Problem("the newest certificate is kept in memory", logger)
        self._places = places
        self._wanted: tuple[Issued, bytes] | None = None
        self._in_use: tuple[Issued, bytes] | None = None
        self._written: tuple[Issued, bytes] | None = None

    @property
    def in_use(self) -> Issued | None:
        """Return the certificate that Envoy can read, on disk or in memory."""
        return self._in_use[0] if self._in_use else None

    def publish(self, issued: Issued, scraper_roots: bytes) -> None:
        """Write the credentials, or keep them in memory for `retry`.

        With `scraper_roots`, Envoy also accepts scrapers of these roots.
        """
        self._wanted = (issued, scraper_roots)
        self.retry()

    def retry(self) -> None:
        """Write credentials that are only in memory to disk."""
        if self._wanted is None or self._wanted is self._written:
            return
        issued, scraper_roots = self._wanted
        own = {CERTIFICATE_CHAIN_FILE: issued.chain, PRIVATE_KEY_FILE: issued.key, ROOTS_FILE: issued.bundle}
        bundle = {SCRAPERS_BUNDLE: issued.bundle + scraper_roots} if scraper_roots else {}
        try:
            publish(self._places.credentials, own | bundle)
            self._in_use = self._wanted
            if self._places.output is not None:
                publish(self._places.output, own, self._places.output_mode)
        except MeshscrapeError as error:
            self.problem.note(error)
            self._use_from_memory(own | bundle)
            return
        self._written = self._wanted
        self.problem.clear()

    def _use_from_memory(self, files: Mapping[str, bytes]) -> None:
        """Give Envoy the credentials without disk space: change only a link in the directory."""
        if self._in_use is self._wanted:
            return
        with contextlib.suppress(MeshscrapeError):
            publish(self._places.credentials, files, in_memory=True)
            self._in_use = self._wanted

    def close(self) -> None:
        """Remove the files in memory; files on disk stay for the next agent."""
        unpublish_from_memory(self._places.credentials)

    def left_by_predecessor(self, identity: SpiffeId, roots: bytes, now: datetime) -> Issued | None:
        """Return an earlier agent's certificate, if this agent would accept it from a CA of `roots`."""
        directory = self._places.credentials
        try:
            chain, key, bundle = (
                read_input(directory / name, "the predecessor's credentials")
                for name in (CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE)
            )
            issued = judge(key, chain, roots, expected=identity, now=now, where=str(directory))
            begin = load_certificates(chain, str(directory))[0].not_valid_before_utc
        except MeshscrapeError:
            return None
        # The time of receipt was not recorded. Use notBefore instead: at worst the agent renews early.
        return replace(issued, bundle=bundle, received_at=begin)
