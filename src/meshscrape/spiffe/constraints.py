"""Name constraints of a chain's CAs (RFC 5280, 4.2.1.10), as BoringSSL applies them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID


def name_fault(path: Sequence[x509.Certificate]) -> str:
    """Return a message about the first name in `path` (leaf first) that a CA above it does not permit.

    Return empty text when every name is permitted.
    """
    for depth, certificate in enumerate(path):
        if depth and certificate.subject == certificate.issuer:
            continue
        for above in path[depth + 1 :]:
            constraints = _constraints(above)
            if constraints is None:
                continue
            for name in _names(certificate):
                if not _permitted(name, constraints):
                    return f"the name {_shown(name)} is not permitted by the CA's name constraints"
    return ""


def _constraints(certificate: x509.Certificate) -> x509.NameConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None


def _names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    if len(certificate.subject):
        yield x509.DirectoryName(certificate.subject)
        for address in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
            yield x509.RFC822Name(str(address.value))
    try:
        yield from certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return


def _permitted(name: x509.GeneralName, constraints: x509.NameConstraints) -> bool:
    allowed = [one for one in constraints.permitted_subtrees or () if type(one) is type(name)]
    denied = [one for one in constraints.excluded_subtrees or () if type(one) is type(name)]
    if not allowed and not denied:
        return True
    if not isinstance(
        name, (x509.UniformResourceIdentifier, x509.DNSName, x509.DirectoryName, x509.RFC822Name)
    ):
        # BoringSSL does not support constraints on other kinds of names, such as IP addresses. It refuses a
        # certificate with a name of a constrained kind.
        return False
    if isinstance(name, x509.UniformResourceIdentifier) and not _host(name.value):
        return False
    if allowed and not any(_within(name, one) for one in allowed):
        return False
    return not any(_within(name, one) for one in denied)


def _within(name: x509.GeneralName, base: x509.GeneralName) -> bool:
    match name, base:
        case x509.DirectoryName(), x509.DirectoryName():
            wanted = list(base.value.rdns)
            return list(name.value.rdns)[: len(wanted)] == wanted
        case x509.UniformResourceIdentifier(), x509.UniformResourceIdentifier():
            host, limit = _host(name.value), base.value.lower()
            return host.endswith(limit) and len(host) > len(limit) if limit.startswith(".") else host == limit
        case x509.DNSName(), x509.DNSName():
            host, limit = name.value.lower(), base.value.lower()
            return (
                not limit
                or host == limit
                or (host.endswith(limit) and (limit[0] == "." or host[-len(limit) - 1] == "."))
            )
        case x509.RFC822Name(), x509.RFC822Name():
            return _mail_within(name.value, base.value)
    return False


def _mail_within(address: str, base: str) -> bool:
    host, limit = address.rpartition("@")[2].lower(), base.lower()
    if "@" in base:
        local, _, domain = base.rpartition("@")
        return address.rpartition("@")[0] == local and host == domain.lower()
    return host.endswith(limit) if limit.startswith(".") else host == limit


def _host(uri: str) -> str:
    """Return the host of a URI, in lower case; empty when it has none."""
    _, slashes, rest = uri.partition("://")
    return rest.partition("/")[0].partition(":")[0].lower() if slashes else ""


def _shown(name: x509.GeneralName) -> str:
    value = name.value.rfc4514_string() if isinstance(name, x509.DirectoryName) else str(name.value)
    return f"{value[:200]!a}"
