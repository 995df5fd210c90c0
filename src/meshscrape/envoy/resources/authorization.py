"""Build RBAC filters: over the subject alternative names of client certificates, tokens and methods.

RBAC's `principal_name` would accept a certificate with several SANs, and a DNS SAN that spells an ID. The
matcher sees all SANs of one kind joined by commas, so an exact comparison means: this SAN and no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshscrape.envoy.resources.values import Resource, file_source, type_url, typed
from meshscrape.istio.allow_list import DnsScraper, Scraper, SpiffeScraper, TrustDomainScraper

_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
_ACTION = "envoy.config.rbac.v3.Action"
_INPUTS = "envoy.extensions.matching.common_inputs.ssl.v3"
# No comma, which could join two SANs, and no empty segment, which no workload's ID has.
_SPIFFE_PATH = r"(/[A-Za-z0-9._-]+)+"

NOT_LISTED = "not on the list of scrapers"
NO_MEMBER = "not a workload of this trust domain"


def scrapers_filter(scrapers: Sequence[Scraper]) -> Resource:
    """Return the RBAC filter that lets `scrapers` in and refuses every other client with 403."""
    return _only(scrapers, NOT_LISTED)


def members_filter(trust_domain: str) -> Resource:
    """Return the HTTP filter that refuses, with 403, clients without exactly one SPIFFE ID of `trust_domain`.

    The roots of a mesh may have signed other certificates too: those of a server, of a CA, of another trust
    domain. They prove that a root trusts the holder, not that the holder is a workload of this mesh.
    """
    config = _only([TrustDomainScraper(trust_domain)], NO_MEMBER)
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def bearer_filter(tokens: Sequence[str]) -> Resource:
    """Return the RBAC filter that admits requests with one of the bearer `tokens`; others get 403.

    The whole `authorization` header is compared; several such headers count as one, joined by commas.
    """
    headers = [
        {"header": {"name": "authorization", "string_match": {"exact": f"Bearer {token}"}}}
        for token in tokens
    ]
    policy = {"permissions": headers, "principals": [{"any": True}]}
    return typed(_RBAC, rules={"action": "ALLOW", "policies": {"token": policy} if headers else {}})


def only_plain_gets() -> Resource:
    """Return the RBAC filter that refuses methods other than GET ("method") and queries ("query") with 403.

    The names in quotes appear in the response code details. So no route needs to repeat these rules.
    """
    get = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
    query = {"header": {"name": ":path", "string_match": {"contains": "?"}}}
    everybody = [{"any": True}]
    policies = {
        "method": {"permissions": [{"not_rule": get}], "principals": everybody},
        "query": {"permissions": [query], "principals": everybody},
    }
    config = typed(_RBAC, rules={"action": "DENY", "policies": policies})
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def filter_resource(name: str, config: Resource) -> Resource:
    """Return the content of the ECDS file for `watched_filter`: the filter `name` with `config`."""
    extension = typed("envoy.config.core.v3.TypedExtensionConfig", name=name, typed_config=config)
    return {"resources": [extension]}


def scrapers_resource(name: str, scrapers: Sequence[Scraper]) -> Resource:
    """Return the content of the ECDS file with the allow list."""
    return filter_resource(name, scrapers_filter(scrapers))


def watched_filter(name: str, path: str) -> Resource:
    """Return the HTTP filter that follows the ECDS file at `path`, and refuses all requests until it is read.

    The file must exist when Envoy starts. A file that becomes invalid later leaves the last list in force.
    """
    discovery: Resource = {
        "config_source": file_source(path),
        "default_config": scrapers_filter(()),
        "apply_default_config_without_warming": False,
        "type_urls": [type_url(_RBAC)],
    }
    return {"name": name, "config_discovery": discovery}


def _only(scrapers: Sequence[Scraper], refusal: str) -> Resource:
    rules: Resource = {"on_no_match": {"action": _action(refusal, "DENY")}}
    if scrapers:
        rules["matcher_list"] = {"matchers": [_matcher(scraper) for scraper in scrapers]}
    return typed(_RBAC, matcher=rules)


def _matcher(scraper: Scraper) -> Resource:
    return {
        "predicate": _predicate(scraper),
        "on_match": {"action": _action(str(scraper), "ALLOW")},
    }


def _predicate(scraper: Scraper) -> Resource:
    match scraper:
        case SpiffeScraper(spiffe_id):
            return _san("UriSanInput", {"exact": str(spiffe_id)})
        case TrustDomainScraper(trust_domain):
            pattern = re.escape(f"spiffe://{trust_domain}") + _SPIFFE_PATH
            return _san("UriSanInput", _regex(pattern))
        case DnsScraper(name):
            # A certificate with a URI SAN belongs to a workload, even if it has DNS names too.
            any_uri = _san("UriSanInput", _regex(".*"))
            only_dns = [_san("DnsSanInput", {"exact": name}), {"not_matcher": any_uri}]
            return {"and_matcher": {"predicate": only_dns}}


def _san(kind: str, value: Resource) -> Resource:
    source = {"name": kind, "typed_config": typed(f"{_INPUTS}.{kind}")}
    return {"single_predicate": {"input": source, "value_match": value}}


def _regex(pattern: str) -> Resource:
    """Return a match of the whole input (xds.type.matcher.v3.RegexMatcher, which must name its engine)."""
    return {"safe_regex": {"google_re2": {}, "regex": pattern}}


def _action(name: str, action: str) -> Resource:
    return {"name": name, "typed_config": typed(_ACTION, name=name, action=action)}
