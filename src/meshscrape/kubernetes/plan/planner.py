"""(what was observed, what is wanted) -> the plan."""

from __future__ import annotations

from meshscrape.errors import InputError
from meshscrape.kubernetes.objects import Inventory
from meshscrape.kubernetes.observe.model import Observation
from meshscrape.kubernetes.plan import native, templates
from meshscrape.kubernetes.plan.draft import Draft
from meshscrape.kubernetes.plan.model import Intent, Plan
from meshscrape.kubernetes.plan.targets import Context, Target, choose, default_scrapers, restarts_of


def plan(observation: Observation, inventory: Inventory, intent: Intent) -> Plan:
    """The changes that give `intent`, in the order in which they are to be applied.

    `observation` is what `observe` says of `inventory`. Applied in memory and observed again, the same
    intent gives no changes.
    """
    context = Context(observation, inventory, intent, Draft(inventory))
    context.scrapers = intent.scrapers or default_scrapers(observation)
    context.targets = choose(context)
    context.draft.phase = "listeners"
    for target in context.targets:
        _listeners(context, target)
    return Plan(
        context.draft.changes(),
        context.draft.notes,
        (),
        {target.ref: target.mode for target in context.targets},
    )


def _listeners(context: Context, target: Target) -> None:
    def change(data: dict[str, object]) -> None:
        native.edit_sidecar(context, target, templates.template_of(data))

    try:
        context.draft.edit(
            target.ref, change, "opens Istio's secure metrics ports", restarts_of(target.workload)
        )
    except InputError as error:
        context.draft.note(target.ref, str(error), "correct it first", refused=True)
