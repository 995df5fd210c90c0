"""How the tests are shared among workers: a fixture of a file or of a package is made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.distribution import PACKAGES, unit_of

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from support.distribution import FilesOnOneWorker

def pytest_xdist_make_scheduler(config, log):
    return FilesOnOneWorker(config, log)

@pytest.fixture(scope="module")
def made(request, worker_id):
    with open(request.path.with_suffix(".made"), "a") as made:
        made.write(worker_id + "\\n")
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(6))
def test_uses_it(made, number):
    pass
"""


def test_a_fixture_of_a_file_is_made_once(tmp_path: Path) -> None:
    """Two workers get two files of six tests each, and both are used."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(TESTS)
    options = ("-n", "2", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider", "-c", "/dev/null")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        env={"PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = [(tmp_path / name).read_text().split() for name in ("test_one.made", "test_two.made")]
    assert sorted(made) == [["gw0"], ["gw1"]]


def test_tests_of_a_shared_package_are_one_unit() -> None:
    """Its files and the parameters of its tests make no difference."""
    directory = "tests/integration/example_mesh"
    assert unit_of(f"{directory}/test_explain_mesh.py::test_a[x::y]") == directory
    assert unit_of(f"{directory}/test_up_example.py::test_b") == directory


@pytest.mark.parametrize("name", ["test_a", "test_a[x::y/z]", "TestThing::test_b"])
def test_tests_of_a_file_are_one_unit(name: str) -> None:
    """Whatever class or parameters the test has."""
    assert unit_of(f"tests/unit/ca/test_turns.py::{name}") == "tests/unit/ca/test_turns.py"


def test_every_package_with_a_fixture_of_its_own_is_known() -> None:
    """A package that shares a fixture and is not known here would make it once for each of its files."""
    found = {
        str(path.parent.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("conftest.py")
        if 'scope="package"' in path.read_text()
    }
    assert found == PACKAGES
