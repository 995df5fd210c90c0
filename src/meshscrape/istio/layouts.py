"""The names of the files in a directory of credentials, by who writes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from meshscrape.istio.names import CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE


class Layout(NamedTuple):
    """The names of the files in a directory of credentials.

    `in_place`: the writer overwrites the files, so no rename tells a reader that they changed.
    """

    chain: str
    key: str
    roots: str
    in_place: bool = False


# The agents of Istio (OUTPUT_CERTS) and meshscrape.
ISTIO = Layout(CERTIFICATE_CHAIN_FILE, PRIVATE_KEY_FILE, ROOTS_FILE)
# The defaults of cert-manager's csi-driver-spiffe (`--file-name-…`); its roots need `--source-ca-bundle`.
CERT_MANAGER = Layout("tls.crt", "tls.key", "ca.crt")
# The names in spiffe-helper's documentation (`svid_file_name` and so on).
SPIFFE_HELPER = Layout("svid.pem", "svid_key.pem", "svid_bundle.pem", in_place=True)


def layout_among(present: Collection[str]) -> Layout:
    """Return the layout of a directory with these files: the first with a certificate, else Istio's."""
    return next((each for each in (ISTIO, CERT_MANAGER, SPIFFE_HELPER) if each.chain in present), ISTIO)
