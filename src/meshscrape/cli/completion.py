"""`meshscrape completion`: write a shell's completion script for verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from meshscrape.cli.words import VARIABLE

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Write the completion script for SHELL.

    Bash and Zsh: add `source <(meshscrape completion bash)` to the start-up file of the shell.
    Fish: `meshscrape completion fish > ~/.config/fish/completions/meshscrape.fish`.
    `kubectl meshscrape` is completed by kubectl's own script.
    """
    root = ctx.find_root()
    click.echo(SHELLS[shell](root.command, {}, "meshscrape", VARIABLE).source())
