"""meshscrape on a live cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Live:
    """meshscrape on the cluster of a kubeconfig."""

    def __init__(self, command: Path, kubeconfig: Path) -> None:
        self._command, self._kubeconfig = command, kubeconfig

    def start(self, verb: str, *words: str) -> subprocess.Popen[str]:
        """Start a verb."""
        return subprocess.Popen(
            [self._command, verb, "--kubeconfig", self._kubeconfig, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def plain(self, *words: str) -> str:
        """Return what a verb prints that needs no cluster."""
        return subprocess.run([self._command, *words], capture_output=True, text=True, check=True).stdout

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        process = self.start(verb, *words)
        out, errors = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
