"""The layer socket: who may call, what a caller is told, and that a grant lives as long as its connection."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead import layers, seqpacket
from bulkhead.errors import (
    BulkheadError,
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from bulkhead.proto import keys_pb2
from decryptor import stream
from decryptor.desk import Desk
from decryptor.files import KeyFile
from decryptor.keyring import Keyring
from decryptor.sessions import Sessions
from decryptor.tools import Tools
from support.keeper import TAR_GZIP, contents, digest_of, encrypted, memory

PLAIN = b"layer " * 100_000


@pytest.fixture
def socket(formats: dict[str, bytes], tmp_path: Path) -> Iterator[str]:
    """A served socket; the node has the RSA key."""
    desk = Desk(lambda: Keyring([KeyFile("node.pem", formats["pkcs8.pem"])]), tools=Tools({}, None))
    path = str(tmp_path / "s")
    served = Sessions(path, desk, [])
    yield path
    served.close()


def sealed(socket: str, key: bytes, plain: bytes = PLAIN) -> tuple[keys_pb2.Layer, bytes]:
    request = keys_pb2.EncryptRequest(
        layer=keys_pb2.Layer(digest=digest_of(plain), media_type=TAR_GZIP),
        recipients=[keys_pb2.Recipient(scheme="jwe", key=key)],
    )
    with memory(plain) as source, memory() as sink:
        with layers.encrypt(socket, request, source, sink) as work:
            work.started(10)
            result = work.result(keys_pb2.EncryptResult, 10)
        cipher = contents(sink)
    assert result.media_type == f"{TAR_GZIP}+encrypted"
    return encrypted(result.annotations, cipher), cipher


def opened(socket: str, layer: keys_pb2.Layer, cipher: bytes, grant: str = "") -> keys_pb2.DecryptResult:
    request = keys_pb2.DecryptRequest(use=keys_pb2.Use(grant=grant), layer=layer)
    with memory(cipher) as source, memory() as sink, layers.decrypt(socket, request, source, sink) as work:
        work.started(10)
        return work.result(keys_pb2.DecryptResult, 10)


def test_a_layer_there_and_back(socket: str, formats: dict[str, bytes]) -> None:
    """What the socket encrypted it decrypts, and says digest, size and key."""
    layer, cipher = sealed(socket, formats["public.pem"])
    result = opened(socket, layer, cipher)

    assert (result.digest, result.size, result.opened.scheme) == (digest_of(PLAIN), len(PLAIN), "jwe")


def test_a_wrong_layer_is_data_loss(socket: str, formats: dict[str, bytes]) -> None:
    """A changed byte is told as DataLoss with the layer's digest, after the bytes and before any result."""
    layer, cipher = sealed(socket, formats["public.pem"])
    with pytest.raises(DataLoss, match=layer.digest):
        opened(socket, layer, cipher[:-1] + bytes([cipher[-1] ^ 1]))


def test_other_bytes_than_the_layers_are_not_encrypted(socket: str, formats: dict[str, bytes]) -> None:
    """Bytes that are not what the digest says end without a result."""
    layer = keys_pb2.Layer(digest=digest_of(b"other"), media_type=TAR_GZIP)
    recipients = [keys_pb2.Recipient(scheme="jwe", key=formats["public.pem"])]
    request = keys_pb2.EncryptRequest(layer=layer, recipients=recipients)
    with memory(PLAIN) as source, memory() as sink, layers.encrypt(socket, request, source, sink) as work:
        work.started(10)
        with pytest.raises(FailedPrecondition, match="the bytes to encrypt are"):
            work.result(keys_pb2.EncryptResult, 10)


def test_an_encrypted_layer_is_not_encrypted_again(socket: str, formats: dict[str, bytes]) -> None:
    """As in ocicrypt, an encrypted layer gets recipients, not a second coat."""
    layer, cipher = sealed(socket, formats["public.pem"])
    request = keys_pb2.EncryptRequest(layer=layer, recipients=[keys_pb2.Recipient(scheme="jwe")])
    refused = pytest.raises(FailedPrecondition, match="encrypted already")
    with memory(cipher) as source, memory() as sink, layers.encrypt(socket, request, source, sink) as work, refused:
        work.started(10)


def test_a_refusal_comes_before_a_byte(socket: str, formats: dict[str, bytes]) -> None:
    """Without the key the work does not start."""
    form = formats["ec.jwk"]
    layer, cipher = sealed(socket, form)
    with pytest.raises(FailedPrecondition, match="you are not authorized to use this image"):
        opened(socket, layer, cipher)


def test_a_grant_opens_while_it_is_held(socket: str, formats: dict[str, bytes]) -> None:
    """A key with its password, lent by descriptor, opens layers under its id until the lender hangs up."""
    layer, cipher = sealed(socket, formats["ec.jwk"])
    with memory(formats["ec.jwk"]) as key, memory(b"secret\n") as password, memory(b"junk") as junk:
        grant = layers.Grant(socket, [("mykey.jwk", key, None), ("locked.pem", junk, password)])
        with grant:
            assert [(each.file, each.kind, bool(each.error)) for each in grant.keys] == [
                ("mykey.jwk", "jwk", False),
                ("locked.pem", "", True),
            ]
            assert opened(socket, layer, cipher, grant.id).digest == digest_of(PLAIN)
    deadline = time.monotonic() + 60
    while True:
        try:
            opened(socket, layer, cipher, grant.id)
        except FailedPrecondition as error:
            assert "grant of keys is over" in str(error)
            break
        assert time.monotonic() < deadline


def test_a_grants_password_opens_its_key(socket: str, formats: dict[str, bytes]) -> None:
    """The password that comes with a key is tried on it, out of a pipe as well."""
    read, write = os.pipe()
    os.write(write, b"secret\n")
    os.close(write)
    with memory(formats["encrypted-pkcs8.pem"]) as key, layers.Grant(socket, [("k.pem", key, read)]) as grant:
        assert [each.error for each in grant.keys] == [""]
    os.close(read)


def test_others_are_turned_away(socket: str, monkeypatch: pytest.MonkeyPatch, formats: dict[str, bytes]) -> None:
    """A user who is neither root nor image-svc hands over nothing; image-svc's neither grants nor adds recipients."""
    layer, cipher = sealed(socket, formats["public.pem"])
    monkeypatch.setattr(seqpacket, "peer", lambda _: (1, 65534, 65534))
    with pytest.raises(PermissionDenied, match="user 65534"):
        opened(socket, layer, cipher)


def test_image_svc_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: dict[str, bytes]) -> None:
    """image-svc's user has layers decrypted; it grants no keys and adds no recipients."""
    desk = Desk(lambda: Keyring([KeyFile("node.pem", formats["pkcs8.pem"])]), tools=Tools({}, None))
    path = str(tmp_path / "t")
    served = Sessions(path, desk, [4711])
    monkeypatch.setattr(seqpacket, "peer", lambda _: (1, 4711, 4711))
    layer, cipher = sealed(path, formats["public.pem"])

    assert opened(path, layer, cipher).digest == digest_of(PLAIN)
    with memory(formats["pkcs8.pem"]) as key, pytest.raises(PermissionDenied, match="only root"):
        layers.Grant(path, [("k", key, None)])
    recipients = [keys_pb2.Recipient(scheme="jwe", key=formats["public.pem"])]
    with pytest.raises(PermissionDenied, match="root's"):
        layers.add_recipients(path, keys_pb2.RecipientsRequest(layer=layer, recipients=recipients))
    served.close()


@pytest.mark.parametrize(
    ("message", "count"),
    [
        ({"decrypt": {}}, 0),
        ({"decrypt": {}}, 1),
        ({"decrypt": {}, "encrypt": {}}, 3),
        ({"sing": {}}, 0),
        ({}, 0),
        ({"grant": {"keys": 5}}, 0),
        ({"grant": []}, 0),
        ({"grant": {"keys": [{"name": "k", "password": True}]}}, 1),
        ({"grant": {"keys": []}}, 2),
        ({"recipients": {}}, 0),
    ],
)
def test_malformed_requests_are_answered(socket: str, message: dict[str, object], count: int) -> None:
    """Whatever is wrong with a request, it is told so, and the socket serves on."""
    connection = seqpacket.connect(socket)
    with memory() as fd, connection:
        seqpacket.send(connection, message, [fd] * count)
        answer, _ = seqpacket.receive(connection)

    assert answer is not None
    assert answer["error"]["code"] == InvalidArgument.code


def test_a_request_file_that_is_none(socket: str) -> None:
    """Bytes that are no message are an error, and so is a message that is too long."""
    for data in (b"\xff" * 100, b"x" * (layers.MESSAGE_LIMIT + 1)):
        connection = seqpacket.connect(socket)
        with memory(data) as request, memory() as other, connection:
            seqpacket.send(connection, {"decrypt": {}}, [request, other, other])
            answer, _ = seqpacket.receive(connection)
        assert answer is not None
        assert answer["error"]["code"] == InvalidArgument.code


def test_a_decryptor_that_dies_is_unavailable(tmp_path: Path) -> None:
    """A connection that ends without a verdict is no verdict."""
    listener = seqpacket.listen(str(tmp_path / "dead"))
    with memory() as fd:
        work = layers.decrypt(str(tmp_path / "dead"), keys_pb2.DecryptRequest(), fd, fd)
        server, _ = listener.accept()
        _, fds = seqpacket.receive(server)
        for each in fds:
            os.close(each)
        seqpacket.send(server, {"started": {}})
        work.started(30)
        server.close()
        with work, pytest.raises(Unavailable, match="ended in the middle of a layer"):
            work.result(keys_pb2.DecryptResult, 30)
    listener.close()


def test_many_at_once(socket: str, formats: dict[str, bytes]) -> None:
    """Eight layers side by side come out right."""
    import threading

    layer, cipher = sealed(socket, formats["public.pem"])
    found: list[str] = []
    work = [threading.Thread(target=lambda: found.append(opened(socket, layer, cipher).digest)) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(60)

    assert found == [digest_of(PLAIN)] * 8


def test_hanging_up_frees_the_place(socket: str, formats: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that leaves in the middle ends the work there, not after the time allowed."""
    layer, _ = sealed(socket, formats["public.pem"])
    ended: list[BaseException] = []
    original = stream.decrypt

    def watched(*arguments: object, **options: object) -> tuple[str, int]:
        try:
            return original(*arguments, **options)  # type: ignore[arg-type]
        except BulkheadError as error:
            ended.append(error)
            raise

    monkeypatch.setattr(stream, "decrypt", watched)
    read, write = os.pipe()
    with memory() as sink:
        work = layers.decrypt(socket, keys_pb2.DecryptRequest(layer=layer), read, sink)
        work.started(30)
        work.close()
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(read)
    os.close(write)

    assert [type(error) for error in ended] == [Cancelled]


def test_strangers_take_no_room(formats: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that may not call, however many connections they hold open, keep nobody from having layers opened."""
    monkeypatch.setattr("decryptor.sessions.CONNECTIONS", 4)
    desk = Desk(lambda: Keyring([KeyFile("node.pem", formats["pkcs8.pem"])]), tools=Tools({}, None))
    path = str(tmp_path / "s")
    served = Sessions(path, desk, [])
    with monkeypatch.context() as strange:
        strange.setattr(seqpacket, "peer", lambda connection: (1, 54321, 54321))
        silent = [seqpacket.connect(path) for _ in range(20)]
        with pytest.raises((PermissionDenied, Unavailable)):
            sealed(path, formats["public.pem"])
    layer, cipher = sealed(path, formats["public.pem"])

    assert opened(path, layer, cipher).digest == digest_of(PLAIN)
    # More than there is room for: what ran before may not have left its place yet.
    busy = [seqpacket.connect(path) for _ in range(7)]
    with pytest.raises(ResourceExhausted, match="4 layers"):
        opened(path, layer, cipher)
    for connection in (*silent, *busy):
        connection.close()
    served.close()


@pytest.mark.parametrize("alive", ["1", -1, 0.001, 1e9, True, None, []])
def test_signs_of_life_are_asked_for_in_seconds(socket: str, formats: dict[str, bytes], alive: object) -> None:
    """A request for signs that is no number of seconds within bounds is refused by name."""
    layer, cipher = sealed(socket, formats["public.pem"])
    request = layers.dump(keys_pb2.DecryptRequest(layer=layer))
    with seqpacket.connect(socket) as connection, memory(cipher) as source, memory() as sink:
        seqpacket.send(connection, {"decrypt": {"alive": alive}}, (request, source, sink))
        answer, _ = seqpacket.receive(connection)
    os.close(request)

    assert answer is not None
    assert "alive is to be 0.01 to 3600 seconds" in answer["error"]["message"]


def test_the_result_is_found_behind_signs_of_life(socket: str, formats: dict[str, bytes]) -> None:
    """A caller that looks for the result alone finds it, however many signs came before."""
    layer, cipher = sealed(socket, formats["public.pem"])
    read, write = os.pipe()
    with memory() as sink, layers.decrypt(socket, keys_pb2.DecryptRequest(layer=layer), read, sink, alive=0.02) as work:
        work.started(30)
        time.sleep(0.2)
        os.write(write, cipher)
        os.close(write)

        assert work.result(keys_pb2.DecryptResult, 30).digest == digest_of(PLAIN)
    os.close(read)
