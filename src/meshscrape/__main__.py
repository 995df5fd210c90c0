"""The `meshscrape` command, also as `python -m meshscrape`."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command line and run it; Ctrl-C during the imports ends the process without a traceback."""
    # A parent that ignores SIGINT, such as nohup, keeps it ignored.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from meshscrape.cli.main import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
