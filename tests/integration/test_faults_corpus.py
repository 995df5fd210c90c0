"""The corpus of expositions through the merge, judged by Prometheus's own parser."""

from __future__ import annotations

import subprocess
from pathlib import Path

from meshscrape.exposition.merge import Merger
from support import promtool

CORPUS = sorted((Path(__file__).parents[1] / "corpus" / "expositions").glob("*/*"))


def checked(body: bytes) -> subprocess.CompletedProcess[bytes]:
    """`promtool check metrics` on a body; exit code 3 is lint, 1 a parse error."""
    command = [str(promtool.promtool()), "check", "metrics"]
    return subprocess.run(command, input=body, capture_output=True, timeout=60, check=False)


def test_promtool_reads_the_merge_of_everything() -> None:
    """All of them as sources of one scrape, in either order: no parse error."""
    for order in (CORPUS, CORPUS[::-1]):
        merger = Merger()
        out = b""
        for number, path in enumerate(order):
            source = merger.source(f"application:{number}")
            out += source.feed(path.read_bytes()) + source.finish(True)
        judged = checked(out)
        assert judged.returncode in (0, 3) and b"error while" not in judged.stderr, judged.stderr.decode()


def test_promtool_refuses_the_corpus_unmerged() -> None:
    """The judge can say no: most of a sample of the hostile ones are refused as they are."""
    hostile = [path for path in CORPUS if path.parent.name == "hostile"][::5]
    refused = [path for path in hostile if b"error while" in checked(path.read_bytes()).stderr]
    assert len(refused) > len(hostile) // 2
