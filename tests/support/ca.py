"""Certificates for tests: an authority in memory that issues good and bad ones; the real CA as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshscrape.ca.tokens import TokenIssuer
from meshscrape.istio.names import ROOTS_FILE
from meshscrape.spiffe.certificates import (
    Signer,
    certificates_to_pem,
    issue_leaf,
    issue_server,
    make_csr,
    self_signed_root,
)
from meshscrape.spiffe.ids import SpiffeId, workload_id
from meshscrape.spiffe.keys import PrivateKey, PublicKey, generate_key, key_to_pem
from meshscrape.system.ca_client import create_certificate
from support.polling import eventually

HOUR = timedelta(hours=1)
READY = "meshscrape ca: listening on "


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate with its chain, its key and the bundle that its holder trusts, in PEM."""

    chain_pem: bytes
    key_pem: bytes
    root_pem: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf."""
        return x509.load_pem_x509_certificate(self.chain_pem)

    def write(self, directory: Path) -> Path:
        """Write `cert-chain.pem`, `key.pem` and `root-cert.pem` (0600) into `directory`; returns it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in (
            ("cert-chain.pem", self.chain_pem),
            ("key.pem", self.key_pem),
            ("root-cert.pem", self.root_pem),
        ):
            path = directory / name
            path.write_bytes(data)
            path.chmod(0o600)
        return directory


def issue_intermediate(
    signer: Signer,
    public_key: PublicKey,
    trust_domain: str,
    now: datetime,
    lifetime: timedelta,
    *,
    path_length: int | None = 0,
) -> x509.Certificate:
    """A CA certificate below `signer`; with the path length 0 it can issue leaves only."""
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    own_id = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"intermediate {uuid4()}")]))
        .issuer_name(signer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(min(now + lifetime, signer.not_after))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectAlternativeName([own_id]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(above, critical=False)
        .sign(signer.key, hashes.SHA256())
    )


class TestCa:
    """An authority in memory: `TestCa()` twice makes two that do not trust each other."""

    __test__ = False

    def __init__(
        self,
        trust_domain: str = "cluster.local",
        *,
        signer: Signer | None = None,
        now: datetime | None = None,
    ) -> None:
        """`now` is the present time of everything that it issues; without it that is the clock's.

        A test whose code under test gets a fixed time gives the same one here: a certificate that begins by
        the clock is not valid yet at a moment that was fixed before.
        """
        self.trust_domain = trust_domain
        self._fixed = now
        if signer is None:
            key = generate_key()
            # An hour old: what it issues may begin before now.
            root = self_signed_root(trust_domain, key, self._now() - HOUR, timedelta(days=30))
            signer = Signer(root, key, (), (root,))
        self.signer = signer

    def _now(self) -> datetime:
        return self._fixed or datetime.now(UTC)

    @property
    def root_pem(self) -> bytes:
        """The trust bundle."""
        return certificates_to_pem(self.signer.roots)

    def intermediate(self, lifetime: timedelta = timedelta(days=7)) -> TestCa:
        """A CA below this one, with the same roots."""
        key = generate_key()
        certificate = issue_intermediate(
            self.signer, key.public_key(), self.trust_domain, self._now() - HOUR, lifetime
        )
        above = self.signer.intermediates
        below = Signer(certificate, key, (certificate, *above), self.signer.roots)
        return TestCa(self.trust_domain, signer=below, now=self._fixed)

    def workload(
        self, namespace: str, service_account: str, *, now: datetime | None = None, lifetime: timedelta = HOUR
    ) -> Credentials:
        """What the mesh's CA gives a workload; `now` is when it was issued."""
        return self.identity(
            workload_id(self.trust_domain, namespace, service_account), now=now, lifetime=lifetime
        )

    def identity(
        self, spiffe_id: SpiffeId | str, *, now: datetime | None = None, lifetime: timedelta = HOUR
    ) -> Credentials:
        """A proper certificate of any SPIFFE ID."""
        key = generate_key()
        parsed = SpiffeId.parse(str(spiffe_id))
        leaf = issue_leaf(self.signer, key.public_key(), parsed, now or self._now(), lifetime)
        return self._credentials(leaf, key)

    def server(self, names: Sequence[str], *, now: datetime | None = None) -> Credentials:
        """A server's certificate without a SPIFFE ID."""
        key = generate_key()
        leaf = issue_server(self.signer, key.public_key(), names, now or self._now(), HOUR)
        return self._credentials(leaf, key)

    def expired(self, namespace: str, service_account: str) -> Credentials:
        """A workload's certificate that ended an hour ago."""
        return self.workload(namespace, service_account, now=self._now() - 2 * HOUR)

    def not_yet_valid(self, namespace: str, service_account: str) -> Credentials:
        """A workload's certificate that begins in an hour."""
        return self.workload(namespace, service_account, now=self._now() + HOUR)

    def look_alikes(self, spiffe_id: SpiffeId | str) -> dict[str, Credentials]:
        """Certificates of this CA that are not `spiffe_id`'s but try to pass for it, by what they try."""
        wanted = str(spiffe_id)
        other = f"spiffe://{self.trust_domain}/ns/attacker/sa/attacker"
        uri = x509.UniformResourceIdentifier
        tried: dict[str, list[x509.GeneralName]] = {
            "two URIs, wanted first": [uri(wanted), uri(other)],
            "two URIs, wanted last": [uri(other), uri(wanted)],
            "the same URI twice": [uri(wanted), uri(wanted)],
            "a DNS name that spells it": [x509.DNSName(wanted)],
            "a DNS name beside another URI": [uri(other), x509.DNSName(wanted)],
            "an e-mail address that spells it": [x509.RFC822Name(wanted.replace("spiffe://", "a@"))],
            "a longer name": [uri(wanted + "x")],
            "a path below": [uri(wanted + "/x")],
            "a trailing slash": [uri(wanted + "/")],
            "a trailing newline": [uri(wanted + "\n")],
            "a trailing NUL": [uri(wanted + "\0.example")],
            "upper case": [uri(wanted.upper())],
            "upper-case scheme": [uri(wanted.replace("spiffe", "SPIFFE"))],
            "percent encoding": [uri(wanted.replace("/ns/", "/n%73/"))],
            "dot segments": [uri(wanted.replace("/ns/", "/ns/x/../"))],
            "a query": [uri(wanted + "?x")],
            "user information": [uri(wanted.replace("spiffe://", "spiffe://x@"))],
            "a port": [uri(wanted.replace("/ns/", ":443/ns/"))],
            "another trust domain": [uri(wanted.replace(self.trust_domain, f"{self.trust_domain}.evil"))],
        }
        made = {what: self.custom(names) for what, names in tried.items()}
        made["a common name that spells it"] = self.custom([], common_name=wanted[:64])
        return made

    def custom(
        self,
        names: Sequence[x509.GeneralName],
        *,
        common_name: str = "",
        is_ca: bool = False,
        client: bool = True,
        now: datetime | None = None,
        lifetime: timedelta = HOUR,
        key: PrivateKey | None = None,
    ) -> Credentials:
        """A certificate with exactly these names, however wrong."""
        key, begin = key or generate_key(), now or self._now()
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
        signer_id = self.signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(attributes))
            .issuer_name(self.signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - timedelta(minutes=2))
            .not_valid_after(begin + lifetime)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id.value),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not attributes)
        return self._credentials(builder.sign(self.signer.key, hashes.SHA256()), key)

    def _credentials(self, leaf: x509.Certificate, key: PrivateKey) -> Credentials:
        chain = certificates_to_pem([leaf, *self.signer.intermediates])
        return Credentials(chain, key_to_pem(key), self.root_pem)


@dataclass(frozen=True, slots=True)
class CaProcess:
    """A running `meshscrape ca serve`."""

    address: str
    metrics_address: str
    directory: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def root_pem(self) -> bytes:
        """Its root bundle."""
        return (self.directory / ROOTS_FILE).read_bytes()

    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text()

    def metrics(self) -> str:
        """Its own metrics, as it exposes them."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def connections(self, stage: str = "") -> int:
        """How many connections it has, in all or in one stage."""
        pattern = rf'^meshscrape_ca_connections\{{stage="({stage or ".*"})"\}} (\d+)$'
        return sum(int(number) for _, number in re.findall(pattern, self.metrics(), re.M))

    def token(self, namespace: str, service_account: str, lifetime: timedelta = HOUR) -> str:
        """A token that it accepts (when it runs with its own directory's key set)."""
        issuer = TokenIssuer.load_or_create(self.directory)
        return issuer.issue(namespace, service_account, datetime.now(UTC), lifetime)

    def issue(self, namespace: str, service_account: str, ttl: timedelta = HOUR) -> Credentials:
        """A workload's credentials, asked for over the wire."""
        key = generate_key()
        csr = make_csr(key, workload_id("cluster.local", namespace, service_account))
        chain, bundle = asyncio.run(
            create_certificate(
                self.address,
                self.root_pem,
                csr,
                ttl,
                token=self.token(namespace, service_account),
                client_credentials=None,
                deadline=10,
            )
        )
        return Credentials(b"".join(chain), key_to_pem(key), bundle)


@contextlib.contextmanager
def ca_process(directory: Path, *arguments: str, listen: str = "127.0.0.1:0") -> Iterator[CaProcess]:
    """`meshscrape ca serve` on `directory`, ready; stopped by SIGTERM on leaving, and its exit checked.

    Its own token issuer is made in `directory`, unless `arguments` say `--jwks`.
    """
    TokenIssuer.load_or_create(directory)
    log_path = directory / "stderr.log"
    command = [sys.executable, "-m", "meshscrape", "ca", "serve", "--dir", str(directory), "--listen", listen]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--metrics", "127.0.0.1:0", *arguments], stderr=log, stdout=log, env={**os.environ}
        )
    try:
        ready = eventually(lambda: _ready_line(process, log_path), within=20, what="the CA's ready line")
        address, _, rest = ready.removeprefix(READY).partition(", root ")
        yield CaProcess(address, rest.rpartition("metrics on ")[2].strip(), directory, process, log_path)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, log_path.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _ready_line(process: subprocess.Popen[bytes], log_path: Path) -> str:
    text = log_path.read_text()
    if process.poll() is not None:
        raise RuntimeError(f"the CA ended with {process.returncode}: {text}")
    return next((line for line in text.splitlines() if line.startswith(READY)), "")
