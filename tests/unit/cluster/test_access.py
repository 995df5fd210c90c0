"""Kubeconfigs that are no kubeconfigs, from files."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from meshscrape.cluster.access import find_access
from meshscrape.cluster.credentials import Credential, tls_context
from meshscrape.cluster.kubeconfig import Access, Pem
from meshscrape.errors import InputError
from support.ca import TestCa

SECRET = "c2VjcmV0"


@pytest.mark.parametrize(
    "data",
    [
        b"made: 2026-13-45\n",
        b"[" * 3000,
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*d]\n",
        b"\xff\xfe",
        f"token: '{SECRET}\n".encode(),
        f"token: !!int {SECRET}\n".encode(),
        f"token: {SECRET}: {SECRET}\n".encode(),
        f"token: *{SECRET}\n".encode(),
    ],
    ids=["date", "deep", "alias", "bytes", "unfinished", "number", "colons", "star"],
)
def test_an_unreadable_kubeconfig_is_one_line_without_its_secrets(tmp_path: Path, data: bytes) -> None:
    """Whatever the reader of YAML cannot make of it is an error of the input that names the file."""
    path = tmp_path / "config"
    path.write_bytes(data)
    with pytest.raises(InputError) as refused:
        find_access(path)
    assert str(path) in str(refused.value)
    assert SECRET not in str(refused.value)


def test_encrypted_key_is_refused_and_nothing_is_asked_for() -> None:
    """A service has no terminal to type a password on."""
    files = TestCa().workload("shop", "web")
    encryption = serialization.BestAvailableEncryption(b"secret")
    key = serialization.load_pem_private_key(files.key_pem, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    access = Access(server="https://10.0.0.1:6443", place="context dev")
    with pytest.raises(InputError, match="certificates cannot be used"):
        tls_context(access, Credential(certificate=Pem(files.chain_pem), key=Pem(key)))
    assert tls_context(access, Credential(certificate=Pem(files.chain_pem), key=Pem(files.key_pem)))
