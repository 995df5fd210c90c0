"""Read a directory of credentials, as agents publish it and as Istio writes it to OUTPUT_CERTS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from meshscrape.errors import InputError
from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE
from meshscrape.system.files import DATA_LINK, read_input

_ATTEMPTS = 5
_WHAT = {
    CERTIFICATE_CHAIN_FILE: "the certificate",
    PRIVATE_KEY_FILE: "the private key",
    ROOTS_FILE: "the root certificates",
}


class CredentialFiles(NamedTuple):
    """The PEM texts of one generation; a file that was not requested is empty."""

    chain: bytes
    key: bytes
    roots: bytes


def read_credential_files(directory: Path, *, key: bool = True, roots: bool = True) -> CredentialFiles:
    """Return the files of a directory of credentials, all from the same generation.

    `key` and `roots` say whether these are read too. Raises InputError, with the usual path of the file, when
    one cannot be read. The contents are not checked.
    """
    names = (CERTIFICATE_CHAIN_FILE, *([PRIVATE_KEY_FILE] if key else []), *([ROOTS_FILE] if roots else []))
    for attempt in range(_ATTEMPTS):
        generation = Path(os.path.realpath(directory / DATA_LINK))
        place = generation if generation.is_dir() else directory
        try:
            found = {name: read_input(place / name, _WHAT[name]) for name in names}
        except InputError as error:
            # Meanwhile the agent may have switched to its next generation and removed this one.
            if attempt + 1 < _ATTEMPTS and place != directory:
                continue
            name = Path(str(error.where)).name
            raise InputError(
                error.what, where=str(directory / name), remedy=error.remedy, code=error.code
            ) from error
        return CredentialFiles(*(found.get(name, b"") for name in _WHAT))
    raise AssertionError("every attempt returns or raises")
