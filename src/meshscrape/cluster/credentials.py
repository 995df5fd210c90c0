"""Credentials for an API server: a token, a client certificate, or the output of an exec plugin."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meshscrape.cluster.kubeconfig import NO_PEM, Access, ExecPlugin, Pem
from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.system.clock import utcnow

# A plugin runs again this long before its credential ends (seconds).
EARLY = timedelta(seconds=30)
PLUGIN_SECONDS = 60.0
_MAX_FILE = 1 << 20
_ENCODING = "utf-8"


@dataclass(frozen=True, slots=True)
class Credential:
    """A bearer token, a client certificate with its key, or neither; `until` is when it must be renewed."""

    token: str = ""
    certificate: Pem = NO_PEM
    key: Pem = NO_PEM
    until: datetime | None = None


class Credentials:
    """The credential of an access, renewed when it ends or is refused."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._held: Credential | None = None

    async def current(self) -> Credential:
        """Return the current credential; InputError or UnauthenticatedError without one."""
        access = self._access
        if access.exec is None:
            token = access.token or _token_of(access)
            return Credential(token=token, certificate=access.certificate, key=access.key)
        held = self._held
        if held is None or (held.until is not None and utcnow() >= held.until - EARLY):
            held = self._held = await _ask_plugin(access.exec, access)
        return held

    def refused(self) -> bool:
        """Forget the credential that the server refused; return whether a new one can be requested."""
        had, self._held = self._held, None
        return had is not None or bool(self._access.token_file)


def tls_context(access: Access, credential: Credential) -> ssl.SSLContext | None:
    """Return the TLS settings for the server and the credential, or None for http://.

    Keys that are embedded in a kubeconfig are never written to disk. Raises InputError for unusable files.
    """
    if not access.server.startswith("https://"):
        return None
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if access.roots:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=_content(access.roots).decode("ascii"))
        if access.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if credential.certificate and credential.key:
            with _as_file(credential.certificate) as chain, _as_file(credential.key) as key:
                # Without a password, OpenSSL would ask on the terminal for that of an encrypted key.
                context.load_cert_chain(chain, key, password="")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the certificates cannot be used ({error})", where=access.place, remedy="check the kubeconfig"
        ) from None
    return context


def _content(pem: Pem) -> bytes:
    if pem.data:
        return pem.data
    with Path(pem.path).open("rb") as file:
        return file.read(_MAX_FILE)


@contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    """Yield a path with the PEM text. Embedded data is in a file in memory, not on a disk."""
    if not pem.data:
        yield pem.path
        return
    descriptor = os.memfd_create("meshscrape", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _token_of(access: Access) -> str:
    if not access.token_file:
        return ""
    try:
        token = _content(Pem(path=access.token_file)).decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise InputError(
            f"the token cannot be read ({reason})", where=access.token_file, remedy="check the file's rights"
        ) from None
    if not token:
        raise InputError("the token is empty", where=access.token_file, remedy="write the token")
    return token


async def _ask_plugin(plugin: ExecPlugin, access: Access) -> Credential:
    """Run a credential plugin and return what it prints.

    Source: kubernetes.io/docs/reference/access-authn-authz/authentication, "client-go credential plugins".
    """
    spec: dict[str, Any] = {"interactive": sys.stdin is not None and sys.stdin.isatty()}
    if plugin.provide_cluster_info:
        spec["cluster"] = {"server": access.server}
    request = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**os.environ, **dict(plugin.environment), "KUBERNETES_EXEC_INFO": json.dumps(request)}
    where = f"{access.place}: {plugin.command}"
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command, *plugin.arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise InputError(
            f"the credential plugin cannot be run ({error.strerror})",
            where=where,
            remedy=" ".join(plugin.install_hint.split()) or "install it",
        ) from None
    try:
        async with asyncio.timeout(PLUGIN_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise UnauthenticatedError(
            f"the credential plugin did not end within {PLUGIN_SECONDS:.0f} s", where=where
        ) from None
    if process.returncode != 0:
        raise UnauthenticatedError(
            f"the credential plugin failed with status {process.returncode}",
            where=where,
            remedy="log in again",
        )
    return parse_exec_credential(printed, plugin.api_version, where)


def parse_exec_credential(printed: bytes, api_version: str, where: str) -> Credential:
    """Return the credential in a plugin's answer. Raise UnauthenticatedError without one."""
    try:
        answer = json.loads(printed)
        status = answer["status"]
        token = str(status.get("token") or "")
        chain, key = (str(status.get(f"client{part}Data") or "") for part in ("Certificate", "Key"))
        until = status.get("expirationTimestamp")
        moment = datetime.fromisoformat(until).astimezone(UTC) if until else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnauthenticatedError("the credential plugin printed no ExecCredential", where=where) from None
    if answer.get("apiVersion") != api_version:
        raise UnauthenticatedError(
            f"the credential plugin answered in {answer.get('apiVersion')!r}, not in {api_version}",
            where=where,
        )
    if not token and not (chain and key):
        raise UnauthenticatedError(
            "the credential plugin gave neither a token nor a certificate", where=where, remedy="log in again"
        )
    return Credential(token, Pem(chain.encode(_ENCODING)), Pem(key.encode(_ENCODING)), moment)
