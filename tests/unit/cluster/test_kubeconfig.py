"""How an API server is reached, from kubeconfigs as people have them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from meshscrape.cluster.kubeconfig import ExecPlugin, Pem, in_cluster, merge, parse_kubeconfig
from meshscrape.errors import InputError

PATH = Path("/home/jane/.kube/config")


def kubeconfig(user: dict[str, Any] | None = None, **cluster: Any) -> dict[str, Any]:
    """A kubeconfig with one context."""
    return {
        "current-context": "dev",
        "contexts": [{"name": "dev", "context": {"cluster": "east", "user": "jane", "namespace": "shop"}}],
        "clusters": [{"name": "east", "cluster": {"server": "https://10.0.0.1:6443", **cluster}}],
        "users": [{"name": "jane", "user": user or {}}],
    }


def encoded(text: str) -> str:
    """Base64, as a kubeconfig holds PEM text."""
    return base64.b64encode(text.encode()).decode()


def test_reads_server_namespace_and_held_certificates() -> None:
    """Data in the file is decoded; the place names the context for errors."""
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")}
    data = kubeconfig(user, **{"certificate-authority-data": encoded("CA"), "tls-server-name": "api"})
    access = parse_kubeconfig(data, PATH)
    assert (access.server, access.namespace, access.server_name) == ("https://10.0.0.1:6443", "shop", "api")
    assert (access.roots, access.certificate, access.key) == (Pem(b"CA"), Pem(b"CERT"), Pem(b"KEY"))
    assert access.place == f"context dev of {PATH}"


def test_relative_paths_start_at_the_directory_of_the_kubeconfig() -> None:
    """As kubectl reads them; absolute ones stay."""
    user = {"client-certificate": "jane.crt", "client-key": "/secure/jane.key", "tokenFile": "token"}
    access = parse_kubeconfig(kubeconfig(user), PATH)
    assert access.certificate.path == "/home/jane/.kube/jane.crt"
    assert access.key.path == "/secure/jane.key"
    assert access.token_file == "/home/jane/.kube/token"


def test_reads_an_exec_plugin() -> None:
    """Command, arguments and environment; a bare command is looked for on PATH."""
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "args": ["eks", "get-token"],
        "env": [{"name": "AWS_PROFILE", "value": "dev"}], "installHint": "install the AWS CLI",
    }  # fmt: skip
    access = parse_kubeconfig(kubeconfig({"exec": plugin}), PATH)
    assert access.exec == ExecPlugin(
        "aws", ("eks", "get-token"), (("AWS_PROFILE", "dev"),), install_hint="install the AWS CLI"
    )


@pytest.mark.parametrize(
    ("data", "context", "said"),
    [
        ([], "", "is not a mapping"),
        ({"contexts": []}, "", "no current context"),
        (kubeconfig(), "prod", "context 'prod' does not exist"),
        ({**kubeconfig(), "clusters": []}, "", "cluster 'east' does not exist"),
        ({**kubeconfig(), "users": []}, "", "user 'jane' does not exist"),
        (kubeconfig(server="10.0.0.1"), "", "not an http:// or https:// URL"),
        (kubeconfig({"client-key-data": "%"}), "", "client-key-data is not base64"),
        (kubeconfig({"token": 5}), "", "token is not text"),
        (kubeconfig({"auth-provider": {"name": "gcp"}}), "", "auth-provider is not supported"),
        (kubeconfig({"exec": {"apiVersion": "v1alpha1", "command": "x"}}), "", "apiVersion 'v1alpha1'"),
        (kubeconfig(**{"insecure-skip-tls-verify": "yes"}), "", "neither true nor false"),
    ],
)
def test_refuses_what_kubectl_refuses(data: Any, context: str, said: str) -> None:
    """Each mistake is an input error that names the file."""
    with pytest.raises(InputError, match=said) as refused:
        parse_kubeconfig(data, PATH, context)
    assert refused.value.code == "kubeconfig"
    assert refused.value.place.file == str(PATH)


def test_first_kubeconfig_wins_and_paths_keep_their_directory() -> None:
    """As kubectl merges the files of $KUBECONFIG."""
    first = {"contexts": [{"name": "dev", "context": {"cluster": "east", "user": "jane"}}]}
    second = kubeconfig({"client-key": "jane.key"}) | {"current-context": "dev"}
    data, path = merge([(Path("/a/one"), first), (Path("/b/two"), second)])
    access = parse_kubeconfig(data, path)
    assert access.namespace == "default"
    assert access.key.path == "/b/jane.key"


def test_pod_uses_its_own_service_account() -> None:
    """The variables that the kubelet sets, an IPv6 address in brackets; None outside a pod."""
    found = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, Path("/sa"))
    assert found is not None
    assert (found.server, found.token_file, found.roots.path) == (
        "https://[fd00::1]:443",
        "/sa/token",
        "/sa/ca.crt",
    )
    assert in_cluster({}) is None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://10.0.0.9:3128", ("10.0.0.9", 3128)),
        ("http://proxy.example.com/", ("proxy.example.com", 80)),
        ("http://[fd00::1]:3128", ("fd00::1", 3128)),
    ],
)
def test_an_http_proxy_before_the_api_server_is_used(url: str, address: tuple[str, int]) -> None:
    assert parse_kubeconfig(kubeconfig(**{"proxy-url": url}), PATH).proxy == address


@pytest.mark.parametrize("url", ["socks5://10.0.0.9:1080", "https://10.0.0.9", "http://me:secret@10.0.0.9"])
def test_other_proxies_before_the_api_server_are_refused(url: str) -> None:
    """Going there directly instead would be another way than the one that was written down."""
    with pytest.raises(InputError) as refused:
        parse_kubeconfig(kubeconfig(**{"proxy-url": url}), PATH)
    assert refused.value.code == "kubeconfig"
