"""Break modules one small fault at a time, and list the faults that no unit test notices.

Usage: `scripts/mutation.py [MODULE…] [--sample N] [--minutes N] [--tests PATH…]`, a module like `plan.judge`.

The unit tests of the modules' packages are collected and run once. That shows which tests call which
function. Then a process is forked for each fault. It puts the broken function's code in the place of the
right one, wherever the function is in use already, and runs the tests that call it until one fails, the
quickest first. A fault costs some milliseconds more than its tests.

A function that no test calls may have run when its module was imported: one that builds a pattern, for
example. A fault of it is tried in a new process, which imports the broken module and runs all of the tests.

Faults that change only what is computed while tests are collected are not found out: a table that a test
makes of a function's results, for example. Look at a survivor before you believe it.
Faults that change nothing that can be seen are in `scripts/equivalent-faults.txt`, each with its reason: they
are not tried. A line there that is no fault of its module any more is reported.
Exit status 1 when a fault survives, 2 when tests fail without a fault or the time is over too early.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

from faults import Fault, code_of, faults, functions

ROOT = Path(__file__).parents[1]
PACKAGES = ("exposition", "plan", "spiffe")
MODULES = ("ca.admission", "ca.frames", "ca.rotation", "verify.exposure", "verify.judges")
JOBS = 2
EQUIVALENT = ROOT / "scripts/equivalent-faults.txt"
# A fault that makes a loop endless or a list grow is noticed by its time and its memory.
PATIENCE, SLOWER = 10.0, 5
MORE_MEMORY = 2 << 30
NOTICED = 1


@dataclass
class Subject:
    """A module that is broken: its name without `meshscrape.`, its source, and the functions that run."""

    name: str
    path: Path
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        """Read the source."""
        self.tree = ast.parse(self.path.read_text())

    def codes(self) -> dict[CodeType, str]:
        """Return the functions' names by the code that runs."""
        named = ((name, self._running(name)) for name, _ in functions(self.tree))
        return {code: name for name, code in named if code is not None}

    def break_it(self, fault: Fault) -> None:
        """Put the broken code in the place of the right one. There is no way back."""
        fault.apply()
        broken = code_of(compile(self.tree, str(self.path), "exec"), fault.function)
        right = self._running(fault.function)
        for user in gc.get_referrers(right):
            if getattr(user, "__code__", None) is right:
                user.__code__ = broken

    def import_broken(self, fault: Fault) -> None:
        """Let the module be broken when it is imported, and the functions that run then."""
        fault.apply()
        broken = compile(self.tree, str(self.path), "exec")
        own, place = f"meshscrape.{self.name}", self.path

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return broken

        class Finder:
            @staticmethod
            def find_spec(name: str, *_: object) -> ModuleSpec | None:
                loader = Loader(name, str(place))
                return (
                    importlib.util.spec_from_file_location(name, place, loader=loader)
                    if name == own
                    else None
                )

        sys.meta_path.insert(0, Finder)

    def _running(self, name: str) -> CodeType | None:
        """Return the code of a function by its qualified name, whatever it is wrapped in."""
        found: object = importlib.import_module(f"meshscrape.{self.name}")
        for part in name.split("."):
            found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
        if isinstance(found, property):
            found = found.fget
        if isinstance(found, functools.cached_property):
            found = found.func
        found = getattr(found, "__func__", found)
        while hasattr(found, "__wrapped__"):
            found = found.__wrapped__
        code = getattr(found, "__code__", None)
        return code if isinstance(code, CodeType) else None


class Session:
    """A plugin of pytest that runs the tests for each fault, instead of once."""

    def __init__(
        self,
        subjects: list[Subject],
        paths: list[str],
        sample: int,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """`sample` faults of each module are tried (0: all), and no more are begun after `seconds`.

        `paths` are those of the tests.
        """
        self.survivors = self.untried = 0
        self._equivalent = _equivalent()
        self._subjects = subjects
        self._paths = paths
        self._sample = sample
        self._end = time.monotonic() + seconds
        self._say = say
        self._tests: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
        self._took: dict[str, float] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Let a failing property end without a search for its smallest case."""
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("faults", settings.default, phases=phases, database=None)
        settings.load_profile("faults")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests once as they are, and then against every fault."""
        self._run_unbroken(session.items)
        for subject in self._subjects:
            self._try_all(subject)
        return True

    def _run_unbroken(self, items: list[pytest.Item]) -> None:
        """Note which tests call which function."""
        owners = {
            code: (subject.name, name) for subject in self._subjects for code, name in subject.codes().items()
        }
        called: set[tuple[str, str]] = set()

        def look(frame: FrameType, event: str, argument: object) -> None:
            if owner := owners.get(frame.f_code):
                called.add(owner)

        for item, following in zip(items, [*items[1:], None], strict=True):
            began = time.monotonic()
            sys.settrace(look)
            try:
                reports = runtestprotocol(item, log=False, nextitem=following)
            finally:
                sys.settrace(None)
            if any(report.failed for report in reports):
                raise pytest.UsageError(f"{item.nodeid} fails without a fault")
            self._took[item.nodeid] = time.monotonic() - began
            for owner in called:
                self._tests[owner].append(item)
            called.clear()
        for tests in self._tests.values():
            tests.sort(key=lambda item: self._took[item.nodeid])
        self._say(f"{len(items)} tests pass in {sum(self._took.values()):.0f} s")

    def _try_all(self, subject: Subject) -> None:
        every = chosen = self._worth_trying(subject)
        if 0 < self._sample < len(every):
            drawn = random.Random(1).sample(range(len(every)), self._sample)  # noqa: S311
            chosen = [every[index] for index in sorted(drawn)]
        began, before, untried = time.monotonic(), self.survivors, 0
        waiting, running = list(reversed(chosen)), dict[int, tuple[Fault, float]]()
        while waiting or running:
            if time.monotonic() >= self._end:
                untried = len(waiting)
                waiting.clear()
            while waiting and len(running) < JOBS:
                fault = waiting.pop()
                tests = self._tests[subject.name, fault.function]
                pid = _forked(subject, fault, tests) if tests else _imported(subject, fault, self._paths)
                took = sum(self._took[item.nodeid] for item in tests) if tests else sum(self._took.values())
                running[pid] = fault, time.monotonic() + PATIENCE + SLOWER * took
            for fault in _unnoticed(running):
                called = bool(self._tests[subject.name, fault.function])
                self._survived(subject, fault, "" if called else " (no test calls it)")
        survived, took = self.survivors - before, time.monotonic() - began
        tried = len(chosen) - untried
        self.untried += untried
        self._say(f"{subject.name}: {tried} of {len(every)} faults, {survived} survive, {took:.0f} s")

    def _worth_trying(self, subject: Subject) -> list[Fault]:
        """Return the faults of a module without the known equivalent ones."""
        every = faults(subject.tree)
        known = self._equivalent.get(subject.name, set())
        for stale in sorted(known - {fault.text for fault in every}):
            self._say(f"  {EQUIVALENT.name}: {subject.name} has no fault {stale}")
        return [fault for fault in every if fault.text not in known]

    def _survived(self, subject: Subject, fault: Fault, why: str = "") -> None:
        self.survivors += 1
        self._say(f"  {subject.name}:{fault}{why}")


def _equivalent() -> dict[str, set[str]]:
    """Return the faults that change nothing that can be seen, by their modules."""
    known: dict[str, set[str]] = defaultdict(set)
    for line in EQUIVALENT.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            module, _, fault = line.partition("  |  ")[0].partition(": ")
            known[module].add(fault.strip())
    return known


def _forked(subject: Subject, fault: Fault, tests: list[pytest.Item]) -> int:
    """Run the tests against a fault in a process of its own. It exits with NOTICED when one fails."""
    if pid := os.fork():
        return pid
    status = NOTICED
    try:
        _silence()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, used + MORE_MEMORY))
        subject.break_it(fault)
        _forget_results()
        for item, following in zip(tests, [*tests[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                break
        else:
            status = 0
    finally:
        os._exit(status)


def _imported(subject: Subject, fault: Fault, paths: list[str]) -> int:
    """Import the broken module in a new process, and run all tests there until one fails."""
    same = (fault.node, fault.field, ast.dump(fault.replacement))
    every = ((other.node, other.field, ast.dump(other.replacement)) for other in faults(subject.tree))
    number = next(number for number, other in enumerate(every) if other == same)
    command = [sys.executable, __file__, subject.name, "--imported", str(number), "--tests", *paths]
    if pid := os.fork():
        return pid
    try:
        _silence()
        os.execv(sys.executable, command)  # noqa: S606 - no shell is needed
    finally:
        os._exit(NOTICED)


def _silence() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def _forget_results() -> None:
    """Empty the caches of functions, which the right code has filled."""
    for each in gc.get_objects():
        if isinstance(each, functools._lru_cache_wrapper) and each.__module__.startswith("meshscrape"):
            each.cache_clear()


def _unnoticed(running: dict[int, tuple[Fault, float]]) -> Iterator[Fault]:
    """Wait a moment, and yield the faults that no test has noticed. An end by a signal is notice enough."""
    time.sleep(0.005)
    for pid, (fault, deadline) in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0)
        if done:
            del running[pid]
            if status == 0:
                yield fault


def _subjects(names: list[str]) -> list[Subject]:
    source = ROOT / "src/meshscrape"
    if not names:
        files = [file for package in PACKAGES for file in sorted((source / package).rglob("*.py"))]
        inside = [".".join(file.relative_to(source).with_suffix("").parts) for file in files]
        names = [*(name for name in inside if not name.endswith("__init__")), *MODULES]
    short = [name.removeprefix("meshscrape.") for name in names]
    return [Subject(name, source / f"{name.replace('.', '/')}.py") for name in short]


def main() -> int:
    """Try every fault, and print each that survives."""
    parser = argparse.ArgumentParser(description="Break modules one small fault at a time.")
    parser.add_argument("modules", nargs="*", help="modules, such as plan.judge (default: the pure ones)")
    parser.add_argument("--sample", type=int, default=0, help="faults of each module (default: all)")
    parser.add_argument("--minutes", type=float, default=60, help="begin no fault after this (default: 60)")
    parser.add_argument("--tests", nargs="*", help="tests to run (default: those of the modules' packages)")
    parser.add_argument("--imported", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # pytest takes standard output away while it runs tests.
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    os.chdir(ROOT)
    subjects = _subjects(options.modules)
    tests = options.tests or sorted({f"tests/unit/{each.name.partition('.')[0]}" for each in subjects})
    quiet = ["-q", "-p", "no:cacheprovider", "--disable-warnings"]
    if options.imported is not None:
        subjects[0].import_broken(faults(subjects[0].tree)[options.imported])
        return NOTICED if pytest.main([*quiet, "-x", *tests]) else 0
    seconds = options.minutes * 60
    session = Session(subjects, tests, options.sample, seconds, lambda text: print(text, file=terminal))
    if pytest.main([*quiet, *tests], [session]) not in (0, 5):
        return 2
    print(f"{session.survivors} faults survive, {session.untried} were not tried", file=terminal)
    return 2 if session.untried else int(session.survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
