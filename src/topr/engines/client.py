"""Requests to an HTTP server that may be busy, failing or away for a while.

The retry is our own: when to give up depends on when any request of the session was last answered,
and on whether the server's process is alive, which retry libraries do not know.

Not here: what is asked and what an answer means (`topr.engines.completions`).
"""

import asyncio
import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2

from topr.errors import EngineError

T = TypeVar("T")
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds before a request is made again: doubled each time, up to the longest."""
CONNECT_SECONDS = 10.0
SHOWN = 500
"""Characters of an answer that an error shows."""
PASSING = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
"""Client errors that pass; all others do not."""
LASTING = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
"""Server errors that do not pass."""


class RefusedError(EngineError):
    """The server refuses the request as it stands: making it again is of no use."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PassingError(EngineError):
    """An answer that another try may better."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that the server asks to wait."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server is, and how long to retry."""

    url: str
    """Up to `/v1`, that included."""
    timeout: float
    """Seconds of one request."""
    patience: float
    """Seconds without any answer before giving up."""
    key: str | None = field(default=None, repr=False)
    """Bearer token."""
    check: Callable[[], None] = lambda: None
    """Raises an EngineError where it is known that the server is gone for good."""


class Session:
    """Connections to an endpoint, in one event loop."""

    def __init__(self, endpoint: Endpoint, connections: int = 1) -> None:
        """Prepare up to that many connections; none is opened before the first request."""
        self._endpoint = endpoint
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        local = urlsplit(endpoint.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._client = httpx2.AsyncClient(
            headers=headers,
            limits=httpx2.Limits(max_connections=connections),
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=not local,  # a proxy cannot reach this machine's own loopback
        )
        self._answered = time.monotonic()

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(
        self,
        path: str,
        read: Callable[[Any], T],
        body: Mapping[str, Any] | None = None,
        *,
        spread: float = 0.0,
        longest: float = LONGEST_PAUSE,
    ) -> T:
        """Return what a JSON answer says, asked again while the server is busy, failing or away.

        Args:
            path: behind the endpoint's url.
            read: the answer's reader; it may raise a PassingError.
            body: to POST; None: GET.
            spread: in [0, 1), another for each request: requests that failed together are not made
                again together.
            longest: seconds before it is made again, at most, unless the server asks for more.

        Raises:
            RefusedError: the server says that the request is wrong.
            EngineError: no request of this session was answered for `patience` seconds, the server
                is gone for good, or `read` says so.

        """
        pause = FIRST_PAUSE
        while True:
            try:
                result = read(await self._once(path, body))
            except (PassingError, httpx2.RequestError, TimeoutError) as error:
                wait = max(pause * (1 + spread) / 2, getattr(error, "after", 0.0))
                self._endpoint.check()
                silent = time.monotonic() - self._answered
                if silent + wait > self._endpoint.patience:
                    raise EngineError(self._lost(error, silent)) from error
                await asyncio.sleep(wait)
                pause = min(2 * pause, longest)
            else:
                self._answered = time.monotonic()
                return result

    async def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        method, url = ("GET" if body is None else "POST"), f"{self._endpoint.url}/{path}"
        async with asyncio.timeout(self._endpoint.timeout):
            response = await self._client.request(method, url, json=body)
        if response.is_success:
            try:
                return response.json()
            except (ValueError, RecursionError) as error:
                raise PassingError(f"an answer that is not JSON: {_shown(response)}") from error
        status = response.status_code
        if status in PASSING or (status >= 500 and status not in LASTING):
            raise PassingError(f"status {status}: {_shown(response)}", _retry_after(response))
        raise RefusedError(
            f"{url} refused the request with status {status}: {_shown(response)}\nLook at what it "
            "says; generate.server has the url, the model's name and further fields of requests",
            status,
        )

    def _lost(self, error: Exception, silent: float) -> str:
        seen = str(error) or f"{type(error).__name__} after {self._endpoint.timeout:g} s"
        return (
            f"{self._endpoint.url} has answered no request for {silent:.0f} s, and patience is "
            f"{self._endpoint.patience:g} s; the last try ended in: {seen}\nSee that the server "
            "runs and is reached, and run this again: what was drawn is kept. "
            "generate.server.patience waits longer"
        )


def _shown(response: httpx2.Response) -> str:
    text = response.text.strip()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
