# SPDX-License-Identifier: Apache-2.0
"""TLS at the gRPC port, which Triton itself ends."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from blipstream.errors import ServerError


@dataclass(frozen=True)
class TLS:
    """The server's certificate, and whose certificates it accepts. Raises ServerError if a file is unusable."""

    certificate: Path  # PEM, followed by its chain
    key: Path  # PEM, unencrypted
    client_ca: Path | None = None  # PEM: clients must have a certificate of this authority; None: they need none

    def __post_init__(self) -> None:
        """Check the files. Triton would start with unusable ones, and then fail at every handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            raise ServerError(
                f"TLS needs a certificate and its unencrypted key, both PEM; {self.certificate} and {self.key} "
                f"are not: {_reason(error)}"
            ) from error
        try:
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise ServerError(
                f"clients are judged by an authority's certificate in PEM, which {self.client_ca} is not: "
                f"{_reason(error)}"
            ) from error

    @property
    def options(self) -> dict[str, object]:
        """The options of tritonserver."""
        files = {"grpc-server-cert": self.certificate.resolve(), "grpc-server-key": self.key.resolve()}
        if self.client_ca is None:
            return files | {"grpc-use-ssl": "true"}
        return files | {"grpc-use-ssl-mutual": "true", "grpc-root-cert": self.client_ca.resolve()}


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
