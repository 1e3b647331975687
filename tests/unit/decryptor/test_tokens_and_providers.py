"""Keys elsewhere: ocicrypt's files and JSON are read without trust, and what is sent is what ocicrypt sends."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument
from decryptor.deadline import Deadline
from decryptor.schemes import pkcs11, provider
from decryptor.schemes.pkcs11 import Modules
from decryptor.schemes.provider import Provider
from decryptor.tools import Tools

#: Begins when the tests are collected, which on a slow machine is minutes before the last of them.
SOON = Deadline(86_400, "a test")
#: Lists of ten of the list before: ten thousand million numbers, were they written out.
BOMB = "l0: &l0 [1]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))


class Answering:
    """A helper that answers with these bytes and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.asked = answer, b""

    def run(self, args: Sequence[str], *, input: bytes, timeout: float, env: Mapping[str, str] | None = None) -> bytes:
        self.asked = input
        return self.answer


def yaml(uri: str, more: str = "") -> bytes:
    return f"pkcs11:\n  uri: {uri}\n{more}".encode()


def test_a_key_file_is_ocicrypts() -> None:
    """Token, object and id come out of the URI percent-decoded, the module's environment beside them."""
    key = pkcs11.key_file(yaml("pkcs11:token=my%20hsm;id=%01%02?pin-value=12", "module:\n  env:\n    A: b\n"))

    assert (key.path, key.environment) == ({"token": b"my hsm", "id": b"\x01\x02"}, {"A": "b"})
    assert key.name == "pkcs11:id=%01%02;token=my%20hsm"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"pkcs11: [", "not YAML"),
        (b"pkcs11: 5", "expected pkcs11 with a uri"),
        (b"- a", "not a YAML mapping"),
        (yaml("http://x"), "does not begin with pkcs11:"),
        (yaml("pkcs11:token=x"), "neither object nor id"),
        (yaml("pkcs11:object=x"), "neither token nor slot-id"),
        (yaml("pkcs11:token=x;token=y;object=z"), "different attributes"),
        (yaml("pkcs11:token;object=z"), "different attributes"),
        (yaml("pkcs11:token=x;object=y", "module: {env: [1]}"), "module with env"),
        (yaml("pkcs11:token=x;object=y", BOMB + "module: {env: {A: *l9}}"), "names and values"),
    ],
)
def test_a_wrong_key_file_says_why(data: bytes, message: str) -> None:
    """Every way in which a key file can be wrong is named."""
    with pytest.raises(InvalidArgument, match=message):
        pkcs11.key_file(data)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_no_key_file(data: bytes) -> None:
    """No bytes raise anything but InvalidArgument."""
    for text in (data, b"pkcs11:\n  uri: pkcs11:" + data):
        try:
            pkcs11.key_file(text)
        except InvalidArgument:
            continue


def test_recipients_of_old_have_no_hash() -> None:
    """A recipient without a hash was wrapped with SHA-1; one with an unknown hash is for nobody."""
    blob = base64.b64encode(b"x").decode()
    entries = [{"version": 0, "blob": blob}, {"blob": blob, "hash": "sha256"}, {"blob": blob, "hash": "md5"}]

    assert pkcs11.recipients(json.dumps({"version": 0, "recipients": entries}).encode()) == [
        (b"x", "sha1"), (b"x", "sha256"),
    ]  # fmt: skip


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["version", "recipients", "blob", "hash"]), inner, max_size=3)
    ),
    max_leaves=9,
)


@given(JSON | st.binary(max_size=40))
def test_any_json_is_no_recipient(document: Any) -> None:
    """No JSON and no bytes raise anything but InvalidArgument."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    try:
        assert pkcs11.recipients(data) == []
    except InvalidArgument:
        return


def test_a_small_key_has_no_room(rsa_key: rsa.RSAPrivateKey) -> None:
    """What OAEP has no room for is refused in numbers, not by the library."""
    with pytest.raises(InvalidArgument, match="2048 bits has room for 190 bytes with OAEP and sha256, 200"):
        pkcs11.wrap(b"x" * 200, [rsa_key.public_key()], "sha256", (Modules(), Answering(b""), SOON))  # type: ignore[arg-type]


def test_which_modules_may_be_loaded(tmp_path: Path) -> None:
    """A module is found by name in the directories, and loaded only if its path or its very directory is allowed."""
    (tmp_path / "sub").mkdir()
    for name in ("libsofthsm2.so", "libother.so", "sub/libdeep.so"):
        (tmp_path / name).touch()
    modules = Modules((f"{tmp_path}",), (f"{tmp_path}/",))

    assert modules.find({"module-name": b"softhsm2"}) == f"{tmp_path}/libsofthsm2.so"
    assert modules.find({"module-path": f"{tmp_path}/libother.so".encode()}) == f"{tmp_path}/libother.so"
    for query, message in (
        ({"module-name": b"softhsm"}, "no PKCS#11 module"),
        ({"module-path": f"{tmp_path}/sub/libdeep.so".encode()}, "is not allowed"),
        ({}, "names no module"),
    ):
        with pytest.raises(FailedPrecondition, match=message):
            modules.find(query)
    with pytest.raises(FailedPrecondition, match="is not allowed"):
        Modules((str(tmp_path),)).find({"module-name": b"softhsm2"})


def test_where_the_policy_of_modules_stands(tmp_path: Path) -> None:
    """`internal` allows the usual directories, a file what it lists, and without either nothing is allowed."""
    conf = tmp_path / "ocicrypt.conf"
    conf.write_text("pkcs11:\n  module-directories:\n  - /a/\n  allowed-module-paths:\n  - /a/b.so\n")

    assert Modules.read({"OCICRYPT_CONFIG": str(conf)}) == Modules(("/a/",), ("/a/b.so",))
    assert "/usr/lib/softhsm/" in Modules.read({"OCICRYPT_CONFIG": "internal"}).allowed
    assert Modules.read({"XDG_CONFIG_HOME": str(tmp_path)}).directories == ("/a/",)
    conf.write_text("pkcs11: 5")
    with pytest.raises(InvalidArgument, match="not a mapping"):
        Modules.read({"OCICRYPT_CONFIG": str(conf)})


def test_providers_are_read_as_ocicrypt_reads_them() -> None:
    """A command wins over an address; what cannot be used says why and leaves the others alone."""
    entries = {
        "a": {"cmd": {"path": "/p", "args": ["x"]}, "grpc": "unix:///s"},
        "b": {"grpc": "unix:///s"},
        "c": {"grpc": "host:1"},
        "d": {},
        "e": 5,
        "f": {"grpc": "unix:///s", "grpc-tls": {"root-ca-file": "x"}},
        "g": {"cmd": {"args": []}},
    }
    found = provider.read(json.dumps({"key-providers": entries}).encode())

    assert found["a"] == Provider("a", ("/p", "x"))
    assert found["b"] == Provider("b", address="unix:///s")
    assert {name: bool(each.error) for name, each in found.items()} == {
        **dict.fromkeys("ab", False),
        **dict.fromkeys("cdefg", True),
    }


@given(st.binary(max_size=100) | JSON.map(lambda document: json.dumps({"key-providers": document}).encode()))
def test_any_provider_configuration_is_judged(data: bytes) -> None:
    """No configuration raises anything but InvalidArgument."""
    try:
        provider.read(data)
    except InvalidArgument:
        return


def test_a_request_is_ocicrypts() -> None:
    """Wrapping and unwrapping send the members that ocicrypt's Go structures have, with nobody else's parameters."""
    vault = Provider("vault", ("/p",))
    helper: Any = Answering(b'{"keywrapresults":{"annotation":"YQ=="},"keyunwrapresults":{"optsdata":"Yg=="}}')

    assert provider.wrap(vault, b"", b"key", helper, SOON) == b"a"
    assert json.loads(helper.asked) == {
        "op": "keywrap",
        "keywrapparams": {
            "ec": {"Parameters": {"vault": ["RW5hYmxlZA=="]}, "DecryptConfig": {"Parameters": None}},
            "optsdata": "a2V5",
        },
        "keyunwrapparams": {"dc": None, "annotation": None},
    }
    assert provider.unwrap(vault, [], b"blob", helper, SOON) == b"b"
    assert json.loads(helper.asked) == {
        "op": "keyunwrap",
        "keywrapparams": {"ec": None, "optsdata": None},
        "keyunwrapparams": {"dc": {"Parameters": {}}, "annotation": "YmxvYg=="},
    }


@given(st.binary(max_size=80) | JSON.map(lambda document: json.dumps({"keyunwrapresults": document}).encode()))
def test_any_answer_of_a_provider_is_judged(answer: bytes) -> None:
    """No answer raises anything but an error of ours, which does not quote it."""
    helper: Any = Answering(answer)
    with pytest.raises(BulkheadError) as error:
        provider.unwrap(Provider("vault", ("/p",)), [], b"blob", helper, SOON)

    assert str(error.value).startswith("key provider 'vault' answered")


@given(st.binary(max_size=300))
def test_a_field_there_and_back(data: bytes) -> None:
    """The one field of the gRPC messages is written as protobuf writes it, and any bytes are read or refused."""
    assert provider._unfield(provider._field(data)) == data
    try:
        provider._unfield(data)
    except ValueError:
        return


def test_a_missing_provider_file_is_none(tmp_path: Path) -> None:
    """As in ocicrypt a file that is not there configures nobody; one that is nonsense is a complaint."""
    missing = Tools({"OCICRYPT_KEYPROVIDER_CONFIG": str(tmp_path / "none")}, None)
    (tmp_path / "bad").write_text("{")
    bad = Tools({"OCICRYPT_KEYPROVIDER_CONFIG": str(tmp_path / "bad")}, None)

    assert (missing.providers, missing.complaints) == ({}, [])
    assert bad.complaints == [
        f"key providers: {tmp_path}/bad: not a key provider configuration: expected JSON with key-providers"
    ]


def test_providers_change_at_once(tmp_path: Path) -> None:
    """A layer that is being opened while the file is read anew finds all providers, of before or of now; one that is
    gone by then is named.
    """
    conf = tmp_path / "providers.json"
    conf.write_text(json.dumps({"key-providers": {"a": {"cmd": {"path": "/p"}}}}))
    tools = Tools({"OCICRYPT_KEYPROVIDER_CONFIG": str(conf)}, None)
    states: list[set[str]] = []

    class Watching(Tools):
        """Notes every state that another thread could see."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            states.append(set(self.__dict__.get("providers", {})))

    tools.__class__ = Watching
    tools.reload()
    assert all(state == {"a"} for state in states)
    conf.unlink()
    tools.reload()
    with pytest.raises(InvalidArgument, match="provider:a: no key provider of that name"):
        tools.ask("a", b"", SOON)
