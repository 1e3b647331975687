"""How each kind of made thing is removed: the ledger calls these, at a stop, after a failure and at start-up."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bulkhead import metrics, paths
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from bulkhead.proto import shim_pb2
from sandbox_svc import cgroup, netns, process, trees
from sandbox_svc.cni import AddResult, Attachment, Manager
from sandbox_svc.images import Images
from sandbox_svc.ledger import Undo
from sandbox_svc.nri_exec import Chain, end
from sandbox_svc.store.database import Database, Entry
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import Process, ShimBinding, shim_of
from sandbox_svc.task import foreign, orphans
from sandbox_svc.task.link import Link

logger = logging.getLogger(__name__)

#: Failed DELs of one pod after which its network is written off: a pod must not stay Terminating for ever because a
#: plugin is gone. What is left is named in the log and counted.
NETWORK_ATTEMPTS = 5
#: What goes with a process: its task, and exec plugins' knowledge of it.
TASK = ("task", end.KIND)
#: What tells plugins, which shall hear of it once.
ONCE = (end.KIND,)
#: Seconds from SIGKILL to the exit of a process that is not stuck in the kernel.
KILL_TIMEOUT = 10.0


def directory(path: Path) -> Entry:
    """Return the entry of a directory tree."""
    return Entry("directory", {"path": str(path)})


def mount(path: Path) -> Entry:
    """Return the entry of a mount and its mount point."""
    return Entry("mount", {"path": str(path)})


def pinned_netns(path: Path) -> Entry:
    """Return the entry of a pod's network namespace."""
    return Entry("netns", {"path": str(path)})


def network(handler: str, attachment: Attachment, result: AddResult) -> Entry:
    """Return the entry of a pod's addresses; result is a plan before ADD and what ADD did after it."""
    return Entry("cni", {"handler": handler, "attachment": attachment.to_json(), "result": result.to_json()})


def snapshot(key: str) -> Entry:
    """Return the entry of a snapshot in image-svc."""
    return Entry("snapshot", {"key": key})


def shim(binding: ShimBinding) -> Entry:
    """Return the entry of a pod's shim."""
    return Entry("shim", {"shim": asdict(binding)})


def task(ident: str, binding: ShimBinding, cgroups_path: str) -> Entry:
    """Return the entry of a container in its shim, with the cgroup that holds it whatever becomes of the shim."""
    return Entry("task", {"id": ident, "shim": asdict(binding), "cgroup": cgroups_path})


class Undoer:
    """Removes things by kind; every method succeeds where there is nothing to remove."""

    def __init__(
        self, config: Config, database: Database, model: Model, networks: Mapping[str, Manager], images: Images
    ) -> None:
        self._homes = (config.root, config.state)
        self._state = config.state
        self._exec_plugins = Chain(config.bulkhead)
        self._database = database
        self._model = model
        self._networks = networks
        self._images = images

    def by_kind(self) -> dict[str, Undo]:
        """Return the methods by the kind of entry they take."""
        return {
            "directory": self.directory,
            "mount": self.mount,
            "netns": self.netns,
            "cni": self.cni,
            "snapshot": self.snapshot,
            "shim": self.shim,
            "task": self.task,
            end.KIND: self.exec_plugins,
        }

    def directory(self, entry: Entry) -> None:
        """Remove a directory of ours, never one outside root and state whatever the ledger says."""
        path = Path(entry.data["path"])
        if ".." in path.parts or not any(home in path.parents for home in self._homes):
            raise FailedPrecondition(f"{path} is not below {self._homes[0]} or {self._homes[1]} and is left alone")
        trees.remove(path)

    def mount(self, entry: Entry) -> None:
        """Unmount and remove a mount point."""
        path = Path(entry.data["path"])
        trees.detach(path)
        if path.is_dir():
            path.rmdir()

    def netns(self, entry: Entry) -> None:
        """Unpin a network namespace."""
        netns.remove(Path(entry.data["path"]))

    def cni(self, entry: Entry) -> None:
        """Give a pod's addresses back, with the configuration that gave them."""
        data = entry.data
        attachment = Attachment.from_json(data["attachment"])
        manager = self._networks.get(data["handler"]) or self._networks[""]
        try:
            manager.delete(attachment, AddResult.from_json(data["result"]))
        except (BulkheadError, OSError) as error:
            failures = int(data.get("failures", 0)) + 1
            if failures < NETWORK_ATTEMPTS:
                self._database.amend(entry.owner, "cni", {**data, "failures": failures})
                raise
            metrics.ERRORS.labels("network_written_off").inc()
            logger.error(
                "pod %s/%s (%s): its network is written off after %d failed DELs, addresses may be leaked: %s",
                attachment.pod_namespace, attachment.pod_name, entry.owner, failures, error,
            )  # fmt: skip

    def snapshot(self, entry: Entry) -> None:
        """Drop a snapshot."""
        self._images.remove(entry.data["key"])

    def task(self, entry: Entry) -> None:
        """Kill and delete a container in its shim; then kill what its cgroup still holds and remove that.

        A shim that does not answer saves no process, but keeps the entry: it will have to be told, or ended.
        """
        ident, path, silence = entry.data["id"], entry.data.get("cgroup", ""), None
        with _Borrowed(self._model, entry.data["shim"]) as link:
            if link.binding.process is None or process.alive(link.binding.process):
                try:
                    self._kill_in_shim(link, ident)
                except DeadlineExceeded as error:
                    silence = error
        if path and not cgroup.kill(path):
            raise FailedPrecondition(f"cgroup {path}: processes survive SIGKILL")
        if silence is not None:
            raise silence
        if link.binding.foreign_process is not None and not process.alive(link.binding.foreign_process):
            self._tidy_foreign(link.binding, ident)
        orphans.drop(paths.bundle(self._state, ident), ident)
        if path:
            cgroup.remove(path)

    def _kill_in_shim(self, link: Link, ident: str) -> None:
        try:
            waiting = link.wait(ident)
            link.kill(ident, 9, all=True)
            waiting.result(KILL_TIMEOUT)
            link.delete(ident)
        except (NotFound, Unavailable):
            return  # never created or deleted before; or no shim, and then the cgroup tells what is left
        except TimeoutError as error:
            raise FailedPrecondition(f"container {ident}: alive {KILL_TIMEOUT:g} s after SIGKILL") from error

    def exec_plugins(self, entry: Entry) -> None:
        """Tell NRI's exec plugins that a container they have heard of is at its end."""
        end.undo(self._exec_plugins, entry, paths.bundle(self._state, entry.owner))

    def shim(self, entry: Entry) -> None:
        """Have the shim leave, by force if it does not, and remove its sockets."""
        with _Borrowed(self._model, entry.data["shim"]) as link:
            who = link.binding.process or self._who(link)
            link.expect_end()
            if process.alive(who):
                try:
                    link.shutdown(entry.owner)
                except BulkheadError as error:
                    logger.warning("shim of %s refuses to leave: %s", entry.owner, error)
                if not process.gone_within(who, 2.0):
                    process.kill(who)
            link.close()
            if link.binding.foreign:
                _end_foreign(link.binding, entry.owner)
                self._tidy_foreign(link.binding, entry.owner)
        if where := entry.data["shim"].get("directory"):
            trees.remove(Path(where))

    def _tidy_foreign(self, binding: ShimBinding, ident: str) -> None:
        """Have the binary of a foreign shim that is gone tidy up after a container, as containerd does for each.

        A runtime that was killed while it made the container may not know it and leave its directory even then.
        """
        place = paths.bundle(self._state, ident)
        if place.is_dir():
            foreign.delete(binding.binary, ident, place, namespace=binding.namespace, events=Path(binding.events))
        for kept in (self._state / "runtime").glob(f"*/{binding.namespace}/{ident}"):
            trees.remove(kept)

    @staticmethod
    def _who(link: Link) -> Process | None:
        """Ask a shim whose fork we did not live to note who it is (its socket was bound by the zygote, not by it)."""
        try:
            answer = link.ours_call("Info", shim_pb2.InfoRequest(), shim_pb2.InfoResponse, 5.0)
        except BulkheadError:
            return None
        return process.identify(answer.pid)


class _Borrowed:
    """The connection a pod has to its shim, or for a pod without one a connection for the length of the block."""

    def __init__(self, model: Model, data: dict[str, Any]) -> None:
        known = model.link_to(data["address"])
        self._own = known is None
        binding = shim_of(data)
        assert binding is not None
        self._link = known or Link(binding)

    def __enter__(self) -> Link:
        return self._link

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._link.close()


def _end_foreign(binding: ShimBinding, ident: str) -> None:
    """Make sure that a foreign shim is gone."""
    if not process.gone_within(binding.foreign_process, 2.0):
        process.kill(binding.foreign_process)
    if binding.foreign_process is None:
        # Its start was not lived to be noted. Shims have the pod's id among their arguments, as containerd starts them.
        for stray in process.running(binding.binary, ident):
            process.kill(stray)
            process.gone_within(stray, 2.0)
