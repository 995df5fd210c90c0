"""Read a directory of credentials in one of the known layouts (`istio/layouts.py`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from meshscrape.errors import InputError
from meshscrape.istio.layouts import Layout, layout_among
from meshscrape.system.files import DATA_LINK, read_input

_ATTEMPTS = 5


class CredentialFiles(NamedTuple):
    """The PEM texts of one generation; a file that was not requested is empty."""

    chain: bytes
    key: bytes
    roots: bytes


def layout_of(directory: Path) -> Layout:
    """Return the names of the files in a directory; Istio's names if it has no certificate yet."""
    try:
        return layout_among(os.listdir(directory))
    except OSError:
        return layout_among(())


def read_credential_files(directory: Path, *, key: bool = True, roots: bool = True) -> CredentialFiles:
    """Return the files of a directory of credentials, all from the same generation.

    `key` and `roots` say whether these are read too. Raises InputError, with the usual path of the file, when
    one cannot be read. The contents are not checked.
    """
    layout = layout_of(directory)
    wanted = {
        "the certificate": layout.chain,
        "the private key": layout.key if key else "",
        "the root certificates": layout.roots if roots else "",
    }
    for attempt in range(_ATTEMPTS):
        generation = Path(os.path.realpath(directory / DATA_LINK))
        place = generation if generation.is_dir() else directory
        try:
            contents = [read_input(place / name, what) if name else b"" for what, name in wanted.items()]
        except InputError as error:
            # Meanwhile the agent may have switched to its next generation and removed this one.
            if attempt + 1 < _ATTEMPTS and place != directory:
                continue
            name = Path(str(error.where)).name
            raise InputError(
                error.what, where=str(directory / name), remedy=error.remedy, code=error.code
            ) from error
        return CredentialFiles(*contents)
    raise AssertionError("every attempt returns or raises")
