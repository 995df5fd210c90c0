"""The shortcuts of simple relabelling rules give what the regular expression would."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshscrape.observe.relabel import relabel, rules_of

_VALUES = st.sampled_from(["", "true", "True", "a", "a\nb", "meta_label_app", "meta_label_", "x;y"])
_LABELS = st.dictionaries(st.sampled_from(["a", "b", "meta_label_app", "meta_label_", "meta"]), _VALUES)
_CONFIGS = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["keep", "drop", "replace", "labelmap", "labeldrop"]),
        "source_labels": st.lists(st.sampled_from(["a", "b", "missing"]), max_size=2),
        "regex": st.sampled_from(["true", "", "(.*)", "(.+)", "meta_label_(.+)", "meta_label_(.*)", "a|b"]),
        "target_label": st.sampled_from(["b", "new", "${1}x"]),
        "replacement": st.sampled_from(["$1", "${1}", "fixed", "$$"]),
    }
)


@given(_LABELS, st.lists(_CONFIGS, max_size=4))
def test_shortcuts_do_not_change_the_result(labels: dict[str, str], configs: list[dict[str, object]]) -> None:
    """A literal, a prefix and a plain copy are only faster."""
    rules = rules_of(configs)
    plain = [replace(rule, literal=None, prefix="", copies=False) for rule in rules]
    assert relabel(labels, rules) == relabel(labels, plain)


def test_a_shard_may_read_every_target() -> None:
    """`hashmod` decides by the address, which a restarted pod changes."""
    shard = {"source_labels": ["__address__"], "modulus": 2, "target_label": "__tmp", "action": "hashmod"}
    only = {"source_labels": ["__tmp"], "regex": "0", "action": "keep"}
    assert relabel({"__address__": "10.0.0.7:15020"}, rules_of([shard, only])) is not None
