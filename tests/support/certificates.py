"""Certificates made for a test, with Debian's openssl: an authority, and servers that it vouches for."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key, self.certificate = directory / f"{name}.key", directory / f"{name}.pem"
        self._openssl(*f"req -x509 {_NEW} -subj /CN={name} -days 2".split(), key=self._key, out=self.certificate)

    def issue(self, name: str, *names: str) -> tuple[Path, Path]:
        """Args: names: such as DNS:localhost, IP:127.0.0.1. Returns: certificate and key."""
        key, request, certificate = (self._directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        self._openssl(*f"req {_NEW} -subj /CN={name}".split(), key=key, out=request)
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\n")
        authority = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        self._openssl("x509", "-req", "-in", request, *authority, "-extfile", extensions, out=certificate)
        return certificate, key

    def _openssl(self, *arguments: str | Path, out: Path, key: Path | None = None) -> None:
        keyout = ["-keyout", key] if key else []
        done = subprocess.run(["openssl", *arguments, *keyout, "-out", out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


_NEW = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
