"""Mode `bootstrap`: add the local mesh's listeners with an allow list as a bootstrap override."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from meshscrape.envoy import override as overrides
from meshscrape.errors import InputError
from meshscrape.istio.allow_list import DnsScraper
from meshscrape.istio.names import (
    BOOTSTRAP_CHECKSUM,
    BOOTSTRAP_OVERRIDE,
    EXCLUDE_INBOUND,
    ISTIO_BOOTSTRAP_OVERRIDE,
    MANAGED_BY,
)
from meshscrape.kube.objects import Inventory, Ref, as_list, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.injection_template import OVERRIDE_NAME, VOLUME
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.injected_overrides import by_template, plan_injected
from meshscrape.plan.model import MANAGER, Refused
from meshscrape.plan.workloads import GATEWAY_OVERRIDE_SINCE, Context, PlannedWorkload, restarts_of

# Istio mounts the ConfigMap without `optional`, so no pod starts without it. That includes the pods of an
# older revision after a rollback. So pruning tools must keep it as long as something refers to it.
_KEPT = {
    "argocd.argoproj.io/sync-options": "Prune=false",
    "helm.sh/resource-policy": "keep",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
}
_PATH = f"{overrides.DIRECTORY}/{overrides.BOOTSTRAP_FILE}"


def plan_bootstrap(context: Context, target: PlannedWorkload) -> Refused | None:
    """Plan the ConfigMap with the listeners and the allow list, and let the proxy read it."""
    workload = target.workload
    name = workload.bootstrap_override or OVERRIDE_NAME
    ref = Ref("", "ConfigMap", workload.namespace, name)
    if ref not in context.checksums:
        context.checksums[ref] = _config_map(context, ref)
    checksum = context.checksums[ref]
    if isinstance(checksum, Refused):
        return checksum
    if by_template(context, target):
        return plan_injected(context, target, checksum)
    noted = native.announcements(context.intent, workload) | {BOOTSTRAP_CHECKSUM: checksum}
    reason = "opens metrics ports that only the allow list may read"
    by_annotation = workload.kind in ("sidecar", "uninjected") or (
        workload.kind == "gateway-injected" and bool(target.version.at_least(GATEWAY_OVERRIDE_SINCE))
    )
    if not by_annotation:
        env = {ISTIO_BOOTSTRAP_OVERRIDE: _PATH, **native.off(context, workload)}
        patch = ProxyPatch(env, noted, {}, name, VOLUME, overrides.DIRECTORY)
        return patch_gateway(context, target, patch, reason)

    def change(data: Mutable) -> None:
        template = templates.template_of(data)
        templates.annotate(template, {BOOTSTRAP_OVERRIDE: name, **noted})
        off = native.off(context, workload)
        if off:
            native.set_variables(template, off)
        excluded = native.excluded_ports(context, workload, template)
        if excluded is not None:
            templates.annotate(template, {EXCLUDE_INBOUND: excluded})

    context.draft.edit(target.ref, change, reason, restarts_of(context, workload))
    return None


def _config_map(context: Context, ref: Ref) -> str | Refused:
    """Update the ConfigMap; return the checksum of the part that Envoy reads at its start."""
    if not context.addresses:
        context.addresses = wildcard_addresses(context.inventory)
    workloads = [target.workload for target in context.targets if target.workload.namespace == ref.namespace]
    envoy_port = max((native.envoy_port(context.intent, workload) for workload in workloads), default=0)
    options = overrides.OverrideOptions(
        context.intent.merged_port, envoy_port, context.addresses, list_name=str(ref)
    )
    bootstrap = overrides.override(options)
    reason = "the listeners, and the allow list (Envoy follows its changes)"
    if ref.name == OVERRIDE_NAME:
        base = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "labels": {MANAGED_BY: MANAGER},
                "annotations": dict(_KEPT),
            },
        }
        if not context.draft.ensure(base, reason):
            return Refused(
                "name-taken", f"{ref} exists, and meshscrape did not create it", "rename that ConfigMap"
            )
    elif context.draft.get(ref) is None:
        return Refused(
            "override-unknown",
            f"it already has a bootstrap override in {ref}, which is not among the given objects",
            "give that ConfigMap too, so that meshscrape can add its part to it",
        )
    for scraper in context.scrapers:
        if isinstance(scraper, DnsScraper):
            _note_foreign_ca(context, ref, scraper)
    text = str(dig(context.object_of(ref), "data", overrides.BOOTSTRAP_FILE, default=""))
    merged = _merged(text, bootstrap, ref)
    size = len(json.dumps(merged, separators=(",", ":")))
    if size > overrides.LIMIT_BYTES:
        return Refused(
            "override-too-large",
            f"the override in {ref} would have {size} bytes; the limit is {overrides.LIMIT_BYTES}",
            "shorten your own part of it",
        )

    def change(data: Mutable) -> None:
        content = templates.child(data, "data")
        content[overrides.BOOTSTRAP_FILE] = rewrite(text, merged) if text else _json(merged)
        content[overrides.SCRAPERS_FILE] = _json(overrides.allow_list(context.scrapers))

    context.draft.edit(ref, change, reason)
    return hashlib.sha256(json.dumps(merged, sort_keys=True).encode()).hexdigest()[:16]


def _note_foreign_ca(context: Context, ref: Ref, scraper: DnsScraper) -> None:
    """Say what the entry needs: the mesh's own CA writes no DNS names into workload certificates."""
    context.draft.note(
        ref,
        "foreign-ca",
        f"{scraper} admits a certificate of another CA than the mesh's. Istio does not trust such a CA by "
        "itself, and that CA can also sign the SPIFFE IDs of the allow list",
        "set meshConfig.caCertificates, ISTIO_MULTIROOT_MESH=true on istiod and PROXY_CONFIG_XDS_AGENT=true "
        "on the proxies, restart the pods, and constrain the names of that CA",
    )


def _merged(text: str, wanted: Mapping[str, Any], ref: Ref) -> Mutable:
    """Return a user's own override with our current listeners instead of our earlier ones."""
    override = load_text(text, f"{ref}: {overrides.BOOTSTRAP_FILE}") if text else {}
    if not isinstance(override, dict):
        raise InputError("not a mapping", where=f"{ref}: {overrides.BOOTSTRAP_FILE}", remedy="correct it")
    for group, key in (("static_resources", "listeners"), ("layered_runtime", "layers")):
        camel = "".join([group.split("_")[0], group.split("_")[1].capitalize()])
        place = templates.child(override, camel if camel in override else group)
        own = [
            item
            for item in as_list(place.get(key))
            if not overrides.is_ours(str(dig(item, "name", default="")))
        ]
        place[key] = own + as_list(as_mapping(wanted[group]).get(key))
    return override


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"


def wildcard_addresses(inventory: Inventory) -> tuple[str, ...]:
    """Return the wildcard addresses to listen on, by the families of the pods' addresses (default: IPv4)."""
    families = set()
    for pod in inventory.of_kind("Pod", ""):
        for entry in as_list(dig(pod.data, "status", "podIPs")):
            families.add(":" in str(dig(entry, "ip", default="")))
        if address := dig(pod.data, "status", "podIP"):
            families.add(":" in str(address))
        if len(families) == 2:
            break
    wildcards = {False: "0.0.0.0", True: "::"}  # noqa: S104 - mutual TLS decides who gets in
    return tuple(wildcards[family] for family in sorted(families)) or (wildcards[False],)
