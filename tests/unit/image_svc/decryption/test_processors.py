"""Stream processors: which steps a layer takes, and how a program is started, judged and ended."""

import os
import threading
import time
from pathlib import Path

import pytest

from bulkhead.config.model import Config, StreamProcessor
from bulkhead.errors import DeadlineExceeded, FailedPrecondition
from image_svc.decryption import processors
from image_svc.decryption.processors import Routes, Step, process
from image_svc.oci import media
from image_svc.patience import Patience
from image_svc.store import Layer

TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = f"{TAR}+gzip"
WASM = "application/vnd.example.layer.v1+lz"
DECODER = StreamProcessor("d", (f"{GZIP}+encrypted",), GZIP, "/usr/bin/ctd-decoder")


def routes(*entries: StreamProcessor) -> Routes:
    return Routes(Config(stream_processors=entries))


def test_without_entries_encrypted_layers_are_the_decryptors() -> None:
    """Plain layers take no step, encrypted ones of every kind one: the decryptor."""
    found = routes()

    assert found.of(GZIP) == found.of("application/vnd.docker.image.rootfs.diff.tar.gzip") == ()
    for kind in (f"{TAR}+encrypted", f"{TAR}+zstd+encrypted", f"{media._FOREIGN[1]}v1.tar+gzip+encrypted"):
        assert found.of(kind) == (Step(kind),)


def test_ctd_decoder_is_the_decryptor_and_its_result_is_looked_up_again() -> None:
    """An entry of ctd-decoder is no program; what it returns may be a program's to take further."""
    gunzip = StreamProcessor("z", (GZIP,), TAR, "/bin/gunzip")

    assert routes(DECODER).of(f"{GZIP}+encrypted") == (Step(f"{GZIP}+encrypted"),)
    assert routes(DECODER, gunzip).of(f"{GZIP}+encrypted") == (Step(f"{GZIP}+encrypted"), Step(GZIP, gunzip))


def test_a_type_that_a_program_alone_accepts() -> None:
    """A media type that nobody knows is let through once a program takes it, and refused if it ends in nothing."""
    kind = "application/vnd.example.layer.v1+once"
    with pytest.raises(FailedPrecondition, match="unknown layer media type"):
        media.check_layer(kind, "x")
    made = routes(StreamProcessor("x", (kind,), TAR, "/x"), StreamProcessor("y", (WASM,), "text/plain", "/y"))

    media.check_layer(kind, "x")
    assert [step.accepts for step in made.of(kind)] == [kind]
    with pytest.raises(FailedPrecondition, match="make 'text/plain' of it"):
        made.of(WASM)


def test_a_circle_is_refused() -> None:
    """Two programs that feed each other are an error, not a hang."""
    with pytest.raises(FailedPrecondition, match="in a row"):
        routes(StreamProcessor("a", (GZIP,), TAR, "/a"), StreamProcessor("b", (TAR,), GZIP, "/b")).of(GZIP)


def test_foreign_layers() -> None:
    """Foreign layers are refused, but for encrypted ones that lie in the registry itself."""
    kind = f"{media._FOREIGN[1]}v1.tar+gzip"
    media.check_layer(f"{kind}+encrypted", "x")
    for refused, elsewhere in ((kind, False), (kind, True), (f"{kind}+encrypted", True)):
        with pytest.raises(FailedPrecondition, match="not fetched"):
            media.check_layer(refused, "x", elsewhere=elsewhere)


class Run:
    """A shell script as a processor."""

    def __init__(self, script: str, *, ident: str = "own", payload: bool = False, seconds: float = 20) -> None:
        self.patience = Patience(seconds, "layer")
        entry = StreamProcessor(ident, (WASM,), TAR, "sh", ("-c", script), ("OWN=mine",))
        self.of = (Step(WASM, entry), Layer("sha256:" + "a" * 64, WASM, 5, "", "", {"n": "v"}))
        self.payload = payload

    def __call__(self, data: bytes = b"") -> bytes:
        source, feed = os.pipe()

        def write() -> None:
            os.write(feed, data)
            os.close(feed)

        threading.Thread(target=write).start()
        try:
            with process(*self.of, source, payload=self.payload) as made:
                with os.fdopen(made.take(), "rb") as reader:
                    out = reader.read()
                made.finish(self.patience)
        finally:
            os.close(source)
        return out


def test_a_program_between_pipes() -> None:
    """It gets the blob, our environment, its own and the media type; without a payload descriptor 3 is closed."""
    script = 'cat; echo "$OWN $STREAM_PROCESSOR_MEDIATYPE ${PATH:+path}"; test -e /proc/self/fd/3 || echo none'

    assert Run(script)(b"blob ").decode() == f"blob mine {WASM} path\nnone\n"


def test_the_payload_at_descriptor_3() -> None:
    """Ids of imgcrypt get its payload with the layer's descriptor, where decryption is on; others get none."""
    ident = "io.containerd.ocicrypt.decoder.v1.tar.gzip"
    found = Run("cat <&3", ident=ident, payload=True)()

    assert b"io.containerd.ocicrypt.v1.Payload" in found
    assert b'"annotations": {"n": "v"}' in found
    assert Run("test -e /proc/self/fd/3 || echo none", ident=ident)() == b"none\n"
    assert Run("test -e /proc/self/fd/3 || echo none", payload=True)() == b"none\n"


def test_a_failure_is_told_in_its_own_words() -> None:
    """A status other than 0 fails the layer with what the program said, though all of its output came."""
    with pytest.raises(FailedPrecondition, match=r"'own' \(sh\) failed with status 7: no such luck"):
        Run("cat; echo no such luck >&2; exit 7")(b"x")
    with pytest.raises(FailedPrecondition, match="status -15"):
        Run("kill -TERM $$")()


def test_a_program_that_is_not_there() -> None:
    """A missing program is named."""
    run = Run("")
    entry = StreamProcessor("own", (WASM,), TAR, "/does/not/exist")
    run.of = (Step(WASM, entry), run.of[1])
    with pytest.raises(FailedPrecondition, match="cannot be started: /does/not/exist"):
        run()


def test_it_ends_with_the_block(tmp_path: Path) -> None:
    """Whatever the program and its children do, they are gone when the block is left, or soon after their output."""
    run = Run(f"sleep 1000 & echo $! $$ >{tmp_path}/pids; exec sleep 1000")
    source, feed = os.pipe()
    with process(*run.of, source, payload=False):
        while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
            time.sleep(0.01)
    for fd in (source, feed):
        os.close(fd)
    deadline = time.monotonic() + 60
    for pid in (tmp_path / "pids").read_text().split():
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def alive(pid: str) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_may_not_outlive_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that closes its output and stays is killed after a while."""
    monkeypatch.setattr(processors, "_END", 0.2)
    with pytest.raises(DeadlineExceeded, match="was killed"):
        Run("exec >&-; exec sleep 1000")()
