"""Credentials for an API server: a token, a client certificate, or the output of an exec plugin."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meshscrape.cluster.kubeconfig import NO_PEM, Access, ExecPlugin, Pem
from meshscrape.errors import InputError, UnauthenticatedError
from meshscrape.system.clock import utcnow
from meshscrape.system.files import read_input

# A plugin runs again this long before its credential ends (seconds).
EARLY = timedelta(seconds=30)
PLUGIN_SECONDS = 60.0
_MAX_FILE = 1 << 20
_REAP_SECONDS = 1.0
# What a plugin may print: a certificate with its key takes some kB.
_MAX_ANSWER = 1 << 20
# A header with anything else would be refused, with the token in the message.
_TOKEN = re.compile(r"[!-~]+")
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
            if token and not _TOKEN.fullmatch(token):
                raise InputError(
                    "the token has characters that a token must not have",
                    where=access.token_file or access.place,
                    remedy="write the token alone",
                )
            return Credential(token=token, certificate=access.certificate, key=access.key)
        held = self._held
        if held is None or (held.until is not None and utcnow() + EARLY >= held.until):
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
    return pem.data or read_input(Path(pem.path), "the certificate or key", _MAX_FILE)


@contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    """Yield a path with the PEM text, in a file in memory.

    Embedded data is never on a disk. A file is read here and not by OpenSSL, which would wait for a pipe.
    """
    descriptor = os.memfd_create("meshscrape", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _content(pem))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _token_of(access: Access) -> str:
    if not access.token_file:
        return ""
    try:
        token = read_input(Path(access.token_file), "the token", _MAX_FILE).decode("ascii").strip()
    except ValueError:
        raise InputError(
            "the token is not text", where=access.token_file, remedy="write the token alone"
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
    printed, status = await _output_of(plugin, environment, where)
    if status != 0:
        raise UnauthenticatedError(
            f"the credential plugin failed with status {status}", where=where, remedy="log in again"
        )
    return parse_exec_credential(printed, plugin.api_version, where)


async def _output_of(plugin: ExecPlugin, environment: Mapping[str, str], where: str) -> tuple[bytes, int]:
    """Run a plugin to its end; return what it printed and its status. Nothing of it is left behind."""
    try:
        transport, output = await asyncio.get_running_loop().subprocess_exec(
            _Output, plugin.command, *plugin.arguments, env=environment, stdin=None, stderr=None
        )
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in an argument.
        raise InputError(
            f"the credential plugin cannot be run ({getattr(error, 'strerror', None) or 'its command'})",
            where=where,
            remedy=" ".join(plugin.install_hint.split()) or "install it",
        ) from None
    try:
        async with asyncio.timeout(PLUGIN_SECONDS):
            await output.ended.wait()
        if len(output.printed) > _MAX_ANSWER:
            raise UnauthenticatedError(
                f"the credential plugin prints more than {_MAX_ANSWER >> 20} MiB", where=where
            )
        return bytes(output.printed), transport.get_returncode() or 0
    except TimeoutError:
        raise UnauthenticatedError(
            f"the credential plugin did not end within {PLUGIN_SECONDS:.0f} s", where=where
        ) from None
    finally:
        # This kills a plugin that still runs, also when this process is asked to end meanwhile.
        transport.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                await output.gone.wait()


class _Output(asyncio.SubprocessProtocol):
    """What a plugin prints. `ended` is set when it has ended with its output, or has printed too much."""

    def __init__(self) -> None:
        self.printed = bytearray()
        self.ended, self.gone = asyncio.Event(), asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """See asyncio.SubprocessProtocol."""
        if len(self.printed) <= _MAX_ANSWER:
            self.printed += data
        if len(self.printed) > _MAX_ANSWER:
            self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.SubprocessProtocol."""
        self.ended.set()
        self.gone.set()


def parse_exec_credential(printed: bytes, api_version: str, where: str) -> Credential:
    """Return the credential in a plugin's answer. Raise UnauthenticatedError without one."""
    try:
        answer = json.loads(printed)
        status = answer["status"]
        token = str(status.get("token") or "")
        chain, key = (
            str(status.get(f"client{part}Data") or "").encode(_ENCODING) for part in ("Certificate", "Key")
        )
        until = status.get("expirationTimestamp")
        moment = datetime.fromisoformat(until).astimezone(UTC) if until else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UnauthenticatedError("the credential plugin printed no ExecCredential", where=where) from None
    if answer.get("apiVersion") != api_version:
        raise UnauthenticatedError(
            f"the credential plugin answered in {str(answer.get('apiVersion'))[:60]!r}, not in {api_version}",
            where=where,
        )
    if not token and not (chain and key):
        raise UnauthenticatedError(
            "the credential plugin gave neither a token nor a certificate", where=where, remedy="log in again"
        )
    if token and not _TOKEN.fullmatch(token):
        raise UnauthenticatedError(
            "the credential plugin gave a token with characters that a token must not have", where=where
        )
    return Credential(token, Pem(chain), Pem(key), moment)
