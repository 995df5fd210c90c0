"""Templates for the SPIFFE IDs of a mesh whose IDs are not Istio's `/ns/NAMESPACE/sa/SERVICE_ACCOUNT`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshscrape.errors import InputError
from meshscrape.spiffe.ids import SpiffeId

_PLACE = re.compile(r"\{([^{}]*)\}")
_NAMES = ("namespace", "account", "pod")
_LABEL = "label:"


@dataclass(frozen=True, slots=True)
class IdTemplate:
    """The path of an ID with places for facts about the pod: `/k8s/{namespace}/{label:app}`.

    Places are `{namespace}`, `{account}`, `{pod}` and `{label:KEY}`. Raises InputError for a text that cannot
    give a valid ID.
    """

    text: str

    def __post_init__(self) -> None:
        wrong = [name for name in _PLACE.findall(self.text) if name not in _NAMES and not _is_label(name)]
        example = _PLACE.sub("x", self.text)
        if wrong or not self.text.startswith("/") or set(example) & set("{}"):
            shown = f"{{{wrong[0]}}} is not a fact about a pod" if wrong else "it is not a path with places"
            raise InputError(
                f"{self.text[:200]!a} is not a template of SPIFFE IDs: {shown}",
                where="--id-template",
                remedy="write a path such as /ns/{namespace}/sa/{account}, also with {pod} and {label:KEY}",
            )
        SpiffeId("example.org", example)

    def fill(
        self, trust_domain: str, namespace: str, account: str, pod: str, labels: Mapping[str, str]
    ) -> SpiffeId | None:
        """Return the ID of a pod; None when a label is missing, or a value is not valid in an ID."""
        facts = {"namespace": namespace, "account": account, "pod": pod}
        facts |= {f"{_LABEL}{key}": value for key, value in labels.items()}
        if any(not facts.get(name) for name in _PLACE.findall(self.text)):
            return None
        try:
            return SpiffeId(trust_domain, _PLACE.sub(lambda match: facts[match[1]], self.text))
        except InputError:
            return None


def _is_label(name: str) -> bool:
    return name.startswith(_LABEL) and len(name) > len(_LABEL)
