"""Take back what a plan with `--scope` put into Istio's defaults."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial

from meshscrape.istio import names
from meshscrape.kube.objects import Ref, as_mapping, dig
from meshscrape.observe.observation import Observation
from meshscrape.plan.inverse import traces
from meshscrape.plan.inverse.edits import take_fields
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.taking import Taking, Test
from meshscrape.plan.workloads import Context

_VARIABLES = ("spec", "environmentVariables")


def take_defaults(
    context: Context, observation: Observation, leaving: Container[Ref], evidence: Evidence
) -> None:
    """Take back the variables of ProxyConfig objects without a selector, where all that they reach leaves.

    A default that a workload which stays still needs is kept whole.
    """
    root = observation.mesh.root_namespace
    scrapers = {scraper.ref for scraper in observation.scrapers}
    for config in context.inventory.of_kind("ProxyConfig", names.ISTIO_NETWORKING):
        if as_mapping(dig(config.data, "spec", "selector", "matchLabels")):
            continue
        reached = (
            workload.ref
            for workload in observation.workloads
            if workload.in_mesh and config.ref.namespace in (root, workload.namespace)
        )
        if not all(ref in leaving or ref in scrapers for ref in reached):
            continue
        for phase, reason, variables in (
            ("hardening", "opens the plaintext ports 15090 and 15020 by default", traces.HARDENED),
            ("listeners", "closes the secure metrics ports by default", traces.opened(config.data)),
        ):
            context.draft.phase = "hardening" if phase == "hardening" else "listeners"
            take_fields(context, config.ref, evidence, partial(_take, variables=variables), reason)


def _take(taking: Taking, variables: Mapping[str, Test]) -> None:
    for name, ours in variables.items():
        taking.key(_VARIABLES, name, ours)
