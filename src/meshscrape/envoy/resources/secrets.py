"""Build the secrets that Envoy reads from files (file SDS).

`watched_directory` stands inside each Secret: when a rename inside that directory switches its data link,
Envoy reads certificate, key and roots again. Watching only the SDS file would leave them stale.
"""

from __future__ import annotations

from meshscrape.envoy.resources.values import Resource, file_source, typed

_SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105


def certificate_secret(name: str, directory: str, chain: str, key: str) -> Resource:
    """Return the SDS response with certificate chain and key, two files of the watched `directory`."""
    certificate = {
        "certificate_chain": {"filename": f"{directory}/{chain}"},
        "private_key": {"filename": f"{directory}/{key}"},
        "watched_directory": {"path": directory},
    }
    return {"resources": [typed(_SECRET, name=name, tls_certificate=certificate)]}


def roots_secret(name: str, directory: str, bundle: str) -> Resource:
    """Return the SDS response with the trusted roots, a PEM file of the watched `directory`."""
    validation = {
        "trusted_ca": {"filename": f"{directory}/{bundle}"},
        "watched_directory": {"path": directory},
    }
    return {"resources": [typed(_SECRET, name=name, validation_context=validation)]}


def secret_reference(name: str, path: str) -> Resource:
    """Return the reference of a TLS context to the secret `name` in the SDS file at `path`."""
    return {"name": name, "sds_config": file_source(path)}
