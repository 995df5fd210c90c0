"""Completion of words, for kubectl; the shells' own scripts are written by `meshscrape completion`."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete

VARIABLE = "_MESHSCRAPE_COMPLETE"
# Directives of cobra's completion protocol: complete no file names, or let the shell do it.
_NO_FILES, _FILES = ":4", ":0"


def kubectl_words(command: click.Command, arguments: list[str]) -> list[str]:
    """Return the completions of the last argument of `command`, one per line, then a directive.

    kubectl expects this of a plugin's completion: kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins
    """
    *before, word = arguments or [""]
    completions = BashComplete(command, {}, "kubectl meshscrape", VARIABLE).get_completions(before, word)
    plain = [
        f"{each.value}\t{each.help}" if each.help else each.value
        for each in completions
        if each.type == "plain"
    ]
    return [*plain, _NO_FILES if len(plain) == len(completions) else _FILES]
