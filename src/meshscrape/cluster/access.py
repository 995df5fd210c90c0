"""Find the API server to talk to: a named kubeconfig, $KUBECONFIG, the pod's own account, ~/.kube/config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from meshscrape.cluster.kubeconfig import Access, in_cluster, merge, parse_kubeconfig
from meshscrape.errors import InputError
from meshscrape.kube.yaml_text import load_text
from meshscrape.system.files import read_input

# The largest that are known have some hundred clusters, with a certificate of 2 kB each.
_MAX_FILE = 1 << 23


def find_access(kubeconfig: Path | None = None, context: str = "") -> Access:
    """Return the access to use. Raise InputError without one, or for an unusable kubeconfig.

    Without a kubeconfig option or variable, a pod uses its ServiceAccount.
    """
    named = [kubeconfig] if kubeconfig else [Path(part) for part in _variable().split(os.pathsep) if part]
    if not named:
        own = in_cluster(os.environ)
        if own is not None and not context:
            return own
        named = [Path.home() / ".kube/config"]
    files = [(path, _load(path)) for path in named if path == kubeconfig or path.exists()]
    if not files:
        raise InputError(
            "no kubeconfig found",
            where=str(named[0]),
            remedy="give --kubeconfig FILE, or run inside a pod",
            code="no-cluster",
        )
    if len(files) == 1:
        return parse_kubeconfig(files[0][1], files[0][0].absolute(), context)
    merged, first = merge([(path.absolute(), data) for path, data in files])
    return parse_kubeconfig(merged, first, context)


def _variable() -> str:
    return os.environ.get("KUBECONFIG", "")


def _load(path: Path) -> Any:
    data = read_input(path, "the kubeconfig", _MAX_FILE)
    try:
        return load_text(data.decode(), str(path))
    except UnicodeDecodeError:
        raise InputError("the kubeconfig is not text", where=str(path), remedy="copy it again") from None
    except InputError as error:
        if error.code != "not-yaml":
            raise
        # Do not repeat the YAML parser's message, because it can contain a part of a token.
        raise InputError(
            "the kubeconfig is not YAML", where=error.where, remedy="correct the line", code=error.code
        ) from None
