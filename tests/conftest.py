"""What every test process needs: room for thousands of connections, and patience with busy machines."""

from __future__ import annotations

import resource
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from support.distribution import FilesOnOneWorker
from support.upstream import ABSENT, CRDS

# As much as a user may have without asking; the usual soft limit of 1024 is for programs that use select(2).
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))

# A shell lets its background jobs ignore SIGINT, nohup lets its command ignore SIGHUP, and so would all that
# the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("meshscrape", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshscrape")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesOnOneWorker:
    """Keep on one worker what shares fixtures. Otherwise every worker makes them for itself."""
    return FilesOnOneWorker(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say in one line, after everything else, how much did not run without upstream data."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in reports if ABSENT in str(report.longrepr)]
    if not CRDS.is_dir():
        terminalreporter.write_line(
            f"no upstream data: {len(skipped)} tests skipped, and plans were not checked against the CRDs; "
            "run `make upstream` (needs Go) or set MESHSCRAPE_UPSTREAM",
            yellow=True,
        )
