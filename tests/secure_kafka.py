"""An Apache Kafka with TLS and SASL: one node, one listener for each way in, certificates made on the spot.

    TLS      SSL, the broker's certificate signed by our CA
    MUTUAL   SSL, and the client must show a certificate of the same CA
    PLAIN    SASL_SSL with PLAIN
    SCRAM    SASL_SSL with SCRAM-SHA-256 and SCRAM-SHA-512
    BARE     SASL_PLAINTEXT with PLAIN and SCRAM, as behind somebody else's TLS

`properties` writes the client's file for one of them.
"""

from pathlib import Path

import trustme

from tests.kafka_server import KafkaServer

USER = "alice"
PASSWORD = "correct horse; battery=st\"aple #1"
"""With what properties files, JAAS and URLs treat specially."""
KEY_PASSWORD = "key-secret-4711"

LISTENERS = {"TLS": "SSL", "MUTUAL": "SSL", "PLAIN": "SASL_SSL", "SCRAM": "SASL_SSL", "BARE": "SASL_PLAINTEXT"}
_MODULE = "org.apache.kafka.common.security"


class SecureKafka:
    """The node, and the files that clients need. Close it."""

    def __init__(self, directory: Path, libs: Path) -> None:
        self._directory = directory
        self.authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.other_ca_file = directory / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca_file)
        server = self.authority.issue_cert("localhost", "127.0.0.1")
        self._server_file = directory / "server.pem"
        server.private_key_and_cert_chain_pem.write_to_path(self._server_file)
        client = self.authority.issue_cert("client@example.org")
        self.client_file = directory / "client.pem"
        client.private_key_and_cert_chain_pem.write_to_path(self.client_file)
        self.node = KafkaServer(
            directory / "kafka",
            libs,
            listeners=LISTENERS,
            settings=self._settings(),
            users=[f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)],
        )

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
