"""A small API server that lists pods, and a kubeconfig for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from support.applications import Behaviour, header

POD: dict[str, Any] = {
    "metadata": {
        "name": "web-0", "namespace": "shop", "uid": "1",
        "annotations": {"prometheus.istio.io/secure-port": "15092"},
    },
    "spec": {"serviceAccountName": "web", "containers": [{"name": "istio-proxy", "image": "proxyv2:1.31.0"}]},
    "status": {"phase": "Running", "podIP": "127.9.9.9", "podIPs": [{"ip": "127.9.9.9"}]},
}  # fmt: skip


def lists_pods(status: int = 200, document: Any = None) -> Behaviour:
    """An API server that answers every list so, and no watch at all."""

    async def behave(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"watch=1" in request:
            await asyncio.Event().wait()
        told = document or {"metadata": {"resourceVersion": "7"}, "items": [POD]}
        body = json.dumps(told).encode()
        head = header("application/json", f"Content-Length: {len(body)}", status=f"{status} Status")
        writer.write(head + body)
        await writer.drain()

    return behave


def kubeconfig(directory: Path, url: str, **user: str) -> list[str]:
    """Write a kubeconfig; return the options that use it."""
    file = directory / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "here",
    }
    file.write_text(json.dumps(document))
    return ["--kubernetes", "--kubeconfig", str(file)]
