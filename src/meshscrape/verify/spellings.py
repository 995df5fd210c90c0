"""Make requests for more than a port serves, in every spelling (pure).

A server must refuse each of them. None changes the state of a server that accepts it.
"""

from __future__ import annotations

# "G\xcbT" is not ASCII: a rule that compares methods by a negated pattern must not let it pass.
OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "G\xcbT")

_ADMIN_PATHS = (
    "/", "/server_info", "/config_dump", "/certs", "/clusters", "/listeners", "/stats", "/help", "/ready",
    "/stats/recentlookups", "/config_dump?include_eds",
)  # fmt: skip

# Spellings of a read-only admin page; `{path}` is a path that is served.
_TRAVERSALS = (
    "{path}/../../server_info",
    "{path}/../../../../server_info",
    "{path}/.././../server_info",
    "{path}/../../server_info/",
    "{path}/../recentlookups",
    "{path}/%2e%2e/%2e%2e/server_info",
    "{path}/%2E%2E/%2E%2E/server_info",
    "{path}/.%2e/%2e./server_info",
    "{path}/..%2f..%2fserver_info",
    "{path}/..%2F..%2Fserver_info",
    "{path}%2f..%2f..%2fserver_info",
    "{path}/%2e%2e%2f%2e%2e%2fserver_info",
    "{path}/%252e%252e/%252e%252e/server_info",
    "{path}/..%252f..%252fserver_info",
    "{path}\\..\\..\\server_info",
    "{path}/..\\..\\server_info",
    "{path}/..%5c..%5cserver_info",
    "{path}/..%00/..%00/server_info",
    "{path}/%c0%ae%c0%ae/%c0%ae%c0%ae/server_info",
    "{path}//..//..//server_info",
    "//server_info",
    "/./server_info",
    "/%2fserver_info",
    "/%73erver_info",
    # Path parameters: CVE-2026-73511 (per segment), CVE-2026-73551 (dot segments), CVE-2026-73553.
    "{path};/../../server_info",
    "{path}/..;/..;/server_info",
    "{path}/..;a=b/..;c=d/server_info",
    "{path}/.;/..;/..;/server_info",
    "{path};a=b/..;/..;/server_info",
    "/server_info;a=b",
    "/;a=b/server_info",
    "/server_info;{path}",
    # Fragments, which are not part of a request target.
    "{path}#/../../server_info",
    "{path}/../../server_info#{path}",
    "/server_info#",
    "/server_info%23{path}",
    # Bytes that are not UTF-8 (CVE-2026-73552).
    "/server_info\xff",
    "{path}/\xff/../../../server_info",
    "{path}/..\xc0\xaf..\xc0\xafserver_info",
    "/server_info?\xff{path}",
)

_ABSOLUTE = (
    "http://{target}/server_info",
    "https://{target}/server_info",
    "http://{target}{path}/../../server_info",
    "http://localhost:15000/server_info",
)


def other_paths(path: str, target: str) -> tuple[str, ...]:
    """Return request targets beyond `path` that `target` (`host:port`) must refuse: Envoy's admin pages."""
    direct = (other for other in _ADMIN_PATHS if other != path)
    return (*direct, *(spelling.format(path=path, target=target) for spelling in (*_TRAVERSALS, *_ABSOLUTE)))


def other_targets(url: str) -> tuple[str, ...]:
    """Return request targets that a forward proxy must refuse although it knows the target `url`.

    They lead to other paths of that target, to other addresses, and to the proxy itself.
    """
    authority, _, path = url.partition("://")[2].partition("/")
    host = authority.rpartition(":")[0]
    origin, path = f"http://{authority}", f"/{path}"
    paths = (spelling.format(path=path, target=authority) for spelling in _TRAVERSALS)
    elsewhere = (
        f"http://{host}:15000/server_info", f"http://{host}:15090{path}", "http://127.0.0.1:15000/server_info",
        "http://169.254.169.254/latest/meta-data/",
        f"http://{authority}@127.0.0.1:15000{path}", f"https://{authority}{path}", f"ftp://{authority}{path}",
        f"{origin}{path}?usedonly", path, "/server_info", "*",
    )  # fmt: skip
    return (*(f"{origin}{path}" for path in paths), *elsewhere)
