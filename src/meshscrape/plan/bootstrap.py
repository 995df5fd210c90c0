"""Mode `bootstrap`: the local mesh's listeners, with an allow list, as a bootstrap override."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from meshscrape.envoy import override as overrides
from meshscrape.errors import InputError
from meshscrape.istio.names import (
    BOOTSTRAP_CHECKSUM,
    BOOTSTRAP_OVERRIDE,
    EXCLUDE_INBOUND,
    ISTIO_BOOTSTRAP_OVERRIDE,
    MANAGED_BY,
)
from meshscrape.kube.objects import Inventory, Ref, as_list, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.plan import native, templates
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.gateways import ProxyPatch, patch_gateway
from meshscrape.plan.model import MANAGER
from meshscrape.plan.workloads import (
    GATEWAY_OVERRIDE_SINCE,
    OVERRIDE_NAME,
    Context,
    PlannedWorkload,
    restarts_of,
)

VOLUME = "meshscrape-bootstrap"
_PATH = f"{overrides.DIRECTORY}/{overrides.BOOTSTRAP_FILE}"


def plan_bootstrap(context: Context, target: PlannedWorkload) -> None:
    """The ConfigMap with the listeners and the allow list, and the proxy that reads it."""
    workload = target.workload
    name = workload.bootstrap_override or OVERRIDE_NAME
    ref = Ref("", "ConfigMap", workload.namespace, name)
    if ref not in context.checksums:
        context.checksums[ref] = _config_map(context, ref)
    checksum = context.checksums[ref]
    if checksum is None:
        return
    noted = native.announcements(context.intent) | {BOOTSTRAP_CHECKSUM: checksum}
    reason = "opens metrics ports that only the allow list may read"
    by_annotation = workload.kind in ("sidecar", "uninjected") or (
        workload.kind == "gateway-injected" and bool(target.version.at_least(GATEWAY_OVERRIDE_SINCE))
    )
    if not by_annotation:
        env = {ISTIO_BOOTSTRAP_OVERRIDE: _PATH, **native.off(context, workload)}
        patch = ProxyPatch(env, noted, {}, name, VOLUME, overrides.DIRECTORY)
        patch_gateway(context, target, patch, reason)
        return

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


def _config_map(context: Context, ref: Ref) -> str | None:
    """Bring the ConfigMap up to date; the checksum of what Envoy reads at its start, None if impossible."""
    if not context.addresses:
        context.addresses = wildcard_addresses(context.inventory)
    options = overrides.OverrideOptions(
        context.intent.merged_port, context.intent.envoy_port, context.addresses, list_name=str(ref)
    )
    wanted = overrides.override(options)
    reason = "the listeners, and who may scrape (followed while Envoy runs)"
    if ref.name == OVERRIDE_NAME:
        base = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "labels": {MANAGED_BY: MANAGER},
            },
        }
        if not context.draft.ensure(base, reason):
            return None
    elif context.draft.get(ref) is None:
        raise InputError(
            f"it has a bootstrap override already, in {ref}, which is not among the objects",
            remedy="give that ConfigMap too, so that both can be in it",
        )
    text = str(dig(context.object_of(ref), "data", overrides.BOOTSTRAP_FILE, default=""))
    merged = _merged(text, wanted, ref)
    size = len(json.dumps(merged, separators=(",", ":")))
    if size > overrides.LIMIT_BYTES:
        raise InputError(
            f"the override is {size} bytes", where=str(ref), remedy="shorten one's own part of it"
        )

    def change(data: Mutable) -> None:
        content = templates.child(data, "data")
        content[overrides.BOOTSTRAP_FILE] = rewrite(text, merged) if text else _json(merged)
        content[overrides.SCRAPERS_FILE] = _json(overrides.allow_list(context.scrapers))

    context.draft.edit(ref, change, reason)
    return hashlib.sha256(json.dumps(merged, sort_keys=True).encode()).hexdigest()[:16]


def _merged(text: str, wanted: Mapping[str, Any], ref: Ref) -> Mutable:
    """A user's own override with our listeners in place of those that we put there before."""
    found = load_text(text, f"{ref}: {overrides.BOOTSTRAP_FILE}") if text else {}
    if not isinstance(found, dict):
        raise InputError("not a mapping", where=f"{ref}: {overrides.BOOTSTRAP_FILE}", remedy="correct it")
    for group, key in (("static_resources", "listeners"), ("layered_runtime", "layers")):
        camel = "".join([group.split("_")[0], group.split("_")[1].capitalize()])
        place = templates.child(found, camel if camel in found else group)
        own = [
            each
            for each in as_list(place.get(key))
            if not overrides.is_ours(str(dig(each, "name", default="")))
        ]
        place[key] = own + as_list(as_mapping(wanted[group]).get(key))
    return found


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"


def wildcard_addresses(inventory: Inventory) -> tuple[str, ...]:
    """The wildcards to listen on, by the addresses that the cluster's pods have; IPv4 where none tells."""
    families = set()
    for pod in inventory.of_kind("Pod", ""):
        for each in as_list(dig(pod.data, "status", "podIPs")):
            families.add(":" in str(dig(each, "ip", default="")))
        if address := dig(pod.data, "status", "podIP"):
            families.add(":" in str(address))
        if len(families) == 2:
            break
    wildcards = {False: "0.0.0.0", True: "::"}  # noqa: S104 - mutual TLS decides who gets in
    return tuple(wildcards[family] for family in sorted(families)) or (wildcards[False],)
