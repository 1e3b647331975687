"""Debian's docker-registry on a loopback port."""

import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.ports import free_port

_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http: {{addr: "{address}"}}
{auth}
"""


@contextmanager
def registry(directory: Path, htpasswd: Path | None = None, auth: str = "") -> Iterator[str]:
    """Run a registry that keeps its data below `directory` and yield its "host:port".

    It asks for the passwords of a htpasswd file, or for what `auth` says below the `auth:` of its configuration.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    if htpasswd:
        auth = f"htpasswd: {{realm: test, path: {htpasswd}}}"
    config = directory / "registry.yml"
    config.write_text(
        _CONFIG.format(data=directory / "data", address=address, auth=f"auth: {{{auth}}}" if auth else "")
    )
    log = (directory / "registry.log").open("wb")
    child = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=os.environ | {"OTEL_TRACES_EXPORTER": "none"},
    )
    try:
        _wait(address, child)
        yield address
    finally:
        child.terminate()
        child.wait(60)
        log.close()


def _wait(address: str, child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert child.poll() is None, "docker-registry ended at its start"
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            connection.request("GET", "/v2/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    raise AssertionError("docker-registry does not answer")
