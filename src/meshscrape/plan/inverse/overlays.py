"""Take back settings that reach proxies through other objects: Gateways' overlays, users' overrides."""

from __future__ import annotations

from functools import partial
from typing import Any

from meshscrape.envoy import override as overrides
from meshscrape.errors import InputError
from meshscrape.istio.names import BOOTSTRAP_CHECKSUM
from meshscrape.kube.objects import Ref, as_list, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.observe.injection_template import OVERRIDE_NAME
from meshscrape.observe.workload import ObservedWorkload
from meshscrape.plan.edited_objects import Mutable
from meshscrape.plan.inverse import traces
from meshscrape.plan.inverse.edits import take_fields
from meshscrape.plan.inverse.evidence import Evidence
from meshscrape.plan.inverse.owned import is_owned
from meshscrape.plan.workloads import Context, restarts_of


def take_gateway(
    context: Context, workload: ObservedWorkload, evidence: Evidence, *, listeners: bool
) -> None:
    """Take back one phase from a gateway that another object owns: a Gateway or an IstioGateway."""
    gateway = workload.gateway_ref
    if gateway is None:
        return
    reason = "closes the secure metrics ports" if listeners else "opens the plaintext ports 15090 and 15020"
    restarts = restarts_of(context, workload)
    if workload.kind == "asm-gateway":
        take = partial(traces.take_asm, listeners=listeners)
        take_fields(context, gateway, evidence, take, reason, restarts)
        return
    config = _overlay(context, gateway)
    if config is not None:
        everywhere = context.observation.mesh.exclude_inbound_ports
        owned = is_owned(context.object_of(config))
        if owned and listeners:
            context.draft.edit(gateway, _without_parameters, reason, restarts)
        else:
            take = partial(traces.take_overlay, everywhere=everywhere, listeners=listeners)
            take_fields(context, config, evidence, take, reason, restarts)
    elif listeners:
        take_fields(context, gateway, evidence, traces.take_infrastructure, reason, restarts)


def _overlay(context: Context, gateway: Ref) -> Ref | None:
    name = dig(context.object_of(gateway), "spec", "infrastructure", "parametersRef", "name")
    ref = Ref("", "ConfigMap", gateway.namespace, str(name))
    return ref if name and context.draft.get(ref) is not None else None


def _without_parameters(data: Mutable) -> None:
    infrastructure = data["spec"]["infrastructure"]
    del infrastructure["parametersRef"]
    if not infrastructure:
        del data["spec"]["infrastructure"]


def take_override(context: Context, workload: ObservedWorkload) -> None:
    """Take meshscrape's listeners out of a user's own bootstrap override."""
    if workload.bootstrap_override == OVERRIDE_NAME:
        return
    ref = Ref("", "ConfigMap", workload.namespace, workload.bootstrap_override)
    text = str(dig(context.object_of(ref), "data", overrides.BOOTSTRAP_FILE))
    try:
        bootstrap = load_text(text, f"{ref}: {overrides.BOOTSTRAP_FILE}")
    except InputError:
        return
    if not isinstance(bootstrap, dict) or not _strip(bootstrap):
        return

    def change(data: Mutable) -> None:
        data["data"][overrides.BOOTSTRAP_FILE] = rewrite(text, bootstrap)
        data["data"].pop(overrides.SCRAPERS_FILE, None)

    reason = f"without meshscrape's listeners; its pods restart by {BOOTSTRAP_CHECKSUM}"
    context.draft.edit(ref, change, reason)


def _strip(bootstrap: dict[str, Any]) -> bool:
    """Remove meshscrape's listeners and limits from an override; return whether there were any."""
    stripped = False
    for group, key in (("static_resources", "listeners"), ("layered_runtime", "layers")):
        camel = group.split("_")[0] + group.split("_")[1].capitalize()
        place: Any = bootstrap.get(camel if camel in bootstrap else group)
        items = as_list(dig(place, key))
        own = [item for item in items if not overrides.is_ours(str(dig(item, "name")))]
        if len(own) == len(items):
            continue
        stripped = True
        if own:
            place[key] = own
        else:
            del place[key]
            if not place:
                del bootstrap[camel if camel in bootstrap else group]
    return stripped
