"""Apply Prometheus's relabelling, to find what a job scrapes by trying it, not by its name.

Semantics of `model/relabel` in Prometheus: anchored RE2, `;` between source labels, first match decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from meshscrape.kube import objects

_REFERENCE = re.compile(r"\$(?:\$|(\d+)|\{(\w+)\}|([A-Za-z_]\w*))")
# Stands for a number that `hashmod` makes of an address.
_HASHED = "(hashmod)"
_LITERAL = re.compile(r"[A-Za-z0-9_]*")
_PREFIX = re.compile(r"([A-Za-z0-9_]+)\(\.[+*]\)")
_CAMEL = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Rule:
    """One relabeling rule, with Prometheus's defaults filled in; `pattern` is None for an invalid regex.

    Most rules are simple, and a cluster has many targets: `literal` is the only text that the regex matches,
    `prefix` is what every match begins with, and `copies`: `replace` gives the whole value to the target.
    """

    action: str
    sources: tuple[str, ...]
    separator: str
    pattern: Any
    target: str
    replacement: str
    literal: str | None = None
    prefix: str = ""
    copies: bool = False


def rules_of(configs: Any) -> tuple[Rule, ...]:
    """Return the rules of `relabel_configs`, or of the Operator's `relabelings` in camel case."""
    return tuple(_rule(config) for config in objects.as_list(configs) if isinstance(config, Mapping))


def _rule(config: Mapping[str, Any]) -> Rule:
    fields = {_CAMEL.sub("_", str(key)).lower(): value for key, value in config.items()}
    regex = fields.get("regex", "(.*)")
    if isinstance(regex, bool):
        regex = str(regex).lower()
    if isinstance(regex, list):
        # VictoriaMetrics allows a list of alternatives.
        regex = "|".join(map(str, regex))
    target, replacement = str(fields.get("target_label") or ""), str(fields.get("replacement", "$1"))
    return Rule(
        action=str(fields.get("action") or "replace").lower(),
        sources=tuple(map(str, objects.as_list(fields.get("source_labels")))),
        separator=str(fields.get("separator", ";")),
        pattern=_compiled(str(regex)),
        target=target,
        replacement=replacement,
        literal=str(regex) if _LITERAL.fullmatch(str(regex)) else None,
        prefix=found[1] if (found := _PREFIX.fullmatch(str(regex))) else "",
        copies=regex in ("(.*)", "(.+)") and replacement == "$1" and "$" not in target,
    )


@lru_cache(maxsize=1024)
def _compiled(regex: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(f"^(?s:{regex})$", options)
    except re2.error:
        return None


def relabel(labels: Mapping[str, str], rules: Sequence[Rule]) -> dict[str, str] | None:
    """Return the labels of a target after `rules`; None when it is dropped."""
    result = dict(labels)
    for rule in rules:
        if not _apply(rule, result):
            return None
    return result


def _apply(rule: Rule, labels: dict[str, str]) -> bool:
    value = rule.separator.join(labels.get(name, "") for name in rule.sources)
    match rule.action:
        case "hashmod":
            labels[rule.target] = _HASHED
        case "keep" | "drop" if any(labels.get(name) == _HASHED for name in rule.sources):
            # Some shard reads the target, and the address of a pod to come is unknown. So this one may.
            return True
        case "keep" | "drop":
            if rule.literal is not None:
                return (value == rule.literal) == (rule.action == "keep")
            matched = rule.pattern is not None and rule.pattern.search(value) is not None
            return matched == (rule.action == "keep")
        case "replace":
            _replace(rule, value, labels)
        case "keepequal" | "dropequal":
            return (labels.get(rule.target, "") == value) == (rule.action == "keepequal")
        case "lowercase" | "uppercase":
            labels[rule.target] = value.lower() if rule.action == "lowercase" else value.upper()
        case "labelmap":
            for name, copied in list(labels.items()):
                if not name.startswith(rule.prefix):
                    continue
                if rule.pattern is not None and (groups := rule.pattern.search(name)):
                    labels[_expand(rule.replacement, groups)] = copied
        case "labeldrop" | "labelkeep":
            for name in list(labels):
                matched = rule.pattern is not None and rule.pattern.search(name) is not None
                if matched == (rule.action == "labeldrop"):
                    del labels[name]
    return True


def _replace(rule: Rule, value: str, labels: dict[str, str]) -> None:
    if rule.copies:
        # An empty value does not match `(.+)`, and removes the label with `(.*)`.
        if value:
            labels[rule.target] = value
        elif rule.pattern.search("") is not None:
            labels.pop(rule.target, None)
        return
    groups = rule.pattern.search(value) if rule.pattern is not None else None
    if groups is None:
        return
    target, text = _expand(rule.target, groups), _expand(rule.replacement, groups)
    if text:
        labels[target] = text
    else:
        labels.pop(target, None)


def _expand(template: str, groups: Any) -> str:
    if "$" not in template:
        return template

    def group(reference: re.Match[str]) -> str:
        name = reference[1] or reference[2] or reference[3]
        if name is None:
            return "$"
        try:
            return groups.group(int(name) if name.isdigit() else name) or ""
        except (IndexError, KeyError, re2.error):
            return ""

    return _REFERENCE.sub(group, template)
