"""Certificates of an authority that is made for a test: for a server, for clients, and by whom nobody trusts."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """``certificate``: its own, in a PEM file."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(self.name, self.name, key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self._key.write_bytes(_pem(key))

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def _key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def issue(self, name: str, *, days: int = 1) -> tuple[Path, Path]:
        """PEM files of a certificate for this name and for 127.0.0.1, and of its key. Issued again they are replaced."""
        own = serialization.load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(own, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = _builder(name, self.name, key, days).add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(made.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private.write_bytes(_pem(key))
        return certificate, private


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
