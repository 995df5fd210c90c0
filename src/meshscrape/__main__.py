"""The `meshscrape` command, also as `python -m meshscrape`."""

from __future__ import annotations

import signal
import sys


def main(program: str = "meshscrape") -> None:
    """Import the command line and run it; Ctrl-C during the imports ends the process without a traceback."""
    # A parent that ignores SIGINT, such as nohup, keeps it ignored.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from meshscrape.cli.main import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run(program)


def kubectl_plugin() -> None:
    """Run as `kubectl meshscrape`: kubectl starts the program `kubectl-meshscrape` on the PATH."""
    main("kubectl meshscrape")


def kubectl_completion() -> None:
    """Complete `kubectl meshscrape`: kubectl starts `kubectl_complete-meshscrape` with the words so far."""
    from meshscrape.cli.main import meshscrape
    from meshscrape.cli.words import kubectl_words

    print(*kubectl_words(meshscrape, sys.argv[1:]), sep="\n")


if __name__ == "__main__":
    main()
