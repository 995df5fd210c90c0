"""Trust bundles: roots, each once."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.spiffe.bundles import WEAK_KEY, bundle_to_pem, is_issued_by, is_self_signed, load_bundle
from meshscrape.spiffe.certificates import certificates_to_pem
from support.ca import TestCa
from support.chains import Maker, rsa_key


def test_roots_come_once_in_their_order() -> None:
    """Duplicates are dropped, order is kept, and writing is the inverse of reading."""
    one, two = TestCa().root_pem, TestCa().root_pem
    bundle = load_bundle(one + two + one, "bundle")
    assert bundle_to_pem(bundle) == one + two
    assert load_bundle(bundle_to_pem(bundle), "bundle") == bundle


def test_only_roots_are_trusted() -> None:
    """A leaf or an intermediate in a bundle is an error: it would be trusted as a root."""
    ca = TestCa()
    leaf = ca.workload("foo", "bar").chain_pem
    intermediate = bundle_to_pem([ca.intermediate().signer.certificate])
    for pem, reason in (
        (ca.root_pem + leaf, "certificate 2 .* not a CA"),
        (intermediate, "not self-signed"),
        (b"", "not a list"),
        (b"junk", "not a list"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            load_bundle(pem, "some/root-cert.pem")
        assert str(caught.value).startswith("some/root-cert.pem: ")


def test_issued_by_means_signed_by() -> None:
    """The same name is not enough: another CA of the same trust domain did not sign."""
    ca, other = TestCa(), TestCa()
    leaf = ca.workload("foo", "bar").certificate
    assert is_issued_by(leaf, ca.signer.certificate)
    assert ca.signer.certificate.subject == other.signer.certificate.subject
    assert not is_issued_by(leaf, other.signer.certificate)
    assert is_self_signed(ca.signer.certificate)
    assert not is_self_signed(leaf)


def test_a_root_with_a_weak_key_is_refused() -> None:
    """Whoever breaks an RSA key of 1024 bits is a CA of the mesh: the bundle is not used at all."""
    good, weak = Maker("good").make(), Maker("weak").make(key=rsa_key(1024))
    with pytest.raises(InputError) as caught:
        load_bundle(certificates_to_pem([good.certificate, weak.certificate]), "roots.pem")
    assert caught.value.code == WEAK_KEY
    strong = Maker("strong").make(key=rsa_key(2048))
    assert load_bundle(certificates_to_pem([strong.certificate]), "roots.pem") == (strong.certificate,)
