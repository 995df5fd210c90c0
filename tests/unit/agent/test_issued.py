"""Which answers of a CA an agent uses, and which it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from meshscrape.agent.issued import Issued, judge
from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import Signer
from meshscrape.spiffe.chains import ChainFault
from meshscrape.spiffe.ids import workload_id
from support.ca import Credentials, TestCa, issue_intermediate
from support.chains import rsa_key

EXPECTED = workload_id("cluster.local", "demo", "web")


def judged(credentials: Credentials, now: datetime | None = None) -> Issued:
    return judge(
        credentials.key_pem,
        credentials.chain_pem,
        credentials.root_pem,
        expected=EXPECTED,
        now=now or datetime.now(UTC),
        where="the CA",
    )


def test_a_proper_answer_is_used() -> None:
    """Serial number and end are the leaf's, and receipt is now."""
    credentials = TestCa().workload("demo", "web")
    now = datetime.now(UTC)
    issued = judged(credentials, now)
    assert issued.serial == credentials.certificate.serial_number
    assert issued.not_after == credentials.certificate.not_valid_after_utc
    assert issued.received_at == now


def test_a_chain_with_an_intermediate_is_used() -> None:
    """The path to the root may lead through intermediates that come after the leaf."""
    issued = judged(TestCa().intermediate().workload("demo", "web"))
    assert issued.chain.count(b"BEGIN CERTIFICATE") == 2


def test_expiry_is_that_of_the_first_certificate_in_the_path_to_end() -> None:
    """A leaf is of no use for longer than what vouches for it."""
    ca = TestCa().intermediate(lifetime=timedelta(minutes=70))
    assert judged(ca.workload("demo", "web")).not_after == ca.signer.certificate.not_valid_after_utc


def test_certificate_is_expired_at_its_end() -> None:
    """It is valid before `not_after`, and not at it."""
    issued = judged(TestCa().workload("demo", "web"))
    assert issued.valid(issued.not_after - timedelta(seconds=1))
    assert not issued.valid(issued.not_after)


def test_its_representation_has_no_key() -> None:
    """What is logged of it cannot give the key away."""
    assert "KEY" not in repr(judged(TestCa().workload("demo", "web")))


def test_identity_of_another_workload_is_refused() -> None:
    """A certificate of another workload is not used, though everything else about it is right."""
    with pytest.raises(InputError, match=r"is spiffe://cluster\.local/ns/demo/sa/other's"):
        judged(TestCa().workload("demo", "other"))


def test_another_key_is_refused() -> None:
    """A certificate for a key that the agent does not have could never be served."""
    ca = TestCa()
    mixed = replace(ca.workload("demo", "web"), key_pem=ca.workload("demo", "web").key_pem)
    with pytest.raises(InputError, match="another key"):
        judged(mixed)


def test_a_chain_to_a_root_outside_the_bundle_is_refused() -> None:
    """Peers would refuse it: they know the bundle alone."""
    mixed = replace(TestCa().workload("demo", "web"), root_pem=TestCa().root_pem)
    with pytest.raises(InputError) as caught:
        judged(mixed)
    assert caught.value.code == ChainFault.UNTRUSTED


def test_a_missing_intermediate_is_refused() -> None:
    """A leaf whose issuer is neither in the chain nor in the bundle leads nowhere."""
    credentials = TestCa().intermediate().workload("demo", "web")
    leaf, _, _ = credentials.chain_pem.partition(b"-----END CERTIFICATE-----\n")
    alone = replace(credentials, chain_pem=leaf + b"-----END CERTIFICATE-----\n")
    with pytest.raises(InputError) as caught:
        judged(alone)
    assert caught.value.code == ChainFault.UNTRUSTED


def test_certificate_of_a_workload_is_refused_as_intermediate() -> None:
    """A certificate signed by another workload's key is refused: that one is not a CA."""
    ca = TestCa()
    middle = ca.workload("demo", "evil")
    forged = replace(
        ca.workload("demo", "web"), chain_pem=TestCa().workload("demo", "web").chain_pem + middle.chain_pem
    )
    with pytest.raises(InputError):
        judged(forged)


@pytest.mark.parametrize(
    ("wrong", "fault"), [("expired", ChainFault.EXPIRED), ("not_yet_valid", ChainFault.NOT_YET_VALID)]
)
def test_a_certificate_outside_its_time_is_refused(wrong: str, fault: ChainFault) -> None:
    """The error says which end of its time has been passed, and names the usual cause, the clocks."""
    credentials = getattr(TestCa(), wrong)("demo", "web")
    with pytest.raises(InputError, match="clocks") as caught:
        judged(credentials)
    assert caught.value.code == fault


def test_a_certificate_that_peers_refuse_is_refused() -> None:
    """What Envoy would refuse in a handshake is not put to use: here, a certificate for servers alone."""
    uri = x509.UniformResourceIdentifier(str(EXPECTED))
    with pytest.raises(InputError) as caught:
        judged(TestCa().custom([uri], client=False))
    assert caught.value.code == ChainFault.PURPOSE


def test_a_weak_key_in_the_chain_is_refused() -> None:
    """Whoever breaks an intermediate's key can issue anything: Envoy accepts it, the agent does not."""
    ca, key, now = TestCa(), rsa_key(1024), datetime.now(UTC)
    middle = issue_intermediate(ca.signer, key.public_key(), ca.trust_domain, now, timedelta(hours=2))
    below = TestCa(signer=Signer(middle, key, (middle,), ca.signer.roots))
    with pytest.raises(InputError) as caught:
        judged(below.workload("demo", "web"))
    assert caught.value.code == ChainFault.WEAK_KEY


def test_look_alikes_are_refused() -> None:
    """No certificate of the right CA that merely resembles the identity is used."""
    for what, credentials in TestCa().look_alikes(EXPECTED).items():
        with pytest.raises(InputError):
            pytest.fail(f"{what} is used: {judged(credentials)}")
