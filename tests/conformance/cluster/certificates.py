"""The cluster's own certificates and its kubeconfig files."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SERVICE_ADDRESS = "10.96.0.1"  # the `kubernetes` Service, the first address of the range


@dataclass(frozen=True)
class Pki:
    """A directory with the CA, and a certificate and key for each component."""

    directory: Path

    @property
    def ca(self) -> Path:
        """The certificate of the cluster's CA."""
        return self.directory / "ca.crt"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the files of a component's certificate and key."""
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"


def write(directory: Path, address: str) -> Pki:
    """Write a new CA and what it signs. `address` is the node's address."""
    directory.mkdir(parents=True)
    directory.chmod(0o700)
    pki = Pki(directory)
    authority = rsa.generate_private_key(65537, 2048)
    issuer = _name("cluster-ca")
    node = [x509.IPAddress(ipaddress.ip_address(text)) for text in (address, "127.0.0.1", SERVICE_ADDRESS)]
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    serving = x509.SubjectAlternativeName([*node, *(x509.DNSName(name) for name in names)])
    _sign(pki, "ca", issuer, authority, issuer, authority, x509.BasicConstraints(True, None))
    for stem, subject, extension in (
        ("apiserver", _name("kube-apiserver"), serving),
        ("kubelet", _name("node-1"), serving),
        ("kubelet-client", _name("kube-apiserver-kubelet-client"), None),
        ("admin", _name("admin", "system:masters"), None),
    ):
        key = rsa.generate_private_key(65537, 2048)
        _sign(pki, stem, subject, key, issuer, authority, extension)
    tokens = rsa.generate_private_key(65537, 2048)
    _write_key(directory / "tokens.key", tokens)
    (directory / "tokens.pub").write_bytes(
        tokens.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return pki


def write_kubeconfig(file: Path, pki: Pki, address: str, port: int) -> None:
    """Write a kubeconfig of the cluster's administrator, which holds everything inside."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    certificate, key = pki.pair("admin")
    cluster = {"server": f"https://{address}:{port}", "certificate-authority-data": inline(pki.ca)}
    user = {"client-certificate-data": inline(certificate), "client-key-data": inline(key)}
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "meshscrape",
        "contexts": [{"name": "meshscrape", "context": {"cluster": "meshscrape", "user": "admin"}}],
        "clusters": [{"name": "meshscrape", "cluster": cluster}],
        "users": [{"name": "admin", "user": user}],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(value, indent=2))


def _name(common: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common)]
    if organization:
        parts.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _sign(
    pki: Pki,
    stem: str,
    subject: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer: x509.Name,
    authority: rsa.RSAPrivateKey,
    extension: x509.ExtensionType | None,
) -> None:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    certificate, private = pki.pair(stem)
    certificate.write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _write_key(private, key)


def _write_key(file: Path, key: rsa.RSAPrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
