"""How the listeners of a workload are shown."""

from __future__ import annotations

from rich.console import Console

from meshscrape.cli.listeners import listeners_view
from meshscrape.envoy.listener_table import ListenerRow


def test_path_is_shown_unchanged() -> None:
    """Brackets in a route's prefix are no markup of the terminal's."""
    console = Console(width=200)
    with console.capture() as shown:
        console.print(
            listeners_view([ListenerRow("127.20.1.3", 8080, "ALL", "Inline Route: /v[1]/[bold]x*")])
        )
    assert "Inline Route: /v[1]/[bold]x*" in shown.get()
