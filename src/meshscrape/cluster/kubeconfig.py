"""Read how to reach an API server: a kubeconfig's context, or the pod's own ServiceAccount. Pure.

The format is that of kubectl (kubernetes.io/docs/reference/config-api/kubeconfig.v1).
Files that a kubeconfig refers to stay paths here. `cluster.credentials` reads them when they are needed,
because such files can be replaced.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshscrape.errors import InputError, Place
from meshscrape.istio.host_port import host_port

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM text, either embedded or in the file at `path`; both are empty without one."""

    data: bytes = b""
    path: str = ""

    def __bool__(self) -> bool:
        return bool(self.data or self.path)


NO_PEM = Pem()


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints an ExecCredential, as `aws eks get-token` and `gke-gcloud-auth-plugin` do."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    api_version: str = EXEC_VERSIONS[0]
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and the credentials for it. `place` names the kubeconfig and context for errors.

    `proxy` is an HTTP proxy that connects to it. `control` is another API server, which has Istio's objects
    (ASM); None if this one has them.
    """

    server: str
    place: str
    namespace: str = "default"
    roots: Pem = NO_PEM
    server_name: str = ""
    skip_verify: bool = False
    certificate: Pem = NO_PEM
    key: Pem = NO_PEM
    token: str = ""
    token_file: str = ""
    exec: ExecPlugin | None = None
    proxy: tuple[str, int] | None = None
    control: Access | None = None


_PROXY = re.compile(r"http://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?/?")


def in_cluster(environment: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Access | None:
    """Return the access of a pod's own ServiceAccount, None outside a pod.

    Source: kubernetes.io/docs/tasks/run-application/access-api-from-pod.
    """
    host, port = (environment.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    if not host or not port:
        return None
    return Access(
        server=f"https://{host_port(host, port)}",
        place="the pod's ServiceAccount",
        roots=Pem(path=str(directory / "ca.crt")),
        token_file=str(directory / "token"),
    )


def parse_kubeconfig(data: Any, path: Path, context: str = "") -> Access:
    """Return the access that a kubeconfig's context describes, the current one by default.

    `data` is the parsed file at `path`; relative paths in it start at its directory. Raises InputError when
    the context, its cluster or its user is missing, or when a field has the wrong type.
    """
    root = _Section(data, Place(file=str(path)))
    name = context or root.text("current-context")
    if not name:
        raise root.error(
            "no current context is set", "run `kubectl config use-context NAME` or give --context"
        )
    chosen = root.named("contexts", "context", name)
    cluster = root.named("clusters", "cluster", chosen.text("cluster"))
    user = (
        root.named("users", "user", chosen.text("user")) if chosen.text("user") else _Section({}, root.place)
    )
    if user.data.get("auth-provider"):
        raise user.error(
            "auth-provider is not supported", "use an exec plugin; kubectl removed auth-provider, too"
        )
    server = cluster.text("server").rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise cluster.error(
            f"server {server!r} is not an http:// or https:// URL", "write the API server's URL"
        )
    if "@" in server:
        # The password would be in every message about the server.
        raise cluster.error("server has a user or a password", "use credentials of the kubeconfig's user")
    directory = path.parent
    return Access(
        server=server,
        place=f"context {name} of {path}",
        namespace=chosen.text("namespace") or "default",
        roots=cluster.pem("certificate-authority", directory),
        server_name=cluster.text("tls-server-name"),
        proxy=_proxy(cluster),
        skip_verify=cluster.flag("insecure-skip-tls-verify"),
        certificate=user.pem("client-certificate", directory),
        key=user.pem("client-key", directory),
        token=user.text("token"),
        token_file=_beside(directory, user.text("tokenFile")),
        exec=_exec_plugin(user, directory),
    )


def _proxy(cluster: _Section) -> tuple[str, int] | None:
    """Return the address of the HTTP proxy before the API server.

    Raises InputError for other kinds of proxies.
    """
    text = cluster.text("proxy-url")
    if not text:
        return None
    address = _PROXY.fullmatch(text)
    if address is None:
        raise cluster.error(
            f"proxy-url {text!r} is not supported", "use http://HOST:PORT, without a user and a path"
        )
    return address["host"].strip("[]"), int(address["port"] or 80)


def merge(files: list[tuple[Path, Any]]) -> tuple[Any, Path]:
    """Return several kubeconfigs as one, as kubectl merges those of $KUBECONFIG, and the first one's path.

    The first file to define a name wins. Relative paths keep the directory of their own file.
    """
    merged: dict[str, Any] = {"contexts": [], "clusters": [], "users": []}
    for path, data in files:
        root = _Section(data, Place(file=str(path)))
        if not merged.get("current-context"):
            merged["current-context"] = root.text("current-context")
        for kind, key in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            known = {entry["name"] for entry in merged[kind]}
            for entry in root.entries(kind):
                if entry.get("name") not in known:
                    body = _Section(entry.get(key) or {}, Place(file=str(path), object=key)).data
                    merged[kind].append({"name": entry.get("name"), key: _absolute(body, path.parent)})
    return merged, files[0][0]


class _Section:
    """A mapping of a kubeconfig with its place."""

    def __init__(self, data: Any, place: Place) -> None:
        self.data: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        self.place = place
        if not isinstance(data, Mapping):
            raise self.error("is not a mapping", "give a kubeconfig")

    def error(self, what: str, remedy: str) -> InputError:
        return InputError(what, where=self.place, remedy=remedy, code="kubeconfig")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"{key} is not text", "quote it")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.error(f"{key} is neither true nor false", "write true or false")
        return value

    def entries(self, kind: str) -> list[Mapping[str, Any]]:
        entries = self.data.get(kind) or []
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise self.error(f"{kind} is not a list of mappings", "give a kubeconfig")
        if not all(isinstance(entry.get("name", ""), str) for entry in entries):
            raise self.error(f"a name in {kind} is not text", "quote it")
        return entries

    def named(self, kind: str, key: str, name: str) -> _Section:
        entries = self.entries(kind)
        for entry in entries:
            if entry.get("name") == name:
                return _Section(entry.get(key) or {}, Place(file=self.place.file, object=f"{key} {name}"))
        known = ", ".join(sorted(str(entry.get("name")) for entry in entries)) or "none"
        raise self.error(f"{key} {name!r} does not exist", f"use one of: {known}")

    def pem(self, key: str, directory: Path) -> Pem:
        encoded = self.text(f"{key}-data")
        if not encoded:
            return Pem(path=_beside(directory, self.text(key)))
        try:
            return Pem(data=base64.b64decode(encoded, validate=True))
        except ValueError:
            raise self.error(f"{key}-data is not base64", "copy the kubeconfig again") from None


def _exec_plugin(user: _Section, directory: Path) -> ExecPlugin | None:
    if not user.data.get("exec"):
        return None
    section = _Section(user.data["exec"], Place(file=user.place.file, object=user.place.object, field="exec"))
    version = section.text("apiVersion")
    if version not in EXEC_VERSIONS:
        raise section.error(f"apiVersion {version!r} is not supported", f"use {EXEC_VERSIONS[0]}")
    command = section.text("command")
    if not command:
        raise section.error("command is missing", "name the credential plugin")
    arguments = section.data.get("args") or []
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise section.error("args is not a list of texts", "quote every argument")
    variables = [(str(entry.get("name")), str(entry.get("value"))) for entry in section.entries("env")]
    return ExecPlugin(
        command=_beside(directory, command) if "/" in command else command,
        arguments=tuple(arguments),
        environment=tuple(variables),
        api_version=version,
        install_hint=section.text("installHint"),
        provide_cluster_info=section.flag("provideClusterInfo"),
    )


def _beside(directory: Path, path: str) -> str:
    return str(directory / path) if path else ""


_PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


def _absolute(entry: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return a context, cluster or user whose relative paths start at `directory`."""
    body = dict(entry)
    for field in _PATHS:
        if isinstance(body.get(field), str) and body[field]:
            body[field] = _beside(directory, body[field])
    plugin = body.get("exec")
    if isinstance(plugin, Mapping) and "/" in str(plugin.get("command", "")):
        body["exec"] = {**plugin, "command": _beside(directory, str(plugin["command"]))}
    return body
