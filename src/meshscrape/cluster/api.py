"""A small client of the Kubernetes API: get, list in pages, watch, send. JSON in, JSON out.

A client library would cost the scrape proxy 17 to 56 MB (measured, docs/architecture.md); this costs none.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from meshscrape.cluster.credentials import Credentials, tls_context
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.stopping import one_line
from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.kube.objects import dig
from meshscrape.system.http.client import FetchedResponse, FetchLimits, TooLargeError, fetch_stream

PAGE = 500
# The API server sends a bookmark about once a minute (kubernetes.io/docs/reference/using-api/api-concepts).
SILENCE_SECONDS = 150.0
WATCH_SECONDS = 3600
# A busy API server takes seconds for a TLS handshake; client-go waits for 10 s, and for 30 s without TLS.
REQUEST = FetchLimits(connect=15.0, read=30.0, total=60.0, body_bytes=1 << 28)
WATCH = FetchLimits(connect=5.0, read=SILENCE_SECONDS, total=WATCH_SECONDS + 60.0, body_bytes=1 << 40)
_MAX_EVENT = 1 << 24
_MAX_ERROR = 1 << 16
# Objects and pages of one list. Kubernetes is made for 150,000 pods
# (kubernetes.io/docs/setup/best-practices/cluster-large). A page may be empty and still have a next one.
MAX_ITEMS = 1_000_000
MAX_PAGES = 20_000
_MAX_MESSAGE = 500
_UNREACHED = "Error trying to reach service"

Object = Mapping[str, Any]


class ApiError(MeshscrapeError):
    """The API server refused a request: `status` and `reason` are those of its answer.

    403 and 401 need the user; 410 means that a resource version is too old (list again).
    """

    def __init__(self, status: int, reason: str, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy, code="api")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Page:
    """Items of one page of a list, the list's resource version, and whether a page follows."""

    items: list[Object]
    version: str
    more: bool


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object."""

    kind: str
    object: Object

    @property
    def version(self) -> str:
        """Return the resource version that a later watch starts at."""
        return str(dig(self.object, "metadata", "resourceVersion", default=""))


@dataclass(frozen=True, slots=True)
class _Content:
    """The method, body and media type of a request that changes something."""

    method: str
    body: bytes
    media_type: str


class Api:
    """Requests to one API server with one user's credentials."""

    def __init__(self, access: Access, decode: Callable[[str], Any] = json.loads) -> None:
        """Prepare requests. `decode` parses the text of answers; it raises ValueError if it is not JSON."""
        self.access = access
        self._decode = decode
        self._credentials = Credentials(access)
        self._tls: tuple[object, ssl.SSLContext | None] | None = None

    async def get(self, path: str, **query: str) -> Any:
        """Return the JSON document at `path`.

        Raises ApiError if it is refused, and UnavailableError without an answer.
        """
        async for response in self._responses(path, query, REQUEST):
            body = await _body(response, REQUEST.body_bytes)
            if len(body) > REQUEST.body_bytes:
                more = f"the API server's answer is larger than {REQUEST.body_bytes >> 20} MiB"
                raise TooLargeError(more, where=self._where(path))
            return self._json(body, path)

    async def text(self, path: str, *, limit: int = _MAX_ERROR, **query: str) -> str:
        """Return the first `limit` bytes of a document that need not be JSON. Raise ApiError if refused."""
        async for response in self._responses(path, query, REQUEST):
            return (await _body(response, limit)).decode(errors="replace")
        raise AssertionError("an answer or an error")

    async def ask(self, path: str) -> tuple[int, str]:
        """Return the status of the answer to a GET, whatever it is, and what the API server itself says.

        The text is empty for an answer that a pod gave through the API server. Raises UnavailableError
        without an answer.
        """
        async for response in self._responses(path, {}, REQUEST, refuse=False):
            if response.status < 300:
                return response.status, ""
            body = await _body(response, _MAX_ERROR)
            told = _status_document(body)
            if told.get("kind") == "Status":
                return response.status, f"{_told(told, 'reason')}: {_told(told, 'message')}"
            # Older API servers say so in plain text (apimachinery pkg/util/proxy/transport.go).
            unreached = body.decode(errors="replace").startswith(_UNREACHED)
            return response.status, f"ServiceUnavailable: {_UNREACHED}" if unreached else ""
        raise AssertionError("an answer or an error")

    async def send(
        self, method: str, path: str, body: Any, *, media_type: str = "application/json", **query: str
    ) -> Any:
        """Send a JSON body; return the JSON answer. Raise ApiError when it is refused."""
        content = _Content(method, json.dumps(body).encode(), media_type)
        async for response in self._responses(path, query, REQUEST, content):
            return self._json(await _body(response, REQUEST.body_bytes), path)

    async def pages(
        self, path: str, query: Mapping[str, str] | None = None, *, limit: int = PAGE
    ) -> AsyncIterator[Page]:
        """Yield a list page by page. Raise ApiError 410 if it changed so much that it must begin again.

        A page that is too large is asked for in halves. Raise UnavailableError if the list has no end.
        """
        token, items = "", 0
        for _ in range(MAX_PAGES):
            more = {"continue": token} if token else {}
            try:
                answer = await self.get(path, limit=str(limit), **(query or {}), **more)
            except TooLargeError:
                if limit == 1:
                    raise
                limit //= 2
                continue
            page, following = self._page(answer, path)
            items += len(page.items)
            if items > MAX_ITEMS or (following and following == token):
                break
            token = following
            yield page
            if not token:
                return
        raise UnavailableError("the API server's list has no end", where=self._where(path))

    def _page(self, answer: Object, path: str) -> tuple[Page, str]:
        """Return the page in an answer, and the token of the next one."""
        metadata, items = answer.get("metadata") or {}, answer.get("items") or []
        if (
            not isinstance(metadata, Mapping)
            or not isinstance(items, list)
            or not all(isinstance(item, Mapping) for item in items)
        ):
            raise UnavailableError(
                "the API server's answer is not a list of objects", where=self._where(path)
            )
        token = str(metadata.get("continue") or "")
        return Page(items, str(metadata.get("resourceVersion", "")), bool(token)), token

    async def watch(
        self,
        path: str,
        version: str,
        query: Mapping[str, str] | None = None,
        *,
        accepted: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Event]:
        """Yield the changes after a resource version, until the server ends the watch.

        `accepted` is called when the server has begun to answer, which may be long before the first change.
        Raises ApiError 410 if the version is too old. Raises UnavailableError if nothing, not even a
        bookmark, has arrived for SILENCE_SECONDS: the connection is dead although neither side closed it.
        """
        asked = {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS), **(query or {}),
        }  # fmt: skip
        async for response in self._responses(path, asked, WATCH):
            accepted()
            async for line in _lines(response, self._where(path)):
                told = self._json(line, path)
                kind, changed = str(told.get("type")), told.get("object") or {}
                if not isinstance(changed, Mapping):
                    raise UnavailableError(
                        "the API server sent an event without an object", where=self._where(path)
                    )
                if kind == "ERROR":
                    code = changed.get("code")
                    status = code if isinstance(code, int) else 500
                    raise _refused(status, changed, self._where(path))
                yield Event(kind, changed)

    async def _responses(
        self,
        path: str,
        query: Mapping[str, str],
        limits: FetchLimits,
        content: _Content | None = None,
        *,
        refuse: bool = True,
    ) -> AsyncIterator[FetchedResponse]:
        """Yield the answer to a request; after a 401, repeat it once with a new credential.

        Raises ApiError for an answer of 300 or more, if `refuse` is set.
        """
        url = f"{self.access.server}{path}" + (f"?{urlencode(query)}" if query else "")
        for again in (True, False):
            credential = await self._credentials.current()
            if self._tls is None or self._tls[0] != credential:
                self._tls = credential, tls_context(self.access, credential)
            headers = {"Accept": "application/json"}
            if credential.token:
                headers["Authorization"] = f"Bearer {credential.token}"
            if content is not None:
                headers["Content-Type"] = content.media_type
            async with fetch_stream(
                url,
                headers=headers,
                limits=limits,
                tls=self._tls[1],
                server_name=self.access.server_name,
                tunnel=self.access.proxy,
                method=content.method if content else "GET",
                body=content.body if content else b"",
            ) as response:
                if response.status == 401 and again and self._credentials.refused():
                    continue
                if response.status >= 300 and refuse:
                    told = _status_document(await _body(response, _MAX_ERROR))
                    raise _refused(response.status, told, self._where(path))
                yield response
            return

    def _json(self, body: bytes, path: str) -> Any:
        try:
            told = self._decode(body.decode())
        except (ValueError, RecursionError):
            # Objects of some kinds can contain arbitrarily nested data.
            raise UnavailableError(
                "the API server's answer is not JSON, or is nested too deeply", where=self._where(path)
            ) from None
        if not isinstance(told, Mapping):
            raise UnavailableError("the API server's answer is not a JSON object", where=self._where(path))
        return told

    def _where(self, path: str) -> str:
        return f"{self.access.server}{path}"


def _refused(status: int, document: Object, where: str) -> ApiError:
    message = _told(document, "message") or f"HTTP {status}"
    remedy = {
        401: "log in again, or check the token",
        403: "grant the missing right",
    }.get(status, "")
    return ApiError(status, _told(document, "reason"), message, where=where, remedy=remedy)


def _told(document: Object, field: str) -> str:
    return one_line(str(document.get(field) or ""), _MAX_MESSAGE)


def _status_document(body: bytes) -> Object:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, Mapping) else {}


async def _body(response: FetchedResponse, limit: int) -> bytes:
    body = bytearray()
    async for piece in response.body:
        body += piece
        if len(body) > limit:
            break
    return bytes(body)


async def _lines(response: FetchedResponse, where: str) -> AsyncIterator[bytes]:
    """Yield the lines of a body as they arrive."""
    held = bytearray()
    async for piece in response.body:
        start = len(held)
        held += piece
        while (end := held.find(b"\n", start)) >= 0:
            line = bytes(held[:end])
            del held[: end + 1]
            start = 0
            if line.strip():
                yield line
        if len(held) > _MAX_EVENT:
            raise UnavailableError("the API server sent an event without an end", where=where)
        await asyncio.sleep(0)
