"""What a stock Istio proxy tells of scrapers that the override refused: the series of the alert."""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

from meshscrape.envoy.override import BOOTSTRAP_FILE, SCRAPERS_FILE, OverrideOptions, allow_list, override
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.prometheus.rules import RuleOptions, rule_groups
from support.addresses import loopback
from support.forgery import Forge
from support.istio_proxy import istio_bootstrap, running_istio_envoy
from support.sds import sds_server
from support.sidecar import ALLOW, SERVER
from support.wire import ask

STRANGER = "spiffe://cluster.local/ns/default/sa/stranger"
# What decides the name in istio/istio: which statistics are kept (`pkg/bootstrap/config.go`), and what is cut
# out of their names as a label (`envoy_bootstrap.json`, `stats_config`).
STATS = {
    "use_all_default_tags": False,
    "stats_tags": [
        {"tag_name": "http_conn_manager_prefix", "regex": r"^http\.(((?:[_.[:digit:]\w]*));\.)"},
        {"tag_name": "authz_enforce_result", "regex": r"rbac(\.(allowed|denied))"},
    ],
    "stats_matcher": {"inclusion_list": {"patterns": [{"prefix": "server"}, {"suffix": "rbac.denied"}]}},
}


def test_a_refusal_on_either_port_counts_where_the_alert_looks(tmp_path: Path) -> None:
    """With Istio's own tags and inclusion list, each listener's refusals match a selector of the rule."""
    forge, address = Forge(), loopback()
    text = json.dumps(override(OverrideOptions(15092, 15091, (address,), str(tmp_path))))
    (tmp_path / BOOTSTRAP_FILE).write_text(text)
    (tmp_path / SCRAPERS_FILE).write_text(json.dumps(allow_list(parse_scrapers(ALLOW))))
    with ExitStack() as stack:
        # A Unix socket's address is short.
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "socket"
        stack.enter_context(sds_server(socket, forge.leaf(SERVER), forge.root))
        main = {**istio_bootstrap(address, socket), "stats_config": STATS}
        envoy = stack.enter_context(running_istio_envoy(tmp_path, main, text))
        for port in (15091, 15092):
            answer = ask(address, port, "/stats/prometheus", forge.leaf(STRANGER).client_context())
            assert answer.status == 403
        exposition = str(envoy.admin("/stats/prometheus")[1])
    denied = re.findall(r'(envoy_http_\w+_rbac)\{authz_enforce_result="denied"\} 1\b', exposition)
    assert len(denied) == 2
    patterns = [re.compile(each) for each in re.findall(r'__name__=~"([^"]+)"', _expression())]
    assert {name for name in denied if any(each.fullmatch(name) for each in patterns)} == set(denied)


def _expression() -> str:
    (found,) = [
        rule["expr"]
        for group in rule_groups(RuleOptions())
        for rule in group["rules"]
        if rule["alert"] == "MeshScrapeRefused"
    ]
    return str(found)
