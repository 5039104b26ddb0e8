"""A node's service over HTTP: this node's, by its configuration, or another one by --url."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlencode

import click
import orjson

from ctl.output import Stop, configuration
from shared.exposure import local_tls, local_url
from shared.reading import JSON_TYPE, NDJSON_TYPE, PREFIX

TIMEOUT_S = 10.0
API = "/api/v1/persistence"


class NotReached(Stop):
    """No answer, or not one of this service."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The service never redirects, and the token must not follow a stranger's redirect."""

    def redirect_request(self, *_args: Any) -> None:
        return None


class Node:
    """Every call blocks for at most 10 s between two bytes. Ignores proxies of the environment.

    Args: tls: None: the default checks of certificate and host name; hint: what to do if there is no answer.
    """

    def __init__(self, url: str, token: str | None, *, tls: ssl.SSLContext | None = None, hint: str = "") -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._hint = hint
        https = urllib.request.HTTPSHandler(context=tls)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect(), https)

    def health(self) -> dict[str, Any]:
        return self._request("GET", "/health")[1]

    def stats(self) -> dict[str, Any] | None:
        """None where the flusher does not answer. Raises: NotReached, Stop (not let in)."""
        status, document = self._request("GET", f"{API}/stats")
        return document if status == 200 else None

    def flush(self, timeout_s: float) -> tuple[bool, dict[str, Any]]:
        """Returns: whether everything was written, and the service's answer."""
        status, document = self._request("POST", f"{API}/flush?timeout={timeout_s:g}", TIMEOUT_S + timeout_s)
        return status == 200, document

    def read(self, *ids: str, fresh: bool = False, **parameters: str | int | None) -> dict[str, Any]:
        """What the read side answers. Args: ids: parts of the path. Raises: NotReached, Stop."""
        status, document = self._request("GET", _reading(ids, parameters, fresh=fresh))
        if status == 503:
            raise Stop(f"{self.url} cannot answer now: {document.get('detail')}")
        return document

    def stream(self, *ids: str, fresh: bool = False, **parameters: str | int | None) -> Iterator[bytes]:
        """The same as a stream, line by line. Raises: NotReached, also where it breaks off; Stop."""
        path = _reading(ids, parameters, fresh=fresh)
        try:
            with self._send("GET", path, accept=NDJSON_TYPE) as answer:
                if answer.status == 200:
                    yield from answer
                    return
                status, document = self._judged(path, answer.status, answer.read())
        except (OSError, HTTPException, ValueError) as error:
            raise NotReached(f"{self.url} does not answer: {_words(error)}{self._hint}") from error
        raise Stop(f"{self.url} cannot answer now ({status}): {document.get('detail')}")

    def _send(self, method: str, path: str, timeout_s: float = TIMEOUT_S, accept: str = JSON_TYPE) -> Any:
        """An answer, whatever its status. Raises: OSError, HTTPException, ValueError."""
        request = urllib.request.Request(self.url + path, method=method, headers={"Accept": accept})  # noqa: S310 -- only http(s), by _node()
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            return self._opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            return error

    def _request(self, method: str, path: str, timeout_s: float = TIMEOUT_S) -> tuple[int, dict[str, Any]]:
        try:
            with self._send(method, path, timeout_s) as answer:
                status, body = answer.status, answer.read()
        except (OSError, HTTPException, ValueError) as error:
            raise NotReached(f"{self.url} does not answer: {_words(error)}{self._hint}") from error
        return self._judged(path, status, body)

    def _judged(self, path: str, status: int, body: bytes) -> tuple[int, dict[str, Any]]:
        """Raises: NotReached, Stop."""
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise NotReached(f"{self.url}{path} answers {status}, and not as Persistence Service does")
        if status in (401, 403):
            raise Stop(f"{self.url} asks for its token (service.auth_token): {document.get('detail')}")
        if status not in (200, 503):
            raise Stop(f"{self.url}{path} answers {status}: {document.get('detail')}")
        return status, document


def _reading(ids: Sequence[str], parameters: Mapping[str, str | int | None], *, fresh: bool) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    query = urlencode({**given, **({"fresh": "flushed"} if fresh else {})})
    return f"{PREFIX}{''.join(map(_segment, ids))}?{query}".removesuffix("?")


def _segment(part: str) -> str:
    # Dots would be resolved on the way, and `batch` is another path's name.
    if part in (".", "..", "batch"):
        return "/" + "".join(f"%{byte:02X}" for byte in part.encode())
    return "/" + quote(part, safe="")


def _words(error: Exception) -> Any:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or reason


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Another node, e.g. http://192.0.2.2:8001; the token is the configured one."
    return click.option("--url", help=text)(command)


def node_of(url: str | None) -> Node:
    """Raises: Stop."""
    service = configuration().service
    if url is not None:
        return _node(url, service.auth_token, "--url")
    try:
        hint = "; is it running? ./scripts/run.sh"
        return _node(local_url(service), service.auth_token, "service.host", local_tls(service), hint=hint)
    except OSError as error:
        raise Stop(f"service.tls_cert = {service.tls_cert!r}: {error.strerror}") from error


def all_nodes() -> list[Node]:
    """Those of cluster.nodes. Raises: Stop."""
    config = configuration()
    if not config.cluster.nodes:
        raise Stop("cluster.nodes is empty: it names the nodes that --all-nodes means")
    return [_node(url, config.service.auth_token, "cluster.nodes") for url in config.cluster.nodes]


def _node(url: str, tokens: str | None, where: str, tls: ssl.SSLContext | None = None, *, hint: str = "") -> Node:
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise Stop(f"{where} {url}: http:// or https:// is needed")
    return Node(url, tokens.split()[0] if tokens else None, tls=tls, hint=hint)
