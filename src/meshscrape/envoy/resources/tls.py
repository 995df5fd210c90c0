"""Build transport sockets: what both ends of a connection prove before any HTTP."""

from __future__ import annotations

from meshscrape.envoy.resources.values import Resource, typed

_TLS = "envoy.extensions.transport_sockets.tls.v3"
_NAME = "envoy.transport_sockets.tls"
_ALPN = ["h2", "http/1.1"]


def mutual_tls_server(certificate: Resource, roots: Resource) -> Resource:
    """Return a listener's transport socket that requires a client certificate below `roots`.

    Both arguments are secret references. Sessions are never resumed: resumption skips the check of the
    client's certificate, so an expired client would still get in.
    """
    common = _common(certificate, {"validation_context_sds_secret_config": roots}, _ALPN)
    context = typed(
        f"{_TLS}.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return {"name": _NAME, "typed_config": context}


def mutual_tls_client(certificate: Resource, roots: Resource, uri: str) -> Resource:
    """Return a cluster's transport socket that accepts only a server whose URI SAN is exactly `uri`."""
    expected = {"san_type": "URI", "matcher": {"exact": uri}}
    combined = {
        "default_validation_context": {"match_typed_subject_alt_names": [expected]},
        "validation_context_sds_secret_config": roots,
    }
    common = _common(certificate, {"combined_validation_context": combined}, ["http/1.1"])
    context = typed(f"{_TLS}.UpstreamTlsContext", common_tls_context=common, max_session_keys=0)
    return {"name": _NAME, "typed_config": context}


def _common(certificate: Resource, validation: Resource, alpn: list[str]) -> Resource:
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [certificate],
        "alpn_protocols": alpn,
        **validation,
    }
