"""`meshscrape explain` on a mesh that works: as text, as a document, and for what is no target."""

from __future__ import annotations

import json

from support.mesh import Up


def test_a_running_mesh_is_healthy_from_end_to_end(example_mesh: Up) -> None:
    """Every target of a workload, through Prometheus; as text and as a document; exit code 0."""
    example_mesh.wait_until_up()
    done = example_mesh.run("explain", "productpage")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("healthy") == 3
    assert "BROKEN" not in done.stdout
    document = json.loads(example_mesh.run("explain", "default/productpage", "-o", "json").stdout)
    assert document["kind"] == "Explanation"
    assert [each["healthy"] for each in document["targets"]] == [True] * 3
    # The URL of every target as Prometheus shows it can be asked for.
    for target in example_mesh.active_targets():
        if ":15092/" in target["scrapeUrl"]:
            one = json.loads(example_mesh.run("explain", target["scrapeUrl"], "-o", "json").stdout)
            assert [each["url"] for each in one["targets"]] == [target["scrapeUrl"]]
            assert one["healthy"] is True


def test_explain_exits_1_for_an_address_without_target_and_2_for_nonsense(example_mesh: Up) -> None:
    """An address may be asked for although nobody has it; a name must be somebody's."""
    done = example_mesh.run("explain", "127.9.9.9:15092")
    assert done.returncode == 1
    assert "BROKEN  discovery" in done.stdout
    done = example_mesh.run("explain", "nobody")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
