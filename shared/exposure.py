"""How a configuration exposes the service: warnings, TLS on our own port, and its URL. Reads certificates only."""

from __future__ import annotations

import ssl

from shared.addresses import is_this_machine
from shared.database import is_local
from shared.settings import Config, Service


class TlsUnusable(ValueError):
    """One line that names the key and the reason. The operator must act."""


def warnings(config: Config) -> list[str]:
    """Allowed settings that an operator should know about: one sentence each."""
    found = []
    service, database = config.service, config.database
    if not is_local(database) and database.ssl_mode in (None, "DISABLED", "PREFERRED"):
        found.append(
            f"database.host = {','.join(database.host)} is another machine, and the connection is not encrypted:"
            " set database.ssl_ca (it checks certificate and host name), or another database.ssl_mode"
        )
    elif not is_local(database) and database.ssl_mode == "REQUIRED":
        found.append(
            f"database.ssl_mode = REQUIRED does not check who answers as {','.join(database.host)};"
            " VERIFY_IDENTITY does"
        )
    if not service.protected_mode and service.auth_token is None and not is_this_machine(service.host):
        found.append(
            "service.protected_mode = false without a service.auth_token:"
            f" whoever reaches port {service.port} may write"
        )
    return found


def check_tls(service: Service) -> None:
    """Checks that a worker can serve with the certificate. Raises: TlsUnusable."""
    if service.tls_cert is None:
        if service.tls_key is not None:
            raise TlsUnusable("service.tls_key is set, and service.tls_cert is not: nothing would be encrypted")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(service.tls_cert, service.tls_key, lambda: "")
    except OSError as error:
        files = f"service.tls_cert = {service.tls_cert!r}, service.tls_key = {service.tls_key!r}"
        raise TlsUnusable(f"{files}: {error.strerror or error}") from error


def local_url(service: Service) -> str:
    """Where a program on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(service.host, service.host)  # noqa: S104
    scheme = "https" if service.tls_cert else "http"
    return f"{scheme}://[{host}]:{service.port}" if ":" in host else f"{scheme}://{host}:{service.port}"


def local_tls(service: Service) -> ssl.SSLContext | None:
    """For programs on this machine: trusts exactly the configured certificate. Its host name is that of the outside
    world, so it is not compared. Raises: OSError if the certificate cannot be read."""
    if service.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(service.tls_cert)
    return context
