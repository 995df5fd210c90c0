"""Write the files of the Helm chart that the package defines: containers, jobs, rights, rules, dashboard.

`make chart` runs it. `tests/unit/test_chart.py` fails when a file is not what this would write.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from meshscrape.cluster.rights import RULES
from meshscrape.kube.yaml_text import dump
from meshscrape.prometheus import scrape_proxy_pod
from meshscrape.prometheus.kubernetes_sd import ClusterJobs, secure_jobs
from meshscrape.prometheus.operator import pod_monitors, proxy_scrape_class
from meshscrape.prometheus.options import PrometheusOptions
from meshscrape.prometheus.recorded import recorded_dashboard
from meshscrape.prometheus.rules import RuleOptions, rules_file, verifier_rules

CHART = Path(__file__).parent.parent / "charts/meshscrape"
# The chart's templates replace these with values.
IMAGE, CA, TRUST_DOMAIN = "IMAGE-OF-MESHSCRAPE", "ADDRESS-OF-THE-CA", "TRUST-DOMAIN-OF-THE-MESH"
MADE = "# Made by `make chart`.\n"


def chart_files() -> dict[str, str]:
    """Return the text of each file below `files/`, by its name."""
    proxy = scrape_proxy_pod.ScrapeProxyPod(IMAGE, CA, TRUST_DOMAIN)
    parts = {
        "initContainers": scrape_proxy_pod.init_containers(proxy),
        "volumes": scrape_proxy_pod.volumes(proxy),
        "volumeMounts": [scrape_proxy_pod.token_mount()],
        "scrapeClasses": [proxy_scrape_class()],
    }
    monitors = pod_monitors(PrometheusOptions(name="scrape", namespace="", proxy=proxy))
    board = files("meshscrape.prometheus").joinpath("dashboard.json").read_text(encoding="utf-8")
    return {
        # JSON, so that a value in the place of a placeholder stays a string.
        "proxy.json": json.dumps(parts, indent=2) + "\n",
        "jobs.yaml": MADE + dump(secure_jobs(ClusterJobs("", proxy=scrape_proxy_pod.IN_POD))),
        "monitors.yaml": MADE + dump({"monitors": monitors}),
        "verifier-rules.yaml": MADE + dump(RULES["verify"]),
        "verifier-alerts.yaml": MADE + dump(verifier_rules()),
        "rules.yaml": rules_file(RuleOptions()),
        "dashboard.json": recorded_dashboard(board),
    }


def main() -> None:
    """Write the files."""
    for name, text in chart_files().items():
        (CHART / "files" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
