"""An Apache Kafka with TLS and SASL: one node, one listener for each way in, certificates made on the spot.

    TLS      SSL, the broker's certificate signed by our CA
    MUTUAL   SSL, and the client must show a certificate of the same CA
    PLAIN    SASL_SSL with PLAIN
    SCRAM    SASL_SSL with SCRAM-SHA-256 and SCRAM-SHA-512
    BARE     SASL_PLAINTEXT with PLAIN and SCRAM, as behind somebody else's TLS

`client` writes the properties file that a client needs for one of them.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.kafka_server import KafkaServer

USER = "alice"
PASSWORD = 'correct horse; battery=st"aple #1'
"""With what properties files, JAAS and URLs treat specially."""
KEY_PASSWORD = "key-secret-4711"

LISTENERS = {"TLS": "SSL", "MUTUAL": "SSL", "PLAIN": "SASL_SSL", "SCRAM": "SASL_SSL", "BARE": "SASL_PLAINTEXT"}
_MODULE = "org.apache.kafka.common.security"


class SecureKafka:
    """The node, and the files that clients need. Close it."""

    def __init__(self, directory: Path, libs: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self.authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.other_ca_file = directory / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca_file)
        self._server_file = directory / "server.pem"
        self._server_file.write_bytes(_pem(self.authority.issue_cert("localhost", "127.0.0.1")))
        self.client_file = directory / "client.pem"
        self.client_file.write_bytes(_pem(self.authority.issue_cert("alice@example.org"), KEY_PASSWORD))
        self.node = KafkaServer(
            directory / "kafka",
            libs,
            listeners=LISTENERS,
            settings=self._settings(),
            users=[f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)],
        )

    def client(self, listener: str, properties: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """The environment of a command that takes this way in; `properties` win, None takes one away."""
        protocol = LISTENERS[listener]
        usual = {"security.protocol": protocol, "ssl.ca.location": str(self.ca_file) if "SSL" in protocol else None}
        file = self._directory / f"{next(self._numbers)}.properties"
        entries = {**usual, **(properties or {})}
        file.write_text("".join(f"{name}={_escaped(value)}\n" for name, value in entries.items() if value is not None))
        return {"GOKAMSG_BROKERS": self.node.address_of(listener), "GOKAMSG_KAFKA_CONFIG": str(file)}

    def _settings(self) -> dict[str, str]:
        escaped = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
        plain = f'{_MODULE}.plain.PlainLoginModule required user_{USER}="{escaped}";'.replace("\\", "\\\\")
        scram = f"{_MODULE}.scram.ScramLoginModule required;"
        settings = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._server_file),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
            "listener.name.mutual.ssl.client.auth": "required",
        }
        for listener, mechanisms in (
            ("plain", ("PLAIN",)),
            ("scram", ("SCRAM-SHA-256", "SCRAM-SHA-512")),
            ("bare", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")),
        ):
            settings[f"listener.name.{listener}.sasl.enabled.mechanisms"] = ",".join(mechanisms)
            for mechanism in mechanisms:
                module = plain if mechanism == "PLAIN" else scram
                settings[f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"] = module
        return settings


def _pem(certificate: trustme.LeafCert, password: str | None = None) -> bytes:
    """The key, in the form that Java reads, and the certificate."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption) + b"".join(
        part.bytes() for part in certificate.cert_chain_pems
    )


def _escaped(value: str) -> str:
    """As a properties file wants it."""
    return value.replace("\\", "\\\\")
