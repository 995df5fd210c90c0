"""Describe the certificates that a verification saw: their owners and lifetimes (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cryptography import x509

from meshscrape.errors import InputError
from meshscrape.spiffe.certificates import identity_of
from meshscrape.verify.check import PlannedCheck
from meshscrape.verify.findings import Role, SeenCertificate
from meshscrape.verify.observations import Observation, Presented, printable
from meshscrape.verify.probe import Probe


def seen_certificates(
    planned: Iterable[PlannedCheck], observations: Mapping[Probe, Observation]
) -> Iterator[SeenCertificate]:
    """Yield the certificates that servers presented, in the order of the checks."""
    for check in planned:
        for case in check.cases:
            match observations.get(case.probe):
                case Presented(leaf=leaf):
                    try:
                        certificate = x509.load_der_x509_certificate(leaf)
                    except ValueError:
                        continue
                    yield describe_certificate("server", check.workload, check.target, certificate)


def describe_certificate(
    role: Role, workload: str, target: str, certificate: x509.Certificate
) -> SeenCertificate:
    """Return a report's facts about a certificate in use."""
    try:
        name = str(identity_of(certificate))
    except InputError:
        name = printable(certificate.subject.rfc4514_string()) or "without a name"
    return SeenCertificate(
        role, workload, target, name,
        f"{certificate.serial_number:x}", certificate.not_valid_before_utc, certificate.not_valid_after_utc,
    )  # fmt: skip
