"""Pulls: what arrives whole is listed, what does not leaves an error that names host, reference and cause."""

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from bulkhead import courtesy
from bulkhead.config.model import Bulkhead, Registry
from bulkhead.errors import (
    BulkheadError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from image_svc.oci import media
from image_svc.patience import Patience
from image_svc.pulling.movers import AT_ONCE, moving
from image_svc.pulling.unpacking import Unpacking
from image_svc.registry.connections import READ_TIMEOUT
from image_svc.store import Layer as LayerRecord
from image_svc.unpack.protocol import DiskFull
from support.fake_registry import FakeRegistry, Handler, Rule
from support.image_node import IMPATIENT, Node
from support.images import Image, Layer, digest

Make = Callable[..., Node]


def test_pull_and_list(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A pulled image is listed with its names, its id is the configuration's digest, its layers lie in order."""
    manifest = registry.push("app", "1", image)
    name = f"{registry.address}/app:1"

    image_id = node.pull(name)

    (found,) = node.catalogue.images()
    assert image_id == found.id == digest(image.blobs()[0])
    assert found.repo_tags == (name,)
    assert found.repo_digests == (f"{registry.address}/app@{manifest}",)
    assert found.user == "1000:1000"
    assert found.size == sum(map(len, image.blobs()[1])) + len(image.blobs()[0]) + len(image.manifest())
    assert [each.name for each in node.store.chain(found.chain_id) or ()] == [1, 2, 3]
    assert node.unpack.trees == {"1": ["etc", "etc/motd"], "2": ["bin/true"], "3": ["etc", "etc/motd"]}
    assert [call for call in node.unpack.calls if call[0] == "settle"] == [
        ("settle", "1", "2", "3"),
    ]
    assert list(node.content.partials()) == []


def test_repeated_blob_is_fetched_once(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A layer that an image holds twice is downloaded once."""
    registry.push("app", "1", image)

    node.pull(f"{registry.address}/app:1")

    blob = digest(image.blobs()[1][0])
    assert len(registry.asked(f"/blobs/{blob}")) == 1


def test_second_pull_asks_for_the_manifest_only(node: Node, registry: FakeRegistry, image: Image) -> None:
    """What is here is not fetched again, but the registry is asked whether the name still means it."""
    registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    registry.seen.clear()

    node.pull(f"{registry.address}/app:1")

    assert [(each.method, each.path) for each in registry.seen] == [("HEAD", "/v2/app/manifests/1")]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("family", ["oci", "docker"])
def test_families_and_compressions(
    node: Node, registry: FakeRegistry, image: Image, family: str, compression: str
) -> None:
    """Both manifest families and every compression give the same image."""
    image = replace(image, family=family, compression=compression)
    registry.push("app", "1", image)

    assert node.pull(f"{registry.address}/app:1") == digest(image.blobs()[0])
    assert node.unpack.trees["2"] == ["bin/true"]


def test_calls_go_first(node: Node, registry: FakeRegistry, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a brief call is under way a pull asks for nothing, and goes on once it has ended."""
    monkeypatch.setattr(courtesy, "_LONGEST", 60.0)
    monkeypatch.setattr(courtesy, "_BRIEF", 60.0)
    registry.push("app", "1", image)
    registry.seen.clear()
    with ThreadPoolExecutor() as pool:
        call = courtesy.calls.begin()
        try:
            pull = pool.submit(node.pull, f"{registry.address}/app:1")
            time.sleep(0.1)
            asked = list(registry.seen)
        finally:
            courtesy.calls.end(call)

        assert not asked
        assert pull.result(60) == digest(image.blobs()[0])


def test_moved_tag(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A tag that moves leaves the older image with its digest name alone."""
    name = f"{registry.address}/app:1"
    registry.push("app", "1", image)
    older = node.pull(name)
    registry.push("app", "1", replace(image, config={"User": "www"}))

    newer = node.pull(name)

    tags = {found.id: found.repo_tags for found in node.catalogue.images()}
    assert tags == {older: (), newer: (name,)}


def test_index_chooses_the_platform(node: Node, registry: FakeRegistry, image: Image) -> None:
    """From an index the entry for this machine is taken; its digest name is the index's."""
    foreign = registry.push("app", "arm", replace(image, architecture="arm64"))
    own = registry.push("app", "own", image)
    entries = [
        {"mediaType": media.OCI_MANIFEST, "digest": each, "size": len(registry.manifests[f"app/manifests/{each}"][0])}
        | {"platform": {"os": "linux", "architecture": architecture}}
        for each, architecture in ((foreign, "arm64"), (own, "amd64"))
    ]
    index = registry.push_manifest("app", "1", {"schemaVersion": 2, "manifests": entries}, media.OCI_INDEX)

    assert node.pull(f"{registry.address}/app@{index}") == digest(image.blobs()[0])
    (found,) = node.catalogue.images()
    assert found.repo_digests == (f"{registry.address}/app@{index}",)
    assert set(found.manifests.values()) == {own}


def test_index_without_this_platform(node: Node, registry: FakeRegistry, image: Image) -> None:
    """The message names this platform and those that are offered."""
    entry = {"mediaType": media.OCI_MANIFEST, "digest": digest(b"x"), "size": 1}
    entry["platform"] = {"os": "linux", "architecture": "s390x"}
    registry.push_manifest("app", "1", {"schemaVersion": 2, "manifests": [entry]}, media.OCI_INDEX)

    with pytest.raises(NotFound, match=r"linux/amd64.*linux/s390x"):
        node.pull(f"{registry.address}/app:1")


def status(code: int, **headers: str) -> Rule:
    """Return a rule that answers with an error."""
    return lambda handler: handler.reply(code, b'{"errors":[{"code":"X","message":"as told"}]}', **headers)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (429, ResourceExhausted),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_status_codes(
    node: Node, registry: FakeRegistry, image: Image, code: int, error: type[BulkheadError], part: str
) -> None:
    """Each HTTP status becomes its gRPC code, with host, reference and the registry's words; nothing is listed."""
    registry.push("app", "1", image)
    registry.on(part, status(code))

    with pytest.raises(error) as caught:
        node.pull(f"{registry.address}/app:1")

    text = str(caught.value)
    assert registry.address in text
    assert "/app" in text
    assert str(code) in text
    step = ": configuration: " if part == "/blobs/" else "/app:1: resolve: "
    assert f"{step}http://{registry.address} answered {code}" in text
    assert (error is Unavailable) == text.startswith("RegistryUnavailable: ")
    assert node.catalogue.images() == []


def test_nobody_there(node: Node) -> None:
    """A port that nobody listens on is RegistryUnavailable."""
    with pytest.raises(Unavailable, match=r"RegistryUnavailable: .*127\.0\.0\.1:1/app:1.*refused"):
        node.pull("127.0.0.1:1/app:1")


def test_hanging_registry(node: Node, registry: FakeRegistry) -> None:
    """A registry that never answers is DeadlineExceeded, not for ever."""
    over = threading.Event()

    def hang(handler: Handler) -> bool:
        over.wait(60)
        return handler.break_off()

    registry.on("/manifests/", hang)

    with pytest.raises(DeadlineExceeded, match=r"app:1"):
        node.pull(f"{registry.address}/app:1", seconds=0.3)
    over.set()


def test_pulls_that_wait_for_a_registry_hold_up_no_other(node: Node, registry: FakeRegistry, image: Image) -> None:
    """However many pulls a registry keeps waiting for a manifest, another one gets its own."""
    over = threading.Event()

    def trickle(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 404 Not Found\r\nX-Long: ")
        while not over.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()
        return handler.break_off()

    registry.push("app", "1", image)
    registry.on("/slow/manifests/", trickle)
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(node.pull, f"{registry.address}/slow:1", seconds=60.0) for _ in range(4)]
        while len(registry.asked("/slow/manifests/")) < 2:
            time.sleep(0.01)
        node.pull(f"{registry.address}/app:1")
        assert not any(each.done() for each in slow)
        over.set()
        for each in slow:
            with pytest.raises(BulkheadError):
                each.result(timeout=60)


def test_trickled_head_ends_with_the_deadline(node: Node, registry: FakeRegistry) -> None:
    """A registry that sends its answer's head byte by byte holds a pull no longer than its deadline."""
    over = threading.Event()

    def trickle(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not over.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()
        return handler.break_off()

    registry.on("/v2/", trickle)
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded, match="did not finish within"):
        node.pull(f"{registry.address}/app:1", seconds=0.5)
    over.set()
    assert time.monotonic() - began < 30


def test_retry_after(node: Node, registry: FakeRegistry, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 429 is waited out for as long as the registry says."""
    registry.push("app", "1", image)
    registry.once("/manifests/1", status(429, Retry_After="1"))
    slept: list[float] = []
    monkeypatch.setattr(Patience, "sleep", lambda self, seconds: slept.append(seconds))

    node.pull(f"{registry.address}/app:1")

    assert slept == [1.0]
    assert len(registry.asked("/manifests/1")) > 1


def test_retry_after_too_long(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A registry that wants to be left alone for longer than a pull waits ends the pull at once."""
    registry.push("app", "1", image)
    registry.on("/manifests/1", status(429, Retry_After="3600"))

    with pytest.raises(ResourceExhausted):
        node.pull(f"{registry.address}/app:1")
    assert len(registry.asked("/manifests/1")) == 1


def big_image() -> Image:
    """Return an image whose layer takes several reads."""
    return Image([Layer().file("data", bytes(range(256)) * 4096).tar()], compression="plain")


def test_broken_connection_is_taken_up(node: Node, registry: FakeRegistry) -> None:
    """A blob that breaks off is continued from the byte where it broke."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]

    def half(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        handler.wfile.write(blob[: len(blob) // 2])
        return handler.break_off()

    registry.once(digest(blob), half)

    node.pull(f"{registry.address}/app:1")

    first, second = registry.asked(digest(blob))
    assert "range" not in first.headers
    start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= len(blob) // 2


def test_server_without_ranges(node: Node, registry: FakeRegistry) -> None:
    """A server that answers a Range with the whole blob is read from the right byte all the same."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    node.content.partial(digest(blob)).write_bytes(blob[:100_000])
    registry.on(digest(blob), lambda handler: handler.reply(200, blob))

    node.pull(f"{registry.address}/app:1")


def test_partial_survives_a_restart(make_node: Make, registry: FakeRegistry) -> None:
    """After a restart a pull asks only for what is missing."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    node = make_node()
    registry.on(digest(blob), status(404))
    with pytest.raises(NotFound):
        node.pull(f"{registry.address}/app:1")
    node.content.partial(digest(blob)).write_bytes(blob[:300_000])
    registry.rules.clear()
    registry.seen.clear()

    make_node().pull(f"{registry.address}/app:1")

    (asked,) = registry.asked(digest(blob))
    assert asked.headers["range"] == "bytes=300000-"


def test_rotten_partial_is_fetched_anew(node: Node, registry: FakeRegistry) -> None:
    """A partial file that a power loss spoiled costs one more download, not the pull."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    node.content.partial(digest(blob)).write_bytes(b"\0" * 300_000)

    node.pull(f"{registry.address}/app:1")

    assert [each.headers.get("range") for each in registry.asked(digest(blob))] == ["bytes=300000-", None]


def test_corrupt_blob(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A blob with another content is DataLoss with both digests and the host; nothing of it stays."""
    registry.push("app", "1", image)
    blob = image.blobs()[1][1]
    spoiled = blob[:-20] + bytes(20)
    registry.on(digest(blob), lambda handler: handler.reply(200, spoiled))

    with pytest.raises(DataLoss) as caught:
        node.pull(f"{registry.address}/app:1")

    assert digest(blob) in str(caught.value)
    assert digest(spoiled) in str(caught.value)
    assert registry.address in str(caught.value)
    assert node.catalogue.images() == []
    assert not node.content.has(digest(blob))
    assert not node.content.partial(digest(blob)).exists()


def test_corrupt_mirror_is_left_for_the_next_host(make_node: Make, registry: FakeRegistry, image: Image) -> None:
    """A mirror that serves a spoiled blob does not stop the pull: the next host has a sound one."""
    registry.push("app", "1", image)
    blob = image.blobs()[1][1]
    # One server, told apart by the path: a mirror below /bad, the registry itself below /v2.
    registry.on("/bad/", lambda handler: _as_mirror(registry, handler, {digest(blob): bytes(len(blob))}))
    # Addresses differ, so that the second can be asked after the first was found out.
    port = registry.address.rpartition(":")[2]
    mirrors: dict[str, tuple[str, ...]] = {
        "q.example": (f"http://localhost:{port}/bad", f"http://{registry.address}/v2")
    }
    node = make_node(registry=Registry(config_path=(), mirrors=mirrors))

    node.pull("q.example/app:1")

    assert node.unpack.trees["2"] == ["bin/true"]
    assert [each.path.partition("/app")[0] for each in registry.asked(digest(blob))] == ["/bad", "/v2"]


def _as_mirror(registry: FakeRegistry, handler: Handler, spoiled: dict[str, bytes]) -> bool:
    handler.path = handler.path.replace("/bad/", "/v2/")
    name = handler.path.partition("?")[0].rpartition("/")[2]
    if name in spoiled:
        return handler.reply(200, spoiled[name])
    registry.serve(handler)
    return True


def lying(image: Image, difference: int) -> bytes:
    """Return a manifest that gives its last layer another size."""
    body = json.loads(image.manifest())
    body["layers"][-1]["size"] += difference
    return json.dumps(body).encode()


@pytest.mark.parametrize("difference", [-7, 7])
def test_lying_size(node: Node, registry: FakeRegistry, difference: int) -> None:
    """A manifest that lies about a size is DataLoss that names both sizes."""
    image = big_image()
    registry.push("app", "1", image)
    registry.push_manifest("app", "1", lying(image, difference), media.OCI_MANIFEST)
    size = len(image.blobs()[1][0])

    with pytest.raises(DataLoss, match=rf"{size} bytes, the manifest says {size + difference}"):
        node.pull(f"{registry.address}/app:1")
    assert node.catalogue.images() == []


def chunked(handler: Handler, data: bytes) -> bool:
    """Send a body without saying its length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(data), 50_000):
        part = data[start : start + 50_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")
    return True


@pytest.mark.parametrize("change", [lambda data: data + b"more", lambda data: data[:-4]])
def test_lying_size_without_a_length(node: Node, registry: FakeRegistry, change: Callable[[bytes], bytes]) -> None:
    """A body of the wrong length is DataLoss also where the registry does not announce it."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    registry.on(digest(blob), lambda handler: chunked(handler, change(blob)))

    with pytest.raises(DataLoss, match="the manifest says"):
        node.pull(f"{registry.address}/app:1")


def test_what_the_disk_did_not_take(
    node: Node, registry: FakeRegistry, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that failed in the background, of which the disk speaks but once, is no image; all is fetched anew."""
    registry.push("app", "1", image)
    failures, sync = [OSError(errno.EIO, "Input/output error")], node.content.sync

    def sometimes() -> None:
        if failures:
            raise failures.pop()
        sync()

    monkeypatch.setattr(node.content, "sync", sometimes)
    with pytest.raises(Internal, match="Input/output error"):
        node.pull(f"{registry.address}/app:1")
    assert failures == []
    assert node.catalogue.images() == []
    assert list(node.content.digests()) == []

    node.pull(f"{registry.address}/app:1")

    for blob in image.blobs()[1]:
        assert len(registry.asked(f"/blobs/{digest(blob)}")) == 2
        assert node.content.has(digest(blob))


def test_no_room_for_one_more_file(
    node: Node, registry: FakeRegistry, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that has bytes left and no file is a full one."""
    registry.push("app", "1", image)

    def full(digest: str, size: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(node.content, "open", full)
    with pytest.raises(DiskFull, match="No space left on device"):
        node.pull(f"{registry.address}/app:1")


def test_a_disk_that_hangs_under_others(make_node: Make, registry: FakeRegistry, image: Image) -> None:
    """A download that comes to no turn of writing ends with its time, and its thread as well."""
    node = make_node(bulkhead=Bulkhead(pull_timeout=0.3))
    registry.push("app", "1", image)
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(moving(Patience(5.0, "another"), "another"))
        with pytest.raises(DeadlineExceeded):
            node.pull(f"{registry.address}/app:1")
        until = time.monotonic() + 60
        while node.layer_puller.jobs.keys() and time.monotonic() < until:
            time.sleep(0.01)
        assert node.layer_puller.jobs.keys() == set()


def test_stalled_download(make_node: Make, registry: FakeRegistry) -> None:
    """A trickle below the minimum rate is a stall, told as such."""
    node = make_node(retry=IMPATIENT)
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]

    def trickle(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        for _ in range(15):
            handler.wfile.write(b"\0")
            time.sleep(0.05)
        return handler.break_off()

    registry.on(digest(blob), trickle)

    with pytest.raises(DeadlineExceeded, match=r"stalled: \d+ B/s.*minimum 1024"):
        node.pull(f"{registry.address}/app:1")


def test_a_download_that_turns_slow(node: Node, registry: FakeRegistry) -> None:
    """Bytes are taken in as they come also after a fast beginning, and the connection serves the next blob at once."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    turns = len(blob) // 2, len(blob) - 5000, len(blob) - 1

    def slow_down(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        for begin, end in itertools.pairwise((0, *turns, len(blob))):
            handler.wfile.write(blob[begin:end])
            time.sleep(0.2)
        return True

    registry.on(digest(blob), slow_down)
    began = time.monotonic()

    node.pull(f"{registry.address}/app:1")

    assert time.monotonic() - began < READ_TIMEOUT / 2


def test_cancelled_pull_stops_the_download(node: Node, registry: FakeRegistry) -> None:
    """Whoever hangs up ends the pull at once; the bytes so far are kept for the next one."""
    image = big_image()
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    began, over = threading.Event(), threading.Event()

    def hang(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        handler.wfile.write(blob[:400_000])
        began.set()
        over.wait(30)
        return handler.break_off()

    registry.on(digest(blob), hang)
    patience = Patience(60.0, "pull")

    def hang_up() -> None:
        began.wait(30)
        # What the registry has sent is kept once it was read from the socket.
        until = time.monotonic() + 60
        while not node.content.partial(digest(blob)).stat().st_size and time.monotonic() < until:
            time.sleep(0.005)
        patience.cancel()

    threading.Thread(target=hang_up).start()

    started = time.monotonic()
    with pytest.raises(Cancelled):
        node.puller.pull(f"{registry.address}/app:1", None, patience)

    assert time.monotonic() - started < 25
    deadline = time.monotonic() + 60
    while node.layer_puller.jobs.keys() and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    assert node.layer_puller.jobs.keys() == set()
    assert node.content.partial(digest(blob)).stat().st_size > 0
    assert node.catalogue.images() == []


def test_pulls_at_once_share_downloads(node: Node, registry: FakeRegistry, image: Image) -> None:
    """Two pulls of one image at once fetch each blob once; one that gives up leaves the other's work going."""
    registry.push("app", "1", image)
    blob = digest(image.blobs()[1][1])
    gate = threading.Event()
    registry.on(blob, lambda handler: not gate.wait(30))
    first = Patience(60.0, "first")
    results: list[object] = []

    def pull(patience: Patience) -> None:
        try:
            results.append(node.puller.pull(f"{registry.address}/app:1", None, patience))
        except BulkheadError as error:
            results.append(type(error))

    threads = [threading.Thread(target=pull, args=(each,)) for each in (first, Patience(60.0, "second"))]
    for thread in threads:
        thread.start()
        while not registry.asked(blob):
            time.sleep(0.01)
    time.sleep(0.2)
    first.cancel()
    threads[0].join(60)
    gate.set()
    threads[1].join(60)

    assert results == [Cancelled, digest(image.blobs()[0])]
    assert len(registry.asked(blob)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, "schema 1"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": "application/x-unheard"}, "x-unheard"),
        ({"config": None}, "config"),
        ({"config": {"mediaType": "application/vnd.helm", "size": 2, "digest": digest(b"{}")}}, "artifact"),
        ({"layers": [{"mediaType": "a/b", "size": 1, "digest": digest(b"")}]}, "unknown layer media type 'a/b'"),
        (
            {"layers": [{"mediaType": next(iter(media._FOREIGN)) + "diff.tar", "size": 1, "digest": digest(b"")}]},
            "foreign",
        ),
        ({"layers": [{"mediaType": "a/b", "size": -1, "digest": digest(b"")}]}, "size"),
        ({"layers": [{"mediaType": "a/b", "size": 1, "digest": "sha256:../../x"}]}, "digest"),
        ({"manifests": []}, "at once"),
    ],
)
def test_manifests_that_cannot_be_run(
    node: Node, registry: FakeRegistry, image: Image, change: dict[str, object], words: str
) -> None:
    """What cannot be run is refused by name before a layer is fetched."""
    registry.push("app", "1", image)
    body = json.loads(image.manifest()) | change
    registry.push_manifest("app", "1", body, str(body.get("mediaType", media.OCI_MANIFEST)))

    with pytest.raises(FailedPrecondition, match=words):
        node.pull(f"{registry.address}/app:1")
    assert registry.asked(digest(image.blobs()[1][0])) == []


def test_manifest_limit(node: Node, registry: FakeRegistry) -> None:
    """A manifest beyond 4 MiB is refused."""
    registry.push_manifest("app", "1", b"{" + b" " * (5 << 20) + b"}", media.OCI_MANIFEST)

    with pytest.raises(FailedPrecondition, match="4194304 bytes allowed"):
        node.pull(f"{registry.address}/app:1")


def test_wrong_diff_id(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A layer whose tar is not what the configuration says is DataLoss and never becomes a layer."""
    config = json.loads(image.blobs()[0])
    config["rootfs"]["diff_ids"][1] = digest(b"another")
    data = json.dumps(config).encode()
    body = json.loads(image.manifest())
    body["config"] |= {"digest": digest(data), "size": len(data)}
    registry.push("app", "1", image)
    registry.blobs[digest(data)] = data
    registry.push_manifest("app", "1", body, media.OCI_MANIFEST)

    with pytest.raises(DataLoss, match=digest(b"another")):
        node.pull(f"{registry.address}/app:1")
    deadline = time.monotonic() + 60
    while node.unpack.trees and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.unpack.trees == {}


def test_tag_answers_with_another_digest(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A registry that gives other content for a digest is found out."""
    manifest = registry.push("app", "1", image)
    other = replace(image, config={}).manifest()
    registry.on(manifest, lambda handler: handler.reply(200, other, Content_Type=media.OCI_MANIFEST))

    with pytest.raises(DataLoss, match=digest(other)):
        node.pull(f"{registry.address}/app@{manifest}")


def test_registry_without_head(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A registry whose HEAD says nothing is asked with GET."""
    registry.push("app", "1", image)
    registry.on("/manifests/1", lambda handler: handler.command == "HEAD" and handler.reply(200))

    node.pull(f"{registry.address}/app:1")


def test_many_layers(node: Node, registry: FakeRegistry) -> None:
    """An image of 127 layers is pulled."""
    layers = [Layer().file(f"f{n}", str(n)).tar() for n in range(127)]
    registry.push("app", "1", Image(layers))

    node.pull(f"{registry.address}/app:1", seconds=30.0)

    (found,) = node.catalogue.images()
    assert len(node.store.chain(found.chain_id) or ()) == 127


def test_the_largest_layer_is_begun_first(node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are begun by the size of their blobs, wherever they lie in the image."""
    sizes = {10: "small", 90_000: "large", 20_000: "medium"}
    image = Image([Layer().file(name, os.urandom(size)).tar() for size, name in sizes.items()])
    registry.push("app", "1", image)
    begun: list[str] = []
    unpacking = node.layer_puller.unpacking

    def note(layer: LayerRecord, *rest: Any) -> Unpacking:
        begun.append(layer.digest)
        return unpacking(layer, *rest)

    monkeypatch.setattr(node.layer_puller, "unpacking", note)
    node.pull(f"{registry.address}/app:1")

    small, large, medium = map(digest, image.blobs()[1])
    assert begun == [large, medium, small]
    (found,) = node.catalogue.images()
    names = node.store.chain(found.chain_id) or ()
    assert [node.unpack.trees[str(each.name)] for each in names] == [["small"], ["large"], ["medium"]]


def test_spoiled_manifest_on_disk(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A manifest that rotted on disk is fetched again."""
    manifest = registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    node.content.path(manifest).write_bytes(b"rot")

    node.pull(f"{registry.address}/app:1")

    assert node.content.read(manifest) == image.manifest()


def test_encrypted_without_decryption(make_node: Make, registry: FakeRegistry, image: Image) -> None:
    """Where decryption is switched off an encrypted image is refused by name."""
    body = json.loads(image.manifest())
    body["layers"][1]["mediaType"] += "+encrypted"
    registry.push("app", "1", image)
    registry.push_manifest("app", "1", body, media.OCI_MANIFEST)

    with pytest.raises(FailedPrecondition, match=r"encrypted and image_decryption\.key_model is empty"):
        make_node(key_model="").pull(f"{registry.address}/app:1")
