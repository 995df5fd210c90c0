"""A workload's token is renewed long before it expires."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import jwt
import pytest

from meshscrape.ca.tokens import TokenIssuer
from meshscrape.kube.mesh import parse_mesh
from meshscrape.kube.mesh_spec import load_documents
from meshscrape.local import workload
from meshscrape.local.addresses import AddressPair
from meshscrape.local.environment import base_environment
from meshscrape.local.layout import Site, plan_mesh
from meshscrape.prometheus.config import CaMetrics
from support.mesh import workload_manifest
from support.polling import eventually_async


def test_a_token_is_replaced_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of its life a new one is in the file (0600), for the same account and audience."""
    monkeypatch.setattr(workload, "TOKEN_LIFETIME", timedelta(seconds=4))
    monkeypatch.setattr(workload, "_LOOK_TOKEN", 0.05)
    ca, environment = CaMetrics("127.0.0.1:2", ""), base_environment({"PATH": "/usr/bin:/bin"})
    site = Site(tmp_path, "127.0.0.1:1", ca, tmp_path / "root.pem", environment)
    mesh = parse_mesh(load_documents(workload_manifest("web", namespace="shop"), "mesh.yaml"))
    (plan,) = plan_mesh(mesh, {("shop", "web"): AddressPair("127.20.1.1", "127.20.2.1")}, site).values()
    plan.directory.mkdir(parents=True)
    running = workload.RunningWorkload(plan, TokenIssuer.load_or_create(tmp_path / "issuer"), lambda: None)

    def claims() -> dict[str, object]:
        return dict(jwt.decode(plan.token.read_text(), options={"verify_signature": False}))

    async def scenario() -> None:
        running._write_token()
        first = claims()
        refreshing = asyncio.create_task(running._refresh_token())

        async def replaced() -> bool:
            return claims()["jti"] != first["jti"]

        await eventually_async(replaced, within=10)
        refreshing.cancel()
        second = claims()
        assert second["sub"] == first["sub"] == "system:serviceaccount:shop:web"
        assert second["iat"] < first["exp"]  # type: ignore[operator]
        assert plan.token.stat().st_mode & 0o777 == 0o600

    asyncio.run(scenario())
