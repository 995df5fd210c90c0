"""A pod's volumes, written as the kubelet writes them."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from conformance.cluster.api import Api, Object

KINDS = ("configMap", "secret", "downwardAPI", "projected", "emptyDir", "hostPath")


class MissingError(Exception):
    """Something that the pod needs does not exist yet."""


class Tokens:
    """A pod's ServiceAccount tokens by TokenRequest; each is asked for again at 80 % of its life."""

    def __init__(self, api: Api, namespace: str, account: str, pod: str, uid: str) -> None:
        self._api, self._path = api, f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        self._bound = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
        self._known: dict[str, tuple[str, float]] = {}

    def get(self, audience: str, seconds: int) -> str:
        """Return a valid token for an audience (empty for the API server's own)."""
        token, until = self._known.get(audience, ("", 0.0))
        if time.monotonic() < until:
            return token
        spec: Object = {"expirationSeconds": seconds, "boundObjectRef": self._bound}
        if audience:
            spec["audiences"] = [audience]
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token = str(self._api.post(self._path, request)["status"]["token"])
        self._known[audience] = token, time.monotonic() + 0.8 * seconds
        return token


class Volumes:
    """Fills the directories of a pod's volumes, and refreshes them."""

    def __init__(
        self, api: Api, namespace: str, directory: Path, tokens: Tokens, field: Callable[[Object], str]
    ) -> None:
        self._api, self._namespace, self._directory = api, namespace, directory
        self._tokens, self._field = tokens, field

    def path(self, volume: Object) -> str:
        """Return the directory or file on the node that is a volume's content."""
        if "hostPath" in volume:
            return str(volume["hostPath"]["path"])
        return str(self._directory / volume["name"])

    def write(self, volumes: list[Object]) -> None:
        """Write all volumes; MissingError when an object is not there yet."""
        for volume in volumes:
            kind = next((kind for kind in KINDS if kind in volume), None)
            if kind is None:
                raise MissingError(f"volume {volume['name']}: this kubelet knows only {', '.join(KINDS)}")
            if kind == "hostPath":
                continue
            target = self._directory / volume["name"]
            target.mkdir(parents=True, exist_ok=True)
            target.chmod(0o777)
            if kind != "emptyDir":
                write_atomically(target, self._files(kind, volume[kind]))

    def data(self, kind: str, name: str, optional: bool) -> dict[str, bytes]:
        """Return the content of a ConfigMap (`configMap`) or Secret (`secret`)."""
        plural = {"configMap": "configmaps", "secret": "secrets"}[kind]
        found = self._api.find(f"/api/v1/namespaces/{self._namespace}/{plural}/{name}")
        if found is None:
            if optional:
                return {}
            raise MissingError(f'{plural[:-1]} "{name}" not found')
        plain = found.get("data") or {}
        data = {k: base64.b64decode(v) if kind == "secret" else v.encode() for k, v in plain.items()}
        return data | {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}

    def _files(self, kind: str, source: Object) -> dict[str, bytes]:
        if kind == "projected":
            files: dict[str, bytes] = {}
            for part in source["sources"]:
                for inner, value in part.items():
                    files |= self._files(inner, value)
            return files
        if kind == "serviceAccountToken":
            token = self._tokens.get(source.get("audience", ""), source.get("expirationSeconds", 3600))
            return {source["path"]: token.encode()}
        if kind == "downwardAPI":
            return {item["path"]: self._field(item).encode() for item in source.get("items", [])}
        if kind not in ("configMap", "secret"):
            raise MissingError(f"this kubelet does not know the volume source {kind}")
        name = source.get("name") or source["secretName"]
        data = self.data(kind, name, bool(source.get("optional")))
        items = source.get("items")
        return {item["path"]: data[item["key"]] for item in items if item["key"] in data} if items else data


def write_atomically(target: Path, files: dict[str, bytes]) -> bool:
    """Write files so that readers see all old or all new ones; return whether something changed.

    Files are links through `..data`, which one rename moves to a new directory, as in the kubelet's
    AtomicWriter.
    """
    link = target / "..data"
    old = link.resolve() if link.is_symlink() else None
    if old is not None and _read(old) == files:
        return False
    fresh = target / f"..{time.time_ns()}"
    fresh.mkdir(mode=0o755)
    for path, data in files.items():
        file = fresh / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o644)
    step = target / "..data_tmp"
    step.symlink_to(fresh.name)
    step.rename(link)
    tops = {path.split("/")[0] for path in files}
    for top in tops:
        if not (target / top).is_symlink():
            (target / top).symlink_to(f"..data/{top}")
    for entry in list(target.iterdir()):
        if not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old)
    return True


def _read(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }
