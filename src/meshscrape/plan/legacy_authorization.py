"""Plan Istio policies that let only the scraper read the port of legacy mode."""

from __future__ import annotations

from meshscrape.istio import names
from meshscrape.istio.allow_list import DnsScraper, SpiffeScraper, TrustDomainScraper
from meshscrape.kube.objects import Manifest, Ref, as_mapping, dig, labels, selects
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.model import LEGACY_PORT, MANAGER
from meshscrape.plan.workloads import Context, PlannedWorkload, istio_object, selector_of

_METHODS = ["GET", "HEAD"]


def plan_authorization(context: Context, target: PlannedWorkload) -> None:
    """Plan a policy that denies all but the scraper, and one that allows it if other policies deny it."""
    principals = _principals(context)
    # This is DENY with a negative match, because an ALLOW policy would deny all other traffic of the
    # workload. The port leads to the agent's whole server, so the policy also denies all requests but reading
    # metrics.
    port: Mutable = {"ports": [str(LEGACY_PORT)]}
    rules = [
        {
            "from": [{"source": {"notPrincipals": principals or ["-"]}}],
            "to": [{"operation": port}],
        },
        {"to": [{"operation": {**port, "notPaths": [names.MERGED_PATH]}}]},
        {"to": [{"operation": {**port, "notMethods": _METHODS}}]},
    ]
    reason = f"lets only the scraper read {LEGACY_PORT}"
    _ensure(context, target, policy_name(target), "DENY", rules, reason)
    allowing = allow_policies(context, target)
    own = Ref(names.ISTIO_SECURITY, "AuthorizationPolicy", target.workload.namespace, allow_name(target))
    if not allowing:
        if labels(context.object_of(own)).get(names.MANAGED_BY) == MANAGER:
            # As the only ALLOW policy, it would deny everything but the scrapes.
            context.draft.delete(own, "no other ALLOW policy selects the workload any more")
        return
    allowed = {**port, "paths": [names.MERGED_PATH], "methods": _METHODS}
    rule = {"from": [{"source": {"principals": principals or ["-"]}}], "to": [{"operation": allowed}]}
    others = ", ".join(str(policy.ref) for policy in allowing)
    _ensure(context, target, own.name, "ALLOW", [rule], f"allows the scraper in addition to {others}")
    context.draft.note(
        own,
        "allow-policy-added",
        f"it adds to {others}; without them, it would be the only ALLOW policy and deny all other requests",
        "delete it together with the others, or plan again before",
    )


def policy_name(target: PlannedWorkload) -> str:
    """Return the name of the DENY policy."""
    return f"meshscrape-{target.workload.name}"


def allow_name(target: PlannedWorkload) -> str:
    """Return the name of the ALLOW policy."""
    return f"meshscrape-{target.workload.name}-allow"


def allow_policies(context: Context, target: PlannedWorkload) -> list[Manifest]:
    """Return others' ALLOW policies for a workload. If one exists, Istio denies what no policy allows."""
    workload = target.workload
    namespaces = dict.fromkeys((workload.namespace, context.observation.mesh.root_namespace))
    return [
        policy
        for namespace in namespaces
        for policy in context.inventory.in_namespace(namespace, "AuthorizationPolicy", names.ISTIO_SECURITY)
        if dig(policy.data, "spec", "action", default="ALLOW") == "ALLOW"
        and labels(policy.data).get(names.MANAGED_BY) != MANAGER
        and not dig(policy.data, "spec", "targetRefs")
        and selects(as_mapping(dig(policy.data, "spec", "selector")), workload.labels)
    ]


def _principals(context: Context) -> list[str]:
    """Return the allow list in the syntax of Istio's policies."""
    mesh = context.observation.mesh
    principals: dict[str, None] = {}
    for scraper in context.scrapers:
        match scraper:
            case SpiffeScraper(spiffe_id):
                path = str(spiffe_id).removeprefix("spiffe://")
                principals[path] = None
                domain, _, rest = path.partition("/")
                if domain == mesh.trust_domain:
                    principals |= {f"{alias}/{rest}": None for alias in mesh.trust_domain_aliases}
            case TrustDomainScraper(trust_domain):
                principals[f"{trust_domain}/*"] = None
            case DnsScraper():
                context.draft.note(
                    None,
                    "dns-scraper-in-legacy",
                    f"{scraper} cannot be allowed in legacy mode: Istio's policies only know workloads",
                    "use --mode bootstrap for scrapers from outside the mesh",
                )
    return list(principals)


def _ensure(
    context: Context, target: PlannedWorkload, name: str, action: str, rules: list[Mutable], reason: str
) -> None:
    spec: Mutable = {
        "selector": {"matchLabels": selector_of(context, target.workload)},
        "action": action,
        "rules": rules,
    }
    namespace = target.workload.namespace
    wanted = istio_object(context, names.ISTIO_SECURITY, "AuthorizationPolicy", namespace, name, spec)
    context.draft.ensure(wanted, reason)
