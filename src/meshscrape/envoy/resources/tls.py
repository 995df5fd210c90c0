"""Build transport sockets: what both ends of a connection prove before any HTTP."""

from __future__ import annotations

from meshscrape.envoy.resources.values import Resource, typed

_TLS = "envoy.extensions.transport_sockets.tls.v3"
_NAME = "envoy.transport_sockets.tls"
_ALPN = ["h2", "http/1.1"]
# A server's RSA key signs with SHA-512 only, for which RFC 8017 (9.1.1) needs a key of 1034 bits: a server
# with a key of 1024 bits gets no request. `server_keys` refuses the answers of keys of 1034 to 2047 bits.
_SIGNATURES = ["ecdsa_secp256r1_sha256", "ecdsa_secp384r1_sha384", "rsa_pss_rsae_sha512"]
# P-384 is not in Envoy's default. As a TLS 1.2 client it would refuse a server's certificate on that curve.
_CLIENT_CURVES = ["X25519MLKEM768", "X25519", "P-256", "P-384"]


def mutual_tls_server(certificate: Resource, roots: Resource) -> Resource:
    """Return a listener's transport socket that requires a client certificate below `roots`.

    `certificate` and `roots` are secret references. Sessions are never resumed: resumption skips the check
    of the client's certificate, so an expired client would still get in.
    """
    common = _common(certificate, {"validation_context_sds_secret_config": roots}, _ALPN, {})
    context = typed(
        f"{_TLS}.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return {"name": _NAME, "typed_config": context}


def mutual_tls_client(certificate: Resource, roots: Resource, *uris: str) -> Resource:
    """Return a cluster's transport socket that accepts only a server whose URI SAN is exactly one of `uris`.

    Envoy's default for a client is TLS 1.2 at most, which a server may refuse.
    """
    expected = [{"san_type": "URI", "matcher": {"exact": uri}} for uri in uris]
    combined = {
        "default_validation_context": {"match_typed_subject_alt_names": expected},
        "validation_context_sds_secret_config": roots,
    }
    parameters: Resource = {
        "tls_maximum_protocol_version": "TLSv1_3",
        "ecdh_curves": _CLIENT_CURVES,
        "signature_algorithms": _SIGNATURES,
    }
    common = _common(certificate, {"combined_validation_context": combined}, ["http/1.1"], parameters)
    context = typed(f"{_TLS}.UpstreamTlsContext", common_tls_context=common, max_session_keys=0)
    return {"name": _NAME, "typed_config": context}


def _common(certificate: Resource, validation: Resource, alpn: list[str], parameters: Resource) -> Resource:
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", **parameters},
        "tls_certificate_sds_secret_configs": [certificate],
        "alpn_protocols": alpn,
        **validation,
    }
