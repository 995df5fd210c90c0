"""Ask a running scrape proxy whether it is ready: for the probes of a pod."""

from __future__ import annotations

import http.client
from pathlib import Path

from meshscrape.errors import MeshscrapeError
from meshscrape.istio.host_port import host_port
from meshscrape.proxy.http_sd import READY
from meshscrape.system.files import read_input

TIMEOUT = 3.0


def why_not_ready(discovery: tuple[str, int], token_file: Path) -> str:
    """Return why the proxy with this discovery address is not ready, or an empty text if it is.

    A proxy is ready when its Envoy uses the first list of targets.
    """
    connection = http.client.HTTPConnection(*discovery, timeout=TIMEOUT)
    try:
        token = read_input(token_file, "the token").decode("ascii", "replace").strip()
        connection.request("GET", READY, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        told = response.read(1 << 12).decode("utf-8", "replace").strip()
    except MeshscrapeError as error:
        return str(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"no answer at {host_port(*discovery)} ({error})"
    finally:
        connection.close()
    return "" if response.status == 200 else told or f"status {response.status}"
