"""A certificate authority of one's own, and a server's certificate for loopback that it signed."""

from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FROM, UNTIL = datetime(2020, 1, 1), datetime(2120, 1, 1)
PEM = serialization.Encoding.PEM


def make_server_context(folder: Path) -> tuple[SSLContext, bytes]:
    """Return what serves TLS for 127.0.0.1, and the authority's certificate that a client must know."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    authority = _certificate(authority_name, authority_name, authority_key, authority_key, is_authority=True)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    server = _certificate(server_name, authority_name, server_key, authority_key, is_authority=False)
    unencrypted = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.pem").write_bytes(server_key.private_bytes(PEM, *unencrypted) + server.public_bytes(PEM))
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    return context, authority.public_bytes(PEM)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), FROM, UNTIL)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(issuer_id, critical=False)
    if not is_authority:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("kubernetes")])
        builder = builder.add_extension(names, critical=False)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=is_authority, crl_sign=is_authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return builder.add_extension(usage, critical=True).sign(issuer_key, hashes.SHA256())
