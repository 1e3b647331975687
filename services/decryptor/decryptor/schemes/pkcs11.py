"""Keys in tokens: ocicrypt's key files, its JSON around RSA-OAEP, and which modules may be loaded.

A module is foreign code, so it is loaded in a program of its own (pkcs11_module.py), once for each use. A PIN goes
there through its standard input and nowhere else.
"""

import base64
import binascii
import json
import os
import platform
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument
from decryptor.deadline import Deadline
from decryptor.helper import Helper
from decryptor.options import encode

RECIPIENTS_LIMIT, YAML_LIMIT = 256, 64 * 1024
_HASHES = ("sha1", "sha256")
_CONFIG_FILES = ("/etc/ocicrypt.conf", "/etc/ocicrypt-pkcs11.conf")


@dataclass(frozen=True)
class KeyFile:
    """A key in a token: the attributes of its URI (RFC 7512), and the environment of its module."""

    path: dict[str, bytes]
    query: dict[str, bytes] = field(repr=False)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The URI without its query: neither PIN nor module are in it."""
        return _name(self.path)


def named(uri: str) -> str:
    """Return the name of the key whose file holds this URI, however it is written; InvalidArgument if it is none."""
    return _name(_parse(uri)[0])


def _name(path: Mapping[str, bytes]) -> str:
    return "pkcs11:" + ";".join(f"{key}={urllib.parse.quote(value)}" for key, value in sorted(path.items()))


def key_file(data: bytes) -> KeyFile:
    """Read ocicrypt's YAML, `pkcs11: {uri: …}` and `module: {env: {…}}`; InvalidArgument says what is wrong."""
    document = _yaml(data, "key file of a token")
    part, module = document.get("pkcs11"), document.get("module") or {}
    uri = part.get("uri") if isinstance(part, dict) else None
    environment = module.get("env") or {} if isinstance(module, dict) else None
    # Plain values alone: the text of aliases within aliases would fill the memory.
    plain = isinstance(environment, dict) and not any(isinstance(v, dict | list | set) for v in environment.values())
    if not isinstance(uri, str) or not isinstance(environment, dict) or not plain:
        raise InvalidArgument("key file of a token: expected pkcs11 with a uri, and module with env, names and values")
    path, query = _parse(uri)
    if not {"id", "object"} & set(path):
        raise InvalidArgument("key file of a token: the URI names no key: neither object nor id")
    if not {"token", "slot-id"} & set(path):
        raise InvalidArgument("key file of a token: the URI names no token: neither token nor slot-id")
    return KeyFile(path, query, {str(name): str(value) for name, value in environment.items()})


def _yaml(data: bytes, what: str) -> dict[str, Any]:
    try:
        if len(data) > YAML_LIMIT:
            raise ValueError
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidArgument(f"{what}: not YAML") from None  # the parser's text quotes the file, PIN and all
    if not isinstance(document, dict):
        raise InvalidArgument(f"{what}: not a YAML mapping")
    return document


def _parse(uri: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "pkcs11":
        raise InvalidArgument("key file of a token: the URI does not begin with pkcs11:")
    path, _, query = rest.partition("?")
    return _attributes(path, ";"), _attributes(query, "&")


def _attributes(text: str, separator: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for pair in filter(None, text.split(separator)):
        name, equals, value = pair.partition("=")
        if not equals or name in found:
            raise InvalidArgument("key file of a token: the URI is no list of different attributes with values")
        found[name] = urllib.parse.unquote_to_bytes(value)
    return found


@dataclass(frozen=True)
class Modules:
    """Where modules are looked for, and which may be loaded: a path, or a directory that ends in a slash."""

    directories: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Modules":
        """Return the policy of ocicrypt's configuration: `internal`, the file that OCICRYPT_CONFIG names, or the usual.

        InvalidArgument if the file there is cannot be used; without one no module may be loaded.
        """
        chosen = environ.get("OCICRYPT_CONFIG", "")
        if chosen == "internal":
            usual = tuple(_usual())
            return cls(usual, usual)
        candidates = [chosen, *_CONFIG_FILES]
        if home := environ.get("XDG_CONFIG_HOME"):
            candidates.insert(1, f"{home}/ocicrypt.conf")
        for candidate in filter(None, candidates):
            try:
                data = Path(candidate).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InvalidArgument(f"{candidate}: {error.strerror}") from error
            part = _yaml(data, candidate).get("pkcs11") or {}
            if not isinstance(part, dict):
                raise InvalidArgument(f"{candidate}: pkcs11 is not a mapping")
            return cls(_strings(part, "module-directories"), _strings(part, "allowed-module-paths"))
        return cls()

    def find(self, query: Mapping[str, bytes]) -> str:
        """Return the module that a URI means; FailedPrecondition if there is none or it is not allowed."""
        given = os.fsdecode(query.get("module-path", b""))
        if given and os.path.isfile(given):
            return self._checked(given)
        wanted = os.fsdecode(query.get("module-name", b"")).lower()
        if not wanted:
            raise FailedPrecondition("the token's URI names no module: neither module-path nor module-name")
        for directory in [given] if given else self.directories:
            for name in _listing(directory):
                _, found, after = name.lower().partition(wanted)
                if found and (not after or after.startswith(".")):
                    return self._checked(os.path.join(directory, name))
        raise FailedPrecondition(f"no PKCS#11 module {wanted!r} in {', '.join(self.directories) or 'no directory'}")

    def _checked(self, path: str) -> str:
        for allowed in self.allowed:
            if path == allowed or (allowed.endswith("/") and os.path.dirname(path) == allowed.rstrip("/")):
                return path
        raise FailedPrecondition(
            f"PKCS#11 module {path} is not allowed: allowed-module-paths in the file of OCICRYPT_CONFIG says which are"
        )


def _usual() -> Iterable[str]:
    yield from ("/usr/lib64/pkcs11/", "/usr/lib/pkcs11/", "/usr/local/lib/pkcs11/", "/usr/lib/softhsm/")
    yield f"/usr/lib/{platform.machine()}-linux-gnu/"


def _strings(part: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = part.get(name) or []
    if not isinstance(value, list):
        raise InvalidArgument(f"{name} is not a list")
    return tuple(map(str, value))


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def recipients(blob: bytes) -> list[tuple[bytes, str]]:
    """Return ciphertext and hash of each recipient in ocicrypt's JSON; InvalidArgument if it is none.

    A recipient without a hash is from before there was one: SHA-1.
    """
    try:
        document = json.loads(blob)
        entries = document["recipients"]
        if not isinstance(entries, list) or len(entries) > RECIPIENTS_LIMIT or document.get("version"):
            raise ValueError("recipients")
        found = [(base64.b64decode(each["blob"], validate=True), each.get("hash") or "sha1") for each in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise InvalidArgument("pkcs11: not the JSON of recipients that ocicrypt writes") from None
    return [(data, name) for data, name in found if name in _HASHES]


def unwrap(key: KeyFile, blob: bytes, modules: Modules, helper: Helper, deadline: Deadline) -> bytes | None:
    """Return the private options if a recipient's copy is for this key; BulkheadError if the token cannot be used."""
    copies = recipients(blob)
    if not copies:
        return None
    order = [{"data": encode(data), "hash": name} for data, name in copies]
    answer = _use(key, {"decrypt": order}, modules, helper, deadline)
    data = answer.get("data")
    return base64.b64decode(data) if isinstance(data, str) else None


def wrap(
    payload: bytes,
    keys: list[rsa.RSAPublicKey | KeyFile],
    hash_name: str,
    use: tuple[Modules, Helper, Deadline],
) -> bytes:
    """Return ocicrypt's JSON with the payload for each key; a key file's public key is the token's to use.

    InvalidArgument if a key is too small: OAEP leaves 190 bytes of 2048 bits with SHA-256.
    """
    entries = []
    for key in keys:
        data = (
            _wrap_here(payload, key, hash_name)
            if isinstance(key, rsa.RSAPublicKey)
            else _wrap_there(payload, key, hash_name, *use)
        )
        entries.append({"version": 0, "blob": encode(data), "hash": hash_name})
    return json.dumps({"version": 0, "recipients": entries}, separators=(",", ":")).encode()


def _wrap_here(payload: bytes, key: rsa.RSAPublicKey, hash_name: str) -> bytes:
    chosen: hashes.HashAlgorithm = hashes.SHA1() if hash_name == "sha1" else hashes.SHA256()  # noqa: S303 # tokens' only
    room = key.key_size // 8 - 2 * chosen.digest_size - 2
    if len(payload) > room:
        raise InvalidArgument(
            f"pkcs11 recipient: a key of {key.key_size} bits has room for {room} bytes with OAEP and {hash_name}, "
            f"{len(payload)} are to be wrapped: use a larger key, or OCICRYPT_OAEP_HASHALG=sha1"
        )
    return key.encrypt(payload, padding.OAEP(padding.MGF1(chosen), chosen, None))


def _wrap_there(
    payload: bytes, key: KeyFile, hash_name: str, modules: Modules, helper: Helper, deadline: Deadline
) -> bytes:
    order = {"encrypt": {"data": encode(payload), "hash": hash_name}}
    data = _use(key, order, modules, helper, deadline).get("data")
    if not isinstance(data, str):
        raise FailedPrecondition(f"{key.name}: the token did not wrap the key")
    return base64.b64decode(data)


def _use(
    key: KeyFile, order: dict[str, Any], modules: Modules, helper: Helper, deadline: Deadline
) -> dict[str, object]:
    request = {
        **order,
        "module": modules.find(key.query),
        "token": key.path.get("token", b"").decode(errors="replace"),
        "slot": key.path.get("slot-id", b"").decode(errors="replace"),
        "object": key.path.get("object", b"").decode(errors="replace"),
        "id": key.path.get("id", b"").hex(),
        "pin": _pin(key.query),
    }
    program = [sys.executable, "-I", "-m", "decryptor.schemes.pkcs11_module"]
    try:
        out = helper.run(program, input=json.dumps(request).encode(), timeout=deadline.for_answer, env=key.environment)
        answer = json.loads(out)
    except BulkheadError as error:
        raise type(error)(f"{key.name}: {error}") from error
    except ValueError:
        raise FailedPrecondition(f"{key.name}: the module's process answered something else than JSON") from None
    if not isinstance(answer, dict) or "error" in answer:
        reason = answer.get("error") if isinstance(answer, dict) else "no answer"
        raise FailedPrecondition(f"{key.name}: {reason}")
    return answer


def _pin(query: Mapping[str, bytes]) -> str:
    """Return the PIN in the URI, or in the file that its pin-source names."""
    if "pin-value" in query:
        return query["pin-value"].decode(errors="replace")
    source = os.fsdecode(query.get("pin-source", b"")).removeprefix("file:")
    if not source:
        raise FailedPrecondition("the token's URI has no PIN: neither pin-value nor pin-source")
    while source.startswith("//"):
        source = source[1:]
    try:
        with Path(source).open("rb") as file:
            return file.read(1024).decode(errors="replace").rstrip("\r\n")
    except OSError as error:
        raise FailedPrecondition(f"pin-source {source}: {error.strerror}") from error
