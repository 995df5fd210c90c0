"""Chains of certificates, good and bad, with the roots that they are judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_network
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = timedelta(hours=1)
BEGIN = datetime.now(UTC) - 24 * HOUR
END = datetime.now(UTC) + 24 * HOUR
LONG_AGO, LATER = BEGIN + HOUR, END - HOUR
WEAK = "weak-key"
ID = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/foo/sa/bar")
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
BOTH = (CLIENT, SERVER)
SIGN = frozenset({"key_cert_sign", "crl_sign"})
USE = frozenset({"digital_signature", "key_encipherment"})
_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
           "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def key_pem(self) -> bytes:
        return bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


@dataclass(frozen=True)
class Chain:
    """What a peer shows, and which roots of it are in the bundle. `stricter`: Envoy accepts
    it, and the product refuses it on purpose, with this code."""

    shown: Sequence[Made]
    roots: Sequence[x509.Certificate]
    stricter: str = ""

    @property
    def certificates(self) -> list[x509.Certificate]:
        return [one.certificate for one in self.shown]


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """One RSA key of each size: making one takes long."""
    return rsa.generate_private_key(65537, bits)


@dataclass
class Maker:
    """Makes the certificates of one case; names differ from case to case, so that one bundle serves all."""

    case: str
    number: int = 0
    roots: list[x509.Certificate] = field(default_factory=list)

    def make(
        self,
        above: Made | None = None,
        *,
        name: str = "",
        ca: bool | None = True,
        path_length: int | None = None,
        usage: frozenset[str] | None = SIGN,
        extended: Sequence[x509.ObjectIdentifier] | None = None,
        names: Sequence[x509.GeneralName] = (),
        permitted: Sequence[x509.GeneralName] | None = None,
        excluded: Sequence[x509.GeneralName] | None = None,
        begin: datetime = BEGIN,
        end: datetime = END,
        key: Any = None,
        digest: Any = None,
        key_ids: bool = True,
        issuer_key: Any = None,
        unknown: bool | None = None,
        weak: str = "",
    ) -> Made:
        """A certificate signed by `above`, or by itself."""
        self.number += 1
        key = key or ec.generate_private_key(ec.SECP256R1())
        common = name or f"{self.case} {self.number}"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        signer = above.key if above else key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(above.certificate.subject if above else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
        if usage is not None:
            bits = {one: one in usage for one in _USAGES}
            builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
        if extended is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if permitted is not None or excluded is not None:
            builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
        if key_ids:
            named = (issuer_key or signer).public_key()
            builder = builder.add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(named), critical=False)
        if unknown is not None:
            odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
            builder = builder.add_extension(odd, critical=unknown)
        if isinstance(signer, ed25519.Ed25519PrivateKey):
            return Made(builder.sign(signer, None), key)
        signed = builder.sign(signer, digest or hashes.SHA256())
        return Made(_resigned(signed, signer, weak) if weak else signed, key)

    def root(self, **changes: Any) -> Made:
        """A root that is in the bundle."""
        made = self.make(**changes)
        self.roots.append(made.certificate)
        return made

    def leaf(self, above: Made, **changes: Any) -> Made:
        """A workload's certificate."""
        wanted: dict[str, Any] = {"ca": False, "usage": USE, "extended": BOTH, "names": [ID], **changes}
        return self.make(above, **wanted)

    def chain(self, *shown: Made, stricter: str = "") -> Chain:
        return Chain(shown, tuple(self.roots), stricter)


# The end of the algorithm's OID below 1.2.840.113549.1.1, the digest, and what precedes it in PKCS #1 v1.5.
_WEAK = {
    "SHA-1": (b"\x05", hashlib.sha1, bytes.fromhex("3021300906052b0e03021a05000414")),
    "MD5": (b"\x04", hashlib.md5, bytes.fromhex("3020300c06082a864886f70d020505000410")),
}


def _resigned(certificate: x509.Certificate, key: rsa.RSAPrivateKey, weak: str) -> x509.Certificate:
    """The same certificate signed by RSA over a weak digest: `cryptography` makes no such signatures."""
    end, digest, prefix = _WEAK[weak]
    rsa_oids = bytes.fromhex("2a864886f70d0101")
    tbs = certificate.tbs_certificate_bytes.replace(rsa_oids + b"\x0b", rsa_oids + end)
    size, numbers = key.key_size // 8, key.private_numbers()
    info = prefix + digest(tbs).digest()
    padded = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
    signature = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")
    whole = certificate.public_bytes(serialization.Encoding.DER)
    whole = whole.replace(rsa_oids + b"\x0b", rsa_oids + end).replace(certificate.signature, signature)
    return x509.load_der_x509_certificate(whole)


def _uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@cache
def cases() -> dict[str, Chain]:
    """Every chain by what is odd about it."""
    found: dict[str, Chain] = {}
    for build in (_paths, _times, _authorities, _purposes, _constraints, _keys, _anchors):
        found.update(build())
    return found


def _direct(case: str, root: dict[str, Any] | None = None, stricter: str = "", **leaf: Any) -> Chain:
    """A leaf below a root."""
    maker = Maker(case)
    return maker.chain(maker.leaf(maker.root(**(root or {})), **leaf), stricter=stricter)


def _below(
    case: str, middle: dict[str, Any], root: dict[str, Any] | None = None, stricter: str = "", **leaf: Any
) -> Chain:
    """A leaf below an intermediate below a root."""
    maker = Maker(case)
    between = maker.make(maker.root(**(root or {})), **middle)
    return maker.chain(maker.leaf(between, **leaf), between, stricter=stricter)


def _paths() -> dict[str, Chain]:
    plain, wrong_order, missing, with_root, crowd, deep, twice = (
        Maker(f"path {number}") for number in range(7)
    )
    upper = wrong_order.make(wrong_order.root())
    lower = wrong_order.make(upper)
    absent = missing.make(missing.root())
    top = with_root.root()
    between = with_root.make(top)
    strangers = [crowd.make() for _ in range(3)]
    crowded = crowd.make(crowd.root())
    steps = [deep.root()]
    for _ in range(8):
        steps.append(deep.make(steps[-1]))
    doubled = twice.make(twice.root())
    return {
        "a leaf below a root": plain.chain(plain.leaf(plain.root())),
        "intermediates in the wrong order": wrong_order.chain(wrong_order.leaf(lower), upper, lower),
        "a missing intermediate": missing.chain(missing.leaf(absent)),
        "the root sent along": with_root.chain(with_root.leaf(between), between, top),
        "strangers in the chain": crowd.chain(crowd.leaf(crowded), *strangers, crowded),
        "eight intermediates": deep.chain(deep.leaf(steps[-1]), *steps[:0:-1]),
        "an intermediate sent twice": twice.chain(twice.leaf(doubled), doubled, doubled),
    }


def _times() -> dict[str, Chain]:
    past, future = {"end": LONG_AGO}, {"begin": LATER}
    return {
        "an expired leaf": _direct("time 1", **past),
        "a leaf that is not valid yet": _direct("time 2", **future),
        "an expired intermediate": _below("time 3", past),
        "an intermediate that is not valid yet": _below("time 4", future),
        "an expired root": _direct("time 5", past),
        "a root that is not valid yet": _direct("time 6", future),
        "a leaf that outlives its issuer": _below("time 7", {"end": datetime.now(UTC) + HOUR}),
    }


def _authorities() -> dict[str, Chain]:
    long = Maker("authority 7")
    upper = long.make(long.root(), path_length=0)
    lower = long.make(upper)
    one = Maker("authority 8")
    first = one.make(one.root(), path_length=1)
    second = one.make(first)
    again = Maker("authority 9")
    top = again.root(name="authority 9")
    rolled = again.make(top, name="authority 9", path_length=0)
    rolled_below = again.make(rolled)
    own = Maker("authority 18")
    elder = own.make(own.root(), name="authority 18 middle")
    younger = own.make(elder, name="authority 18 middle")
    return {
        "a self-issued intermediate that no root has signed": own.chain(own.leaf(younger), younger, elder),
        "an intermediate without basic constraints": _below("authority 1", {"ca": None}),
        "an intermediate that is no CA": _below("authority 2", {"ca": False}),
        "an intermediate without the right to sign": _below("authority 3", {"usage": USE}),
        "an intermediate without key usage": _below("authority 4", {"usage": None}),
        "path length 0 above a leaf": _below("authority 5", {"path_length": 0}),
        "path length 0 of the root above an intermediate": _below("authority 6", {}, {"path_length": 0}),
        "path length 0 above an intermediate": long.chain(long.leaf(lower), lower, upper),
        "path length 1 above one intermediate": one.chain(one.leaf(second), second, first),
        "a self-issued intermediate with path length 0 above one":
            again.chain(again.leaf(rolled_below), rolled_below, rolled),
        "a leaf that is a CA's": _direct("authority 10", ca=True, usage=SIGN | USE),
        "a leaf with an unknown critical extension": _direct("authority 11", unknown=True),
        "a leaf with an unknown extension": _direct("authority 12", unknown=False),
        "an intermediate with an unknown critical extension": _below("authority 13", {"unknown": True}),
        "a root without basic constraints": _direct("authority 15", {"ca": None}),
        "a root that is no CA": _direct("authority 16", {"ca": False}),
        "a root without the right to sign": _direct("authority 17", {"usage": USE}),
        "a root with an unknown critical extension": _direct("authority 14", {"unknown": True}),
    }  # fmt: skip


def _purposes() -> dict[str, Chain]:
    any_use, code = x509.ObjectIdentifier("2.5.29.37.0"), ExtendedKeyUsageOID.CODE_SIGNING
    return {
        "a leaf without extended key usage": _direct("purpose 1", extended=None),
        "a leaf for clients alone": _direct("purpose 2", extended=[CLIENT]),
        "a leaf for servers alone": _direct("purpose 3", extended=[SERVER]),
        "a leaf for any use": _direct("purpose 4", extended=[any_use]),
        "a leaf for code": _direct("purpose 5", extended=[code]),
        "a leaf for clients and code": _direct("purpose 6", extended=[CLIENT, code]),
        "an intermediate for servers alone": _below("purpose 7", {"extended": [SERVER]}),
        "an intermediate for both": _below("purpose 8", {"extended": BOTH}),
        "an intermediate for any use": _below("purpose 9", {"extended": [any_use]}),
        "a root for clients alone": _direct("purpose 10", {"extended": [CLIENT]}),
        "a leaf without key usage": _direct("purpose 11", usage=None),
        "a leaf for encipherment alone": _direct("purpose 12", usage=frozenset({"key_encipherment"})),
        "a leaf for agreement alone": _direct("purpose 13", usage=frozenset({"key_agreement"})),
        "a leaf for signing certificates alone": _direct("purpose 14", usage=SIGN),
    }


def _constraints() -> dict[str, Chain]:
    dns, mail = x509.DNSName, x509.RFC822Name
    net = x509.IPAddress(ip_network("10.0.0.0/8"))
    directory = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone else")]))
    own, other = _uri("cluster.local"), _uri("example.org")
    org, post = dns("example.org"), mail("example.org")

    def allowed(case: str, *bases: x509.GeneralName, **leaf: Any) -> Chain:
        return _below(case, {"permitted": bases}, **leaf)

    def denied(case: str, *bases: x509.GeneralName, **leaf: Any) -> Chain:
        return _below(case, {"excluded": bases}, **leaf)

    bound = Maker("name 30")
    plain = bound.make(bound.root(permitted=[other]))
    same = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "name 31")]))
    own_name = Maker("name 31")
    rolled = own_name.make(own_name.root(name="name 31", excluded=[same]), name="name 31")
    exact, below = mail("a@example.org"), mail(".example.org")
    return {
        "a constraint above an intermediate without one": bound.chain(bound.leaf(plain), plain),
        "a self-issued intermediate whose subject is excluded": own_name.chain(own_name.leaf(rolled), rolled),
        "an intermediate whose subject is excluded":
            _below("name 32", {"name": "someone else"}, {"excluded": [directory]}),
        "a DNS name below a dot that is permitted":
            allowed("name 23", dns(".example.org"), names=[ID, dns("a.example.org")]),
        "a DNS name that ends like a permitted one":
            allowed("name 24", org, names=[ID, dns("example.org.evil")]),
        "an e-mail address below a dot": allowed("name 25", below, names=[ID, mail("a@b.example.org")]),
        "an e-mail address at the dot itself":
            allowed("name 26", below, names=[ID, mail("a@example.org")]),
        "this very e-mail address": allowed("name 27", exact, names=[ID, mail("a@EXAMPLE.org")]),
        "another e-mail address of that host": allowed("name 28", exact, names=[ID, mail("b@example.org")]),
        "a URI whose path looks like another": allowed("name 29", other, names=[_uri("a://b/c://example.org/")]),
        "URIs of this trust domain permitted": allowed("name 1", own),
        "URIs of another trust domain permitted": allowed("name 2", other),
        "URIs of both permitted": allowed("name 3", other, own),
        "URIs of this trust domain excluded": denied("name 4", own),
        "URIs of another trust domain excluded": denied("name 5", other),
        "URIs below a domain permitted": allowed("name 6", _uri(".local")),
        "URIs below this very domain permitted": allowed("name 7", _uri(".cluster.local")),
        "URIs in upper case permitted": allowed("name 8", _uri("CLUSTER.LOCAL")),
        "only DNS names constrained": allowed("name 9", dns("example.org")),
        "a constraint of the root": _direct("name 10", {"permitted": [other]}),
        "a DNS name that is permitted": allowed("name 11", org, names=[ID, dns("a.example.org")]),
        "a DNS name that is not permitted": allowed("name 12", org, names=[ID, dns("aexample.org")]),
        "a DNS name that is excluded": denied("name 13", org, names=[ID, dns("a.EXAMPLE.org")]),
        "a DNS name below a dot": allowed("name 14", dns(".example.org"), names=[ID, dns("example.org")]),
        "an IP address with constraints on addresses": allowed(
            "name 15", net, names=[ID, x509.IPAddress(ip_network("10.0.0.1/32").network_address)]
        ),
        "addresses constrained, and none in the leaf": allowed("name 16", net),
        "a subject that is not permitted": allowed("name 17", directory),
        "a subject that is excluded": denied("name 18", directory, name="someone else"),
        "an e-mail address that is permitted": allowed("name 19", post, names=[ID, mail("a@example.org")]),
        "an e-mail address that is not permitted": allowed("name 20", post, names=[ID, mail("a@b.c")]),
        "a URI without a host": allowed("name 21", own, names=[_uri("urn:x:y")]),
        "a URI with a port": allowed("name 22", own, names=[_uri("spiffe://cluster.local:80/ns/a/sa/b")]),
    }  # fmt: skip


def _keys() -> dict[str, Chain]:
    by_rsa = {"key": rsa_key(2048)}
    return {
        "RSA 2048": _direct("key 1", key=rsa_key(2048)),
        "RSA 1024": _direct("key 2", key=rsa_key(1024), stricter=WEAK),
        "an intermediate of RSA 1024": _below("key 3", {"key": rsa_key(1024)}, stricter=WEAK),
        "a root of RSA 1024": _direct("key 4", {"key": rsa_key(1024)}, stricter=WEAK),
        "RSA 2047": _direct("key 5", key=rsa_key(2047), stricter=WEAK),
        "a leaf signed with SHA-1": _direct("key 6", by_rsa, weak="SHA-1"),
        "a leaf signed with MD5": _direct("key 17", by_rsa, weak="MD5"),
        "an intermediate signed with SHA-1": _below("key 7", {"weak": "SHA-1"}, by_rsa),
        "a root signed with SHA-1": _direct("key 8", {**by_rsa, "weak": "SHA-1"}),
        "SHA-384": _direct("key 9", digest=hashes.SHA384()),
        "SHA-512": _direct("key 10", digest=hashes.SHA512()),
        "SHA-224": _direct("key 11", digest=hashes.SHA224()),
        "an intermediate of P-384": _below("key 12", {"key": ec.generate_private_key(ec.SECP384R1())}),
        "an intermediate of P-521": _below("key 13", {"key": ec.generate_private_key(ec.SECP521R1())}),
        "a root of P-521": _direct("key 14", {"key": ec.generate_private_key(ec.SECP521R1())}),
        "an intermediate of Ed25519": _below("key 15", {"key": ed25519.Ed25519PrivateKey.generate()}),
        "a damaged signature": _damaged("key 16"),
    }


def _damaged(case: str) -> Chain:
    maker = Maker(case)
    root = maker.root(name=case)
    impostor = maker.make(name=case)
    return maker.chain(maker.leaf(impostor, issuer_key=root.key))


def _anchors() -> dict[str, Chain]:
    lonely, trusted_leaf, partial, pinned, twins, named, crossed, both = (
        Maker(f"anchor {number}") for number in range(8)
    )
    own = lonely.make(ca=False, usage=USE, extended=BOTH, names=[ID])
    known = trusted_leaf.root(ca=False, usage=USE, extended=BOTH, names=[ID])
    middle = partial.make(partial.make())
    partial.roots.append(middle.certificate)
    leaf = pinned.leaf(pinned.make())
    pinned.roots.append(leaf.certificate)
    first, second = (twins.root(name="twins", key_ids=False) for _ in range(2))
    one, two = (named.root(name="named") for _ in range(2))
    old, new = crossed.root(), crossed.make(name="crossed new")
    bridge = crossed.make(old, name="crossed new", key=new.key)
    old_too, new_too = both.root(end=LONG_AGO), both.root(name="both new")
    bridge_too = both.make(old_too, name="both new", key=new_too.key)
    renewed = Maker("anchor renewed")
    expired_root = renewed.root(name="renewed", end=LONG_AGO)
    current_root = renewed.root(name="renewed", key=expired_root.key)
    other = Maker("anchor other")
    other.root()
    return {
        "a leaf that signed itself": lonely.chain(own),
        "a leaf that signed itself, in the bundle": trusted_leaf.chain(known),
        "an intermediate in the bundle, without its root": partial.chain(partial.leaf(middle)),
        "the leaf itself in the bundle": pinned.chain(leaf),
        "the first of two roots of one name, without key identifiers":
            twins.chain(twins.leaf(first, key_ids=False)),
        "the second of two roots of one name, without key identifiers":
            twins.chain(twins.leaf(second, key_ids=False), stricter="signature"),
        "the second of two roots of one name": named.chain(named.leaf(two)),
        "the first of two roots of one name": named.chain(named.leaf(one)),
        "a new root that an old one has signed": crossed.chain(crossed.leaf(new), bridge),
        "a trusted root, and a bridge to one that has expired": both.chain(both.leaf(new_too), bridge_too),
        "a root that was renewed with its key, both in the bundle":
            renewed.chain(renewed.leaf(current_root)),
        "another mesh's root": other.chain(other.leaf(other.make())),
    }  # fmt: skip
