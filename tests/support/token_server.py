"""A token service for docker-registry's token authentication, as the distribution specification's guide describes it.

A stand-in: registries bring their own. The registry that checks its tokens is the real one.
"""

import base64
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

ISSUER, SERVICE = "test-issuer", "test-registry"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Grants what is asked for to one user, by Basic authentication or with a refresh token, and nothing to others.

    `life` is how many seconds tokens are good for; what it says of that beforehand may be left out.
    """

    def __init__(self, user: str, password: str, refresh: str = "", life: int = 300) -> None:
        self.basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.refresh = refresh
        self.life = life
        #: The scopes of each request, with blanks between them.
        self.asked: list[str] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
        builder = builder.serial_number(1).not_valid_before(now - timedelta(days=1))
        self.certificate = builder.not_valid_after(now + timedelta(days=1)).sign(self._key, hashes.SHA256())

    def token(self, scopes: str) -> str:
        """Return a signed token for scopes, each "repository:NAME:ACTIONS"."""
        access = []
        for scope in scopes.split():
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": "tester", "exp": now + self.life, "nbf": now - 60, "iat": now}
        claims |= {"jti": str(time.time_ns()), "access": access}
        signed = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        return f"{signed}.{_encode(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@contextmanager
def token_server(server: TokenServer, directory: Path) -> Iterator[str]:
    """Serve tokens on a loopback port and yield what goes below `auth:` in the registry's configuration."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            self.answer(" ".join(query.get("scope", [])), self.headers.get("Authorization") == server.basic)

        def do_POST(self) -> None:
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            granted = form["grant_type"] == ["refresh_token"] and form["refresh_token"] == [server.refresh]
            self.answer(" ".join(form.get("scope", [])), granted)

        def answer(self, scopes: str, granted: bool) -> None:
            server.asked.append(scopes)
            given = {"token": server.token(scopes), "access_token": server.token(scopes), "expires_in": server.life}
            body = json.dumps(given if granted else {"errors": []}).encode()
            self.send_response(200 if granted else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    bundle = directory / "issuer.pem"
    bundle.write_bytes(server.certificate.public_bytes(serialization.Encoding.PEM))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            realm = f"http://127.0.0.1:{httpd.server_address[1]}/token"
            yield f"token: {{realm: {realm}, service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {bundle}}}"
        finally:
            httpd.shutdown()
            thread.join()
