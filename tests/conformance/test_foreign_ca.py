"""A scraper whose certificate comes from another CA than the mesh's, as cert-manager would issue it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conformance import prober, samples, shop
from conformance.cluster.istio import Installer
from conformance.kube import Kube, Object
from conformance.migration import Migration
from conformance.prober import Prober, secure

SPACE, OUTSIDE = "foreign", "outside-foreign"
NAME = "prometheus.monitoring.example"
LISTED = "spiffe://cluster.local/ns/monitoring/sa/prometheus"
MOUNTED = "/etc/foreign"
XDS_AGENT = "PROXY_CONFIG_XDS_AGENT"
Row = Callable[..., None]


@dataclass(frozen=True)
class Authority:
    """A CA that knows nothing of Istio."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def root(self) -> str:
        """Return its certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: x509.GeneralName) -> tuple[str, str]:
        """Return a certificate with one name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([name])
        certificate = _builder(key, self.certificate.subject, x509.Name([])).add_extension(
            names, critical=True
        )
        signed = certificate.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode(), _pem(key)


def authority() -> Authority:
    """Return a new CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "foreign-ca")])
    own = _builder(key, name, name).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    return Authority(key, own.sign(key, hashes.SHA256()))


def _builder(
    key: ec.EllipticCurvePrivateKey, issuer: x509.Name, subject: x509.Name
) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    return (
        x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def client(kube: Kube, foreign: Authority) -> Prober:
    """Start a pod outside the mesh that holds three certificates of the CA."""
    names: dict[str, x509.GeneralName] = {
        "listed": x509.DNSName(NAME),
        "other": x509.DNSName(f"other.{NAME}"),
        "forged": x509.UniformResourceIdentifier(LISTED),
    }
    files = {}
    for stem, name in names.items():
        files[f"{stem}.pem"], files[f"{stem}.key"] = foreign.issue(name)
    meta = prober.named(OUTSIDE, "client")
    container = {
        "name": "prober",
        "image": prober.IMAGE,
        "command": ["sleep", "infinity"],
        "volumeMounts": [{"name": "foreign", "mountPath": MOUNTED}],
    }
    volumes = [{"name": "foreign", "secret": {"secretName": "client"}}]
    spec = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 2}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": files}
    kube.apply([secret, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}])
    kube("-n", OUTSIDE, "wait", "--for=condition=Ready", "pod/client", "--timeout=300s")
    return Prober(kube, OUTSIDE, "client")


@pytest.mark.whole
def test_scraper_of_another_ca_needs_three_settings_and_a_restart(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """Istio trusts another CA only with settings of istiod and of the proxy; then that CA signs any name."""
    foreign = authority()
    options = ("--mode", "bootstrap", "-n", SPACE, "--prometheus", "none")
    migration = Migration(
        kube, meshscrape, tmp_path, (*options, "--scraper", f"dns:{NAME}", "--scraper", f"spiffe:{LISTED}")
    )
    settings: Object = {
        "meshConfig": {"caCertificates": [{"pem": foreign.root()}]},
        "values": {"pilot": {"env": {"ISTIO_MULTIROOT_MESH": "true"}}},
    }
    with (
        installer.revision("multiroot", mesh=settings) as revision,
        kube.namespace(OUTSIDE),
        kube.namespace(SPACE, **shop.INJECTED),
    ):
        kube.apply(samples.httpbin(), "-n", SPACE)
        kube.rollout(SPACE, "deployment/httpbin")
        pod = client(kube, foreign)
        noted = json.loads(migration.run("plan", *migration.options, "-o", "json").stdout)["notes"]
        assert "foreign-ca" in {note["code"] for note in noted}
        migration.migrate((SPACE,), lambda phase: None)
        assert _answers(kube, pod) == ["tls", "tls", "tls"]
        assert _severities(migration) == {"warning"}
        kube("label", "namespace", SPACE, "istio-injection-", f"istio.io/rev={revision}")
        kube("-n", SPACE, "rollout", "restart", "deployment/httpbin")
        kube.rollout(SPACE, "deployment/httpbin")
        assert _answers(kube, pod) == ["tls", "tls", "tls"]
        assert _severities(migration) == {"warning"}
        _set(kube, XDS_AGENT, "true")
        assert _answers(kube, pod) == [200, 403, 200]
        assert _severities(migration) == {"info"}
    row(
        "scraper with a certificate of another CA: bootstrap mode, `dns:` entry",
        "TLS refused until meshConfig.caCertificates, ISTIO_MULTIROOT_MESH and PROXY_CONFIG_XDS_AGENT are "
        "set and the pod is restarted; then 200, another name of that CA 403",
    )
    row(
        "the same CA signs a SPIFFE ID of the allow list",
        "200: a CA that Istio is told to trust can sign every name",
    )


def _answers(kube: Kube, pod: Prober) -> list[int | str]:
    """Return what the listed name, another name and the forged SPIFFE ID get."""
    address = kube.address(SPACE, "app=httpbin")
    stems = [f"{MOUNTED}/{stem}" for stem in ("listed", "other", "forged")]
    return pod.outcomes(
        *(secure(address, 15092, certificate=f"{stem}.pem", key=f"{stem}.key") for stem in stems)
    )


def _severities(migration: Migration) -> set[str]:
    found = migration.observe()["pitfalls"]
    return {each["severity"] for each in found if each["code"] == "foreign-ca"}


def _set(kube: Kube, name: str, value: str) -> None:
    """Add a variable of httpbin's proxy to those that it has, and wait for the new pod."""
    template = kube.get("-n", SPACE, "deployment", "httpbin")["spec"]["template"]
    text = template["metadata"].get("annotations", {}).get("proxy.istio.io/config", "{}")
    metadata = (yaml.safe_load(text) or {}).get("proxyMetadata", {})
    changed = samples.annotate(
        {"spec": {"template": {}}},
        **{"proxy.istio.io/config": samples.proxy_metadata(**{**metadata, name: value})},
    )
    kube("-n", SPACE, "patch", "deployment", "httpbin", "--type=merge", "-p", json.dumps(changed))
    kube.rollout(SPACE, "deployment/httpbin")
