# SPDX-License-Identifier: Apache-2.0
"""Certificates, for both protocols."""

import os
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from blipstream_client._exceptions import InvalidCertificate

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TLS:
    """Whom to trust, and the client's own certificate. Raises InvalidCertificate if a file cannot be used."""

    ca_file: PathLike | None = None  # certificates to trust instead of the well-known ones
    cert_file: PathLike | None = None  # the client's own certificate
    key_file: PathLike | None = None  # its key, if not in the same file

    def __post_init__(self) -> None:
        if self.key_file is not None and self.cert_file is None:
            raise InvalidCertificate("key_file has a meaning only with cert_file: give that too")
        if self.is_given:
            _ = self.context  # so that a wrong file is an error now and not a failed handshake later

    @property
    def is_given(self) -> bool:
        """Whether any file is given."""
        return self.ca_file is not None or self.cert_file is not None

    @cached_property
    def context(self) -> ssl.SSLContext:
        """The context for HTTP."""
        return self.new_context()

    def new_context(self) -> ssl.SSLContext:
        """A context that may be changed. Raises InvalidCertificate."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as exc:  # ValueError: no file can have this name
            raise InvalidCertificate(f"Cannot trust the certificates in {self.ca_file}: {_reason(exc)}") from exc
        if self.cert_file is not None:
            try:
                # an encrypted key must fail, not ask for its password on the terminal
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except (OSError, ValueError) as exc:
                files = f"{self.cert_file} and its key in {self.key_file or 'the same file'}"
                raise InvalidCertificate(f"Cannot use the certificate in {files}: {_reason(exc)}") from exc
        return context

    @property
    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """For gRPC: the trusted certificates, the client's key and its certificate."""
        files = (self.ca_file, self.key_file or self.cert_file, self.cert_file)
        roots, key, certificate = (None if path is None else Path(path).read_bytes() for path in files)
        return roots, key, certificate


def _reason(error: OSError | ValueError) -> str:
    """The reason, without OpenSSL's line numbers."""
    if isinstance(error, ssl.SSLError):
        return f"expected PEM, unencrypted, with a key that matches ({error.reason or error})"
    return getattr(error, "strerror", None) or str(error)
