"""Let Envoy follow credentials whose writer overwrites files in place.

Envoy reads certificate, key and roots again when a file is renamed into their directory. spiffe-helper does
not rename. Its files are therefore links in a directory of the proxy, and one link is made anew by a rename
when the files have changed and belong together. The key is not copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from meshscrape.errors import InputError, MeshscrapeError
from meshscrape.istio.layouts import Layout
from meshscrape.spiffe.certificates import key_matches, load_certificates
from meshscrape.spiffe.keys import load_key
from meshscrape.system.credentials import layout_of, read_credential_files
from meshscrape.system.files import link_anew, private_dir
from meshscrape.system.followed import Problem, Stamp, stamp_of

LOOK = 1.0
_Stamps = tuple[Stamp | None, ...]


class LinkedCredentials:
    """The directories of credentials as Envoy is to read them: those written in place through links."""

    def __init__(self, own: Path, credentials: Mapping[str, Path]) -> None:
        """Make the links in `own`. `credentials` maps trust domains to directories."""
        self.places: dict[str, tuple[str, Layout]] = {}
        self._linked: list[_Linked] = []
        for number, (name, path) in enumerate(sorted(credentials.items())):
            layout, directory = layout_of(path), path
            if layout.in_place:
                directory = own / f"credentials-{number}"
                self._linked.append(_Linked(path, directory, layout))
            self.places[name] = str(directory), layout

    async def follow(self) -> None:
        """Look for changed files for ever."""
        while True:
            await asyncio.sleep(LOOK)
            for files in self._linked:
                files.look()


class _Linked:
    def __init__(self, source: Path, directory: Path, layout: Layout) -> None:
        self._source, self._directory, self._layout = source, directory, layout
        self._problem = Problem("Envoy goes on with the last credentials")
        self._used = self._seen = self._stamps()
        private_dir(directory)
        for name in layout[:3]:
            link_anew(directory / name, str(source / name))

    def look(self) -> None:
        """Let Envoy read the files again if they have changed, are not being written, and belong together."""
        stamps, before = self._stamps(), self._seen
        self._seen = stamps
        if stamps != before or stamps == self._used:
            return
        try:
            self._check()
        except MeshscrapeError as error:
            self._problem.note(error)
            return
        self._problem.clear()
        self._used = stamps
        name = self._layout.chain
        link_anew(self._directory / name, str(self._source / name))

    def _check(self) -> None:
        files, where = read_credential_files(self._source), str(self._source)
        leaf = load_certificates(files.chain, where)[0]
        if not key_matches(load_key(files.key, where), leaf):
            raise InputError("the certificate and the key do not belong together", where=where)

    def _stamps(self) -> _Stamps:
        return tuple(stamp_of(self._source / name) for name in self._layout[:3])
