"""Build the filters that refuse answers of servers with an RSA key below 2048 bits.

Envoy as a client has no filter that sees a server's certificate before it sends a request. But it can write
the certificate into a header of the answer, and compare that header before it passes any part of the answer
on. Envoy sees the server's own certificate only, not the CAs that the server sent with it. Envoy's authors
call the filter work in progress: an Envoy with it logs a warning for that at its start.
"""

from __future__ import annotations

from meshscrape.envoy.resources import rsa_keys
from meshscrape.envoy.resources.values import Resource, typed

STATUS = 526
"""The status of such an answer, for the conditions of Envoy's local replies; nothing else has it."""

_HEADER = "x-meshscrape-server-certificate"
_POLICY = "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy"


def shown_certificate() -> Resource:
    """Return the response header that `strong_servers_only` reads, for a route configuration.

    It replaces a header of this name that the server sent.
    """
    header = {"key": _HEADER, "value": "%UPSTREAM_PEER_CERT%"}
    return {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def strong_servers_only() -> tuple[Resource, Resource]:
    """Return the HTTP filters that replace an answer by STATUS when the server's RSA key is too short.

    The first one removes the header `shown_certificate` from what the client gets: answers pass the filters
    in the opposite order.
    """
    removal = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"response_mutations": [{"remove": _HEADER}]},
    )
    header = typed("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=_HEADER)
    short = {
        "input": {"name": "certificate", "typed_config": header},
        "value_match": {"safe_regex": {"google_re2": {}, "regex": rsa_keys.short_key()}},
    }
    refuse = {"action": {"name": "refuse", "typed_config": typed(_POLICY, status_code=STATUS)}}
    matchers = [{"predicate": {"single_predicate": short}, "on_match": refuse}]
    response = typed(
        "envoy.extensions.filters.http.custom_response.v3.CustomResponse",
        custom_response_matcher={"matcher_list": {"matchers": matchers}},
    )
    return (
        {"name": "envoy.filters.http.header_mutation", "typed_config": removal},
        {"name": "envoy.filters.http.custom_response", "typed_config": response},
    )
