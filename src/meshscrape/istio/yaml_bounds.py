"""Check YAML text before it is loaded: its depth, the growth through aliases, repeated keys.

Every reader of YAML from users calls this first. Aliases can repeat a node exponentially often ("billion
laughs"), and libyaml's composer recurses in C until the stack ends. The check therefore reads only parser
events: it counts the nodes that an alias stands for and never builds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from meshscrape.errors import InputError, Place
from meshscrape.istio.ports import shorten

MAX_DEPTH = 100
# How many nodes aliases may add to the written ones. Honest files stay far below.
MAX_REPEATED_NODES = 200_000
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Called with a repeated key and its line, from 1.
OnRepeated = Callable[[str, int], None]


def check_yaml(text: str, file: str, *, first_line: int = 1, on_repeated: OnRepeated | None = None) -> None:
    """Raise InputError for a text that is nested too deeply, that aliases make huge, or that repeats a key.

    `file` names the text in errors, and `first_line` is the line of the file where it begins. With
    `on_repeated`, a repeated key is reported there instead. Raises yaml.YAMLError for text that is not YAML.
    """
    check = _Check(file, first_line, on_repeated)
    for event in yaml.parse(text, Loader=LOADER):
        check.take(event)


@dataclass(slots=True)
class _Collection:
    """A mapping or list that is being read; `size` counts its nodes and `height` its levels."""

    mapping: bool
    anchor: str | None
    size: int = 1
    height: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Check:
    file: str
    first_line: int
    on_repeated: OnRepeated | None
    stack: list[_Collection] = field(default_factory=list)
    # Size and height of the node behind each anchor; None while the node is being read.
    anchors: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    repeated_nodes: int = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.anchors, self.repeated_nodes = {}, 0
        elif isinstance(event, yaml.CollectionStartEvent):
            self._child(event)
            self.stack.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
            if event.anchor:
                self.anchors[event.anchor] = None
            self._bound_depth(0, event)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.stack.pop()
            if done.anchor:
                self.anchors[done.anchor] = (done.size, done.height)
            self._grow(done.size, done.height)
        elif isinstance(event, yaml.ScalarEvent):
            self._child(event)
            if event.anchor:
                self.anchors[event.anchor] = (1, 0)
            self._grow(1, 0)
        elif isinstance(event, yaml.AliasEvent):
            self._child(event)
            self._alias(event)

    def _child(self, event: yaml.Event) -> None:
        """Note that the collection around `event` has one more child; the even ones of a mapping are keys."""
        if not self.stack:
            return
        around = self.stack[-1]
        around.children += 1
        if not around.mapping or around.children % 2 == 0 or not isinstance(event, yaml.ScalarEvent):
            return
        key = event.value
        if key in around.keys:
            if self.on_repeated is None:
                what = f"key {shorten(key)} is repeated"
                raise self._error(what, "keep one of the two", event, "repeated-key")
            self.on_repeated(key, self._line(event))
        around.keys.add(key)

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self.anchors:
            return  # The loader refuses an alias without an anchor.
        known = self.anchors[event.anchor]
        if known is None:
            raise self._error(
                "an alias repeats the node that contains it", "remove it", event, "endless-alias"
            )
        size, height = known
        self.repeated_nodes += size
        if self.repeated_nodes > MAX_REPEATED_NODES:
            raise self._error(
                "aliases make the document too large",
                "write its parts out, or use fewer aliases",
                event,
                "too-large",
            )
        self._bound_depth(height, event)
        self._grow(size, height)

    def _grow(self, size: int, height: int) -> None:
        if self.stack:
            around = self.stack[-1]
            around.size += size
            around.height = max(around.height, height + 1)

    def _bound_depth(self, height: int, event: yaml.Event) -> None:
        if len(self.stack) + height > MAX_DEPTH:
            raise self._error("nested too deeply", f"use at most {MAX_DEPTH} levels", event, "too-deep")

    def _line(self, event: yaml.Event) -> int:
        return (event.start_mark.line if event.start_mark else 0) + self.first_line

    def _error(self, what: str, remedy: str, event: yaml.Event, code: str) -> InputError:
        return InputError(what, where=Place(file=self.file, line=self._line(event)), remedy=remedy, code=code)
