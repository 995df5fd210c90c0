"""What every test process needs: room for thousands of connections, and patience with busy machines."""

from __future__ import annotations

import resource

from hypothesis import HealthCheck, settings

# As much as a user may have without asking; the usual soft limit of 1024 is for programs that use select(2).
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))

settings.register_profile("meshscrape", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshscrape")
