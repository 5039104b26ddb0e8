"""nginx and HAProxy in front of a service: each in the foreground, on a free port, with a configuration of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.service import free_port, wait_until

_NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    log_format one '$status $upstream_addr $upstream_status';
    access_log {directory}/access.log one;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    client_header_timeout 300ms;
    client_body_timeout 300ms;
    keepalive_timeout 300ms;
    proxy_read_timeout 5s;
    upstream service {{ server 127.0.0.1:{service}; keepalive 2; }}
    server {{
        listen 127.0.0.1:{port};
        underscores_in_headers on;
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering {buffering};
            proxy_next_upstream off;
        }}
    }}
}}
"""

_HAPROXY = """
global
    log stdout format raw local0
    maxconn 64
    nbthread 1
defaults
    mode http
    log global
    log-format "%ST %s %ts %si"
    timeout connect 5s
    timeout client 300ms
    timeout server 5s
    timeout http-request 300ms
    timeout http-keep-alive 300ms
    http-reuse always
    retries 0
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server service 127.0.0.1:{service}
"""


class Proxy:
    """Args: kind: `nginx`, `nginx unbuffered` (bodies go on as they come) or `haproxy`."""

    def __init__(self, kind: str, directory: Path, service_port: int) -> None:
        self.kind = kind
        self.port = free_port()
        self._log = directory / "access.log"
        self._lines = 0
        self._config = directory / "proxy.conf"
        template = _HAPROXY if kind == "haproxy" else _NGINX
        buffering = "off" if kind == "nginx unbuffered" else "on"
        text = template.format(directory=directory, port=self.port, service=service_port, buffering=buffering)
        self._config.write_text(text)
        self._log.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.kind == "haproxy":
            command = ["haproxy", "-db", "-f", str(self._config)]
        else:
            command = ["nginx", "-c", str(self._config), "-e", str(self._log.with_name("error.log"))]
        with self._log.open("ab") as log, self._log.with_name("stderr.log").open("ab") as errors:
            output = log if self.kind == "haproxy" else errors
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        wait_until(self._listens, what=f"{self.kind} listens")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.with_name("stderr.log").read_text()
        needle = f"0100007F:{self.port:04X} 00000000:0000 0A"
        return needle in Path("/proc/net/tcp").read_text()

    def forwarded(self, at_least: int) -> tuple[int, int]:
        """Of the requests that ended since the last call: how many went to the service, and how many it answered.

        Waits for so many at first, since a proxy may write its log after its client has read the answer.
        """
        wait_until(lambda: len(self._sent()) >= at_least, 10, f"{self.kind} has forwarded {at_least} requests")
        sent = self._sent()
        self._lines = len(self._log.read_text().splitlines())
        if self.kind == "haproxy":
            # The second letter of the state: R request, H header, D data, ...; -- means that it ended well.
            return len(sent), len([line for line in sent if line.split()[2][1] == "-"])
        return len(sent), len([line for line in sent if line.split(" ", 2)[2].isdigit()])

    def _sent(self) -> list[str]:
        server = " service " if self.kind == "haproxy" else " 127.0.0.1:"
        return [line for line in self._log.read_text().splitlines()[self._lines :] if server in line]
