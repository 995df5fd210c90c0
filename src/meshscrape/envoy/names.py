"""Names of the files and secrets that the parts of one configuration share."""

from __future__ import annotations

from meshscrape.envoy.options import SidecarOptions
from meshscrape.envoy.resources.secrets import secret_reference
from meshscrape.envoy.resources.values import Resource

CERTIFICATE_FILE = "sds-certificate.json"
ROOTS_FILE = "sds-roots.json"
SCRAPER_ROOTS_FILE = "sds-scrapers.json"
SCRAPERS_FILE = "ecds-scrapers.json"

CERTIFICATE = "certificate"
ROOTS = "roots"
SCRAPER_ROOTS = "scrapers"
SCRAPERS_FILTER = "scrapers"


def certificate(options: SidecarOptions) -> Resource:
    """Return the reference to the workload's own certificate."""
    return secret_reference(CERTIFICATE, f"{options.files_dir}/{CERTIFICATE_FILE}")


def mesh_roots(options: SidecarOptions) -> Resource:
    """Return the reference to the mesh's roots."""
    return secret_reference(ROOTS, f"{options.files_dir}/{ROOTS_FILE}")


def scraper_roots(options: SidecarOptions) -> Resource:
    """Return the reference to the roots of scrapers: the mesh's, and the scrapers' own if there are any."""
    if options.secrets.scrapers_bundle is None:
        return mesh_roots(options)
    return secret_reference(SCRAPER_ROOTS, f"{options.files_dir}/{SCRAPER_ROOTS_FILE}")
