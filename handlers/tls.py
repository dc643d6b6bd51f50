"""TLS towards a broker: which authorities are believed, and which certificate we show.

Owns the options that are the same for every broker; must not know which broker it is.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import Field, model_validator

from cdc import HandlerOptions

__all__ = ["TlsOptions"]


class TlsOptions(HandlerOptions):
    """Options of the connection's encryption; the server's name is always checked."""

    tls: bool = Field(default=False, description="Encrypt the connection, and refuse a server that does not.")
    tls_ca: Path | None = Field(
        default=None, description="PEM file of the authorities to believe; default: the system's."
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of our own certificate, where the server asks."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> TlsOptions:
        if not self.tls and (self.tls_ca or self.tls_certificate or self.tls_key):
            raise self.wrong_option("tls", "tls_ca, tls_certificate and tls_key need tls = true")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise self.wrong_option(
                "tls_key" if self.tls_key is None else "tls_certificate", "tls_certificate and tls_key need each other"
            )
        return self

    def tls_context(self) -> ssl.SSLContext | None:
        """What the connection is made with, None for a plain one; reads the files (OSError, ssl.SSLError)."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_certificate is not None:
            context.load_cert_chain(self.tls_certificate, self.tls_key)
        return context
