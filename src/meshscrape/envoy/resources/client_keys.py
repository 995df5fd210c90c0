"""Build the filters that refuse clients with an RSA key below 2048 bits: once per connection, or per request.

The filters of a connection see the client's own certificate. The filter of a request also sees the CAs that
the client sent. It works in every Envoy of Istio. But Envoy must then write the client's whole chain into
`CLIENT_HEADER`, and applications expect another form of that header. So this filter is for the metrics ports
only.
"""

from __future__ import annotations

from meshscrape.envoy.resources import rsa_keys
from meshscrape.envoy.resources.values import Resource, typed

CLIENT_HEADER = "x-forwarded-client-cert"
"""The header into which Envoy writes the client's chain. Hide it from the server behind Envoy."""
SHORT_KEY = "RSA key below 2048 bits"
"""The name of the policy, as it appears in the response code details (with underscores)."""
STATISTICS = "client_keys."

_CERTIFICATE = "meshscrape.client_certificate"
_FILTER_STATE = "envoy.extensions.filters.network.set_filter_state.v3.Config"
_NETWORK_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC"
_HTTP_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"


def strong_keys_only() -> tuple[Resource, Resource]:
    """Return the filters that close a TLS connection whose client has an RSA key below 2048 bits.

    They act once per connection, before its first byte reaches the next filter. Envoy counts the connections
    that they close in `client_keys.rbac.denied`.
    """
    certificate = {
        "object_key": _CERTIFICATE,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_PEER_CERT%"}},
    }
    state = typed(_FILTER_STATE, on_downstream_tls_handshake=[certificate])
    # Without the first part, a certificate that Envoy could not write as text would pass.
    readable, short = _state({"prefix": rsa_keys.CERTIFICATE}), _state(_regex(rsa_keys.short_key()))
    strong = {"and_ids": {"ids": [readable, {"not_id": short}]}}
    policy = {"permissions": [{"any": True}], "principals": [strong]}
    rules = {"action": "ALLOW", "policies": {"strong key": policy}}
    return (
        {"name": "envoy.filters.network.set_filter_state", "typed_config": state},
        {
            "name": "envoy.filters.network.rbac",
            "typed_config": typed(_NETWORK_RBAC, stat_prefix=STATISTICS, rules=rules),
        },
    )


def strong_chains_only() -> Resource:
    """Return the HTTP filter that refuses (403) a client whose chain has an RSA key below 2048 bits.

    It reads `CLIENT_HEADER`, into which the connection manager must write the client's chain.
    """
    unseen = {"not_rule": _header({"contains": rsa_keys.CERTIFICATE})}
    short = _header(_regex(rsa_keys.short_key()))
    policy = {"permissions": [short, unseen], "principals": [{"any": True}]}
    config = typed(_HTTP_RBAC, rules={"action": "DENY", "policies": {SHORT_KEY: policy}})
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def _state(match: Resource) -> Resource:
    return {"filter_state": {"key": _CERTIFICATE, "string_match": match}}


def _header(match: Resource) -> Resource:
    return {"header": {"name": CLIENT_HEADER, "string_match": match}}


def _regex(pattern: str) -> Resource:
    return {"safe_regex": {"regex": pattern}}
