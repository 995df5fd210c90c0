"""Which chains are accepted, and why others are not; tests/integration/test_chains.py asks Envoy too."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.chains import Purpose, issuing_root, path_to_root
from support.chains import CLIENT, END, HOUR, Chain, Maker, cases

CASES = cases()
# What is wrong for a client and for a server; every other case is accepted for both.
REFUSED = {
    "a DNS name that ends like a permitted one": ("name-constraints", "name-constraints"),
    "a URI whose path looks like another": ("name-constraints", "name-constraints"),
    "a constraint above an intermediate without one": ("name-constraints", "name-constraints"),
    "an e-mail address at the dot itself": ("name-constraints", "name-constraints"),
    "an intermediate whose subject is excluded": ("name-constraints", "name-constraints"),
    "another e-mail address of that host": ("name-constraints", "name-constraints"),
    "a missing intermediate": ("untrusted", "untrusted"),
    "an expired leaf": ("expired", "expired"),
    "a leaf that is not valid yet": ("not-yet-valid", "not-yet-valid"),
    "an expired intermediate": ("expired", "expired"),
    "an intermediate that is not valid yet": ("not-yet-valid", "not-yet-valid"),
    "an expired root": ("expired", "expired"),
    "a root that is not valid yet": ("not-yet-valid", "not-yet-valid"),
    "an intermediate without basic constraints": ("not-a-ca", "not-a-ca"),
    "an intermediate that is no CA": ("not-a-ca", "not-a-ca"),
    "an intermediate without the right to sign": ("untrusted", "untrusted"),
    "path length 0 above an intermediate": ("path-length", "path-length"),
    "a self-issued intermediate with path length 0 above one": ("path-length", "path-length"),
    "a leaf with an unknown critical extension": ("extension", "extension"),
    "an intermediate with an unknown critical extension": ("extension", "extension"),
    "a root without the right to sign": ("untrusted", "untrusted"),
    "a leaf for clients alone": ("", "purpose"),
    "a leaf for servers alone": ("purpose", ""),
    "a leaf for any use": ("purpose", "purpose"),
    "a leaf for code": ("purpose", "purpose"),
    "a leaf for clients and code": ("", "purpose"),
    "an intermediate for servers alone": ("purpose", ""),
    "an intermediate for any use": ("purpose", "purpose"),
    "a leaf for encipherment alone": ("purpose", "purpose"),
    "a leaf for agreement alone": ("purpose", "purpose"),
    "a leaf for signing certificates alone": ("purpose", "purpose"),
    "URIs of another trust domain permitted": ("name-constraints", "name-constraints"),
    "URIs of this trust domain excluded": ("name-constraints", "name-constraints"),
    "URIs below this very domain permitted": ("name-constraints", "name-constraints"),
    "a constraint of the root": ("name-constraints", "name-constraints"),
    "a DNS name that is not permitted": ("name-constraints", "name-constraints"),
    "a DNS name that is excluded": ("name-constraints", "name-constraints"),
    "a DNS name below a dot": ("name-constraints", "name-constraints"),
    "an IP address with constraints on addresses": ("name-constraints", "name-constraints"),
    "a subject that is not permitted": ("name-constraints", "name-constraints"),
    "a subject that is excluded": ("name-constraints", "name-constraints"),
    "an e-mail address that is not permitted": ("name-constraints", "name-constraints"),
    "a URI without a host": ("name-constraints", "name-constraints"),
    "RSA 1024": ("weak-key", "weak-key"),
    "an intermediate of RSA 1024": ("weak-key", "weak-key"),
    "a root of RSA 1024": ("weak-key", "weak-key"),
    "RSA 2047": ("weak-key", "weak-key"),
    "a leaf signed with MD5": ("signature", "signature"),
    "a damaged signature": ("signature", "signature"),
    "a leaf that signed itself": ("untrusted", "untrusted"),
    "the first of two roots of one name, without key identifiers": ("signature", "signature"),
    "the second of two roots of one name, without key identifiers": ("signature", "signature"),
    "another mesh's root": ("untrusted", "untrusted"),
}


def fault(chain: Chain, purpose: Purpose) -> str:
    """The code of what is wrong with a chain, empty when it is accepted."""
    try:
        path_to_root(chain.certificates, chain.roots, datetime.now(UTC), purposes=[purpose], where="here")
    except InputError as error:
        assert error.where == "here" and error.remedy
        return error.code
    return ""


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_chain_has_its_verdict(name: str) -> None:
    """Accepted, or refused for the reason that is right, for each purpose."""
    chain = CASES[name]
    found = fault(chain, Purpose.CLIENT), fault(chain, Purpose.SERVER)
    assert found == REFUSED.get(name, ("", ""))


def test_every_refusal_is_a_case() -> None:
    """The table speaks of chains that exist."""
    assert set(REFUSED) <= set(CASES)


def test_the_path_is_returned_from_the_leaf_to_the_root() -> None:
    """In its order, whatever order the chain came in, without strangers, and with the root."""
    maker = Maker("ordered")
    root = maker.root()
    upper = maker.make(root)
    lower = maker.make(upper)
    leaf, stranger = maker.leaf(lower), maker.make()
    shown = [leaf.certificate, stranger.certificate, upper.certificate, lower.certificate]
    path = path_to_root(shown, maker.roots, datetime.now(UTC))
    assert path == (leaf.certificate, lower.certificate, upper.certificate, root.certificate)


def test_a_certificate_ends_with_its_last_moment() -> None:
    """At `notAfter` it is over, a second before it is not."""
    maker = Maker("moments")
    chain = maker.chain(maker.leaf(maker.root(end=END + HOUR)))
    end = chain.certificates[0].not_valid_after_utc
    with pytest.raises(InputError) as caught:
        path_to_root(chain.certificates, chain.roots, end)
    assert caught.value.code == "expired"
    assert path_to_root(chain.certificates, chain.roots, end - HOUR / 3600)


def test_without_a_purpose_only_the_chain_counts() -> None:
    """A CA's own certificate is judged by its chain: it need not serve as a client or a server."""
    maker = Maker("authority alone")
    middle = maker.make(maker.root(), extended=[CLIENT])
    assert path_to_root([middle.certificate], maker.roots, datetime.now(UTC), purposes=())


@pytest.mark.parametrize("name", ["a leaf below a root", "an expired leaf", "a root for clients alone"])
def test_the_issuing_root_is_found_whatever_else_is_wrong(name: str) -> None:
    """Which root has signed is a matter of signatures: dates and purposes do not count."""
    chain = CASES[name]
    assert issuing_root(chain.certificates, chain.roots) == chain.roots[0]


def test_an_intermediate_leads_to_the_issuing_root() -> None:
    """A leaf below an intermediate was issued from the root above that."""
    chain = CASES["eight intermediates"]
    assert issuing_root(chain.certificates, chain.roots) == chain.roots[0]
    assert issuing_root(chain.certificates[:1], chain.roots) is None


@pytest.mark.parametrize("name", ["a damaged signature", "another mesh's root", "a leaf that signed itself"])
def test_without_a_signature_there_is_no_issuing_root(name: str) -> None:
    """A name proves nothing."""
    chain = CASES[name]
    assert issuing_root(chain.certificates, chain.roots) is None
