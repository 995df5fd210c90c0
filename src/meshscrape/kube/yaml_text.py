"""Write objects as readable YAML, and edit users' YAML without changing the rest of the text.

Annotations and ConfigMaps hold YAML of the user inside a string (`proxy.istio.io/config`, `prometheus.yml`).
`rewrite` changes only the fields that differ and keeps comments, order and style of the rest.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from meshscrape.errors import InputError
from meshscrape.istio.fields import LOADER_ERRORS, unreadable
from meshscrape.istio.yaml_bounds import LOADER, check_yaml

_CORE = re.compile(r"(?i)[-+.]?[0-9][0-9_.:eExXoO+-]*|true|false|yes|no|on|off|null|~|y|n")


_BaseDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# These keys tell the items of a list apart, such as scrape jobs and containers.
_IDENTITIES = ("job_name", "name")


class _Dumper(_BaseDumper):  # type: ignore[misc, valid-type]
    """Write block style as kubectl does: list items indented like their key, long text as literal blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if "\n" in value and not any(line != line.rstrip() for line in value.split("\n")):
        style = "|"
    elif _CORE.fullmatch(value) or not value:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(data: Any) -> str:
    """Return `data` as one YAML document in block style; the order of keys stays."""
    return yaml.dump(_plain(data), Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def load_text(text: str, where: str) -> Any:
    """Return the data of one YAML (or JSON) text of a user; None for an empty one.

    Raises InputError at `where` and the line for text that cannot be read, repeats a key, or has aliases that
    make it too large.
    """
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text, object_pairs_hook=_unrepeated)
        except (ValueError, RecursionError):
            pass  # YAML's flow style begins like JSON. The YAML reader below knows the line of a mistake.
    try:
        check_yaml(text, where)
        return yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe loader
    except LOADER_ERRORS as error:
        raise unreadable(error, where) from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def rewrite(text: str, wanted: Any) -> str:
    """Return `text` changed so that it spells `wanted`; comments and style stay where nothing differs.

    New keys and list items go to the end of their mapping or list. JSON stays JSON. Where no such edit gives
    exactly `wanted`, the text is written anew. Raises InputError for text that is not YAML.
    """
    old = load_text(text, "text")
    if not _differ(old, wanted):
        return text
    if (as_json := _as_json(text, wanted)) is not None:
        return as_json
    if old is None:
        return text.rstrip("\n") + "\n" * bool(text.strip()) + dump(wanted)
    edits: list[_Edit] = []
    root = yaml.compose(text, Loader=LOADER)
    if root is not None:
        _patch(root, old, wanted, text, edits)
    result = text
    # Apply edits from the end of the text; of several additions at one place, the last one goes in first.
    for _, edit in sorted(enumerate(edits), key=lambda pair: (pair[1].start, pair[0]), reverse=True):
        result = result[: edit.start] + edit.text + result[edit.end :]
    try:
        faithful = not _differ(load_text(result, "text"), wanted)
    except InputError:
        faithful = False
    return result if faithful else dump(wanted)


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


def _as_json(text: str, wanted: Any) -> str | None:
    try:
        json.loads(text)
    except ValueError:
        return None
    return json.dumps(wanted, indent=2 if "\n" in text.strip() else None)


def _patch(node: yaml.Node, old: Any, new: Any, text: str, edits: list[_Edit]) -> None:
    if not _differ(old, new):
        return
    if isinstance(node, yaml.MappingNode) and isinstance(new, dict) and node.value and new:
        _patch_mapping(node, old, new, text, edits)
    elif isinstance(node, yaml.SequenceNode) and isinstance(new, list) and _matches(node, old, new):
        for item, before, after in zip(node.value, old, new, strict=False):
            _patch(item, before, after, text, edits)
        indent = node.start_mark.column
        for item in new[len(old) :]:
            edits.append(_below(node, text, _indented(dump([item]), indent)))
    elif isinstance(node, yaml.SequenceNode) and (kept := _kept_items(node, old, new)) is not None:
        _remove_items(node, kept, old, new, text, edits)
    else:
        _replace(node, new, text, edits)


def _kept_items(node: yaml.SequenceNode, old: Any, new: Any) -> list[int | None] | None:
    """Return, for each item of a block list, its place in `new`, None where it is removed.

    None if more than removals separates the two lists.
    """
    if node.flow_style or not isinstance(new, list) or not new:
        return None
    places: list[int | None] = []
    wanted = 0
    for item in old:
        same = wanted < len(new) and _same_item(item, new[wanted])
        places.append(wanted if same else None)
        wanted += same
    return places if wanted == len(new) else None


def _remove_items(
    node: yaml.SequenceNode, kept: list[int | None], old: Any, new: Any, text: str, edits: list[_Edit]
) -> None:
    for item, place, before in zip(node.value, kept, old, strict=True):
        if place is not None:
            _patch(item, before, new[place], text, edits)
            continue
        # The dash comes before the item, in its line or in an earlier one.
        dash = text.rfind("-", 0, item.start_mark.index + (text[item.start_mark.index] == "-"))
        edits.append(_Edit(text.rfind("\n", 0, dash) + 1, _line_end(_end(item, text), text), ""))


def _matches(node: yaml.SequenceNode, old: list[Any], new: list[Any]) -> bool:
    """Return whether the items of a block list stay in their places, and what is new comes after them."""
    if node.flow_style or not old or len(new) < len(old):
        return False
    return all(map(_same_item, old, new))


def _same_item(old: Any, new: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in _IDENTITIES:
            if key in old:
                return bool(old[key] == new.get(key))
    return not _differ(old, new)


def _replace(node: yaml.Node, new: Any, text: str, edits: list[_Edit]) -> None:
    start, end = node.start_mark.index, max(_end(node, text), node.start_mark.index)
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value
    if block and isinstance(new, list | dict) and new:
        lines = _indented(dump(new), node.start_mark.column).strip()
        edits.append(_Edit(start, end, lines))
        return
    space = " " if text[start - 1 : start] == ":" else ""
    edits.append(_Edit(start, end, space + _flow(new)))


def _patch_mapping(
    node: yaml.MappingNode, old: dict[Any, Any], new: dict[Any, Any], text: str, edits: list[_Edit]
) -> None:
    keys = {yaml.safe_load(text[k.start_mark.index : k.end_mark.index]): (k, v) for k, v in node.value}
    removed = [key_node for key, (key_node, _) in keys.items() if key not in new]
    if removed and (node.flow_style or not _own_lines(removed, text)):
        _replace(node, new, text, edits)
        return
    for key, (key_node, value_node) in keys.items():
        if key in new:
            _patch(value_node, old[key], new[key], text, edits)
        else:
            edits.append(_Edit(_line_start(key_node, text), _line_end(_end(value_node, text), text), ""))
    for key, value in new.items():
        if key in keys:
            continue
        if node.flow_style:
            position = node.end_mark.index - 1
            edits.append(_Edit(position, position, f", {_flow({key: value})[1:-1]}"))
        else:
            indent = node.value[0][0].start_mark.column
            edits.append(_below(node, text, _indented(dump({key: value}), indent)))


def _own_lines(keys: list[yaml.Node], text: str) -> bool:
    """Return whether every key begins its line (the first key of a list item does not)."""
    starts = ((_line_start(key, text), key.start_mark.index) for key in keys)
    return all(not text[start:index].strip() for start, index in starts)


def _below(node: yaml.Node, text: str, lines: str) -> _Edit:
    """Return the edit that adds lines after the node's last one."""
    position = _line_end(_end(node, text), text)
    if position and text[position - 1] != "\n":
        return _Edit(position, position, "\n" + lines.removesuffix("\n"))
    return _Edit(position, position, lines)


def _end(node: yaml.Node, text: str) -> int:
    """Return where the node's own text ends, without the comments and blank lines that follow."""
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("|", ">"):
            return len(text[: node.end_mark.index].rstrip())
        return int(node.end_mark.index)
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last, text)


def _line_start(node: yaml.Node, text: str) -> int:
    return text.rfind("\n", 0, node.start_mark.index) + 1


def _line_end(position: int, text: str) -> int:
    newline = text.find("\n", position)
    return len(text) if newline < 0 else newline + 1


def _indented(text: str, indent: int) -> str:
    return "".join(" " * indent + line if line.strip() else line for line in text.splitlines(keepends=True))


def _flow(data: Any) -> str:
    # JSON is YAML in flow style, and never wraps or ends with a document marker.
    return json.dumps(_plain(data), ensure_ascii=False)


def _differ(one: Any, other: Any) -> bool:
    """Return whether two values differ, types included (`True` is not 1)."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return (list(one) != list(other) and set(one) != set(other)) or any(
            _differ(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(_differ(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is not type(other) or bool(one != other)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data
