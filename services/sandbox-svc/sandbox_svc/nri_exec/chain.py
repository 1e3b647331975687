"""The plugins of the configuration, run one after the other; each hears what those before it answered."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from bulkhead import command, metrics
from bulkhead.config.model import Bulkhead
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, InvalidArgument
from sandbox_svc import cgroup
from sandbox_svc.nri_exec import conf, messages
from sandbox_svc.nri_exec.messages import Answer, Subject
from sandbox_svc.oci.model import Json

logger = logging.getLogger(__name__)

#: Bytes that a plugin may write.
OUTPUT = 1 << 20


@dataclass(frozen=True)
class Chain:
    """What `[bulkhead]` says of exec plugins."""

    config: Bulkhead

    def plugins(self) -> list[conf.Plugin]:
        """Return the plugins of this moment; none where nothing is configured."""
        return conf.load(self.config.nri_exec_conf_path, self.config.nri_exec_conf_dir)

    def create(self, plugins: list[conf.Plugin], subject: Subject, move: Callable[[str], int]) -> None:
        """Ask plugins about a created process that is to be started; raises, naming the plugin, if one refuses.

        `move` makes the container anew in the cgroup that a plugin asks for and returns its new process.
        """
        results: list[Json] = []
        for plugin in plugins:
            answer = self._ask(plugin, "create", subject, results)
            wanted = answer.cgroups_path
            if wanted and wanted != (subject.spec.get("linux") or {}).get("cgroupsPath", ""):
                _check(plugin, wanted)
                logger.info("%s: exec plugin %s moves it to cgroup %s", subject.id, plugin.type, wanted)
                subject = subject.moved(move(wanted), wanted)

    def tell(self, plugins: list[conf.Plugin], state: str, subject: Subject) -> None:
        """Tell plugins of an update, a pause or a resume; raises, naming the plugin, if one refuses."""
        results: list[Json] = []
        for plugin in plugins:
            self._ask(plugin, state, subject, results)

    def delete(self, subject: Subject) -> None:
        """Tell plugins that a container is at its end: each of them, whatever others say; nothing is raised."""
        try:
            plugins = self.plugins()
        except BulkheadError as error:
            logger.warning("%s: exec plugins are not told of its end: %s", subject.id, error)
            return
        results: list[Json] = []
        for plugin in plugins:
            try:
                self._ask(plugin, "delete", subject, results)
            except BulkheadError as error:
                metrics.ERRORS.labels("nri_exec_delete").inc()
                logger.warning("%s: %s", subject.id, error)

    def _ask(self, plugin: conf.Plugin, state: str, subject: Subject, results: list[Json]) -> Answer:
        """Run one plugin and add its result to those that the next one hears."""
        name = f"NRI exec plugin {plugin.type} ({state})"
        text = messages.request(plugin, state, subject, results)
        try:
            with metrics.stage("nri_exec"):
                done = self._run(plugin, text)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{name}: {error}") from error
        except BulkheadError as error:
            raise FailedPrecondition(f"{name}: {error}") from error
        try:
            answer = messages.parse(done.stdout, plugin.type)
        except ValueError as error:
            raise FailedPrecondition(f"{name}: {error}{_rest(done)}") from error
        if done.returncode != 0:
            raise FailedPrecondition(f"{name}: its result is none, since it failed{_rest(done)}")
        results.append(answer.result)
        return answer

    def _run(self, plugin: conf.Plugin, text: bytes) -> command.Result:
        directory = self.config.nri_exec_bin_dir
        environment = {**os.environ, "PATH": os.pathsep.join(filter(None, (os.environ.get("PATH"), directory)))}
        arguments = [os.path.join(directory, plugin.type), "invoke"]
        return command.run(arguments, timeout=self.config.nri_exec_timeout, input=text, env=environment, limit=OUTPUT)


def _rest(done: command.Result) -> str:
    """Return how a plugin ended and what it wrote to standard error, for an error message."""
    said = done.stderr.decode(errors="replace").strip()[-1000:]
    status = f"exit status {done.returncode}" if done.returncode else ""
    rest = ", ".join(part for part in (status, f"stderr: {said}" if said else "") if part)
    return f" ({rest})" if rest else ""


def _check(plugin: conf.Plugin, wanted: str) -> None:
    """Raise unless a group can be made there, below the root of the hierarchies."""
    try:
        inside = cgroup.relative(wanted)
    except InvalidArgument as error:
        raise FailedPrecondition(f"NRI exec plugin {plugin.type} (create): cgroupsPath: {error}") from error
    if not inside:
        raise FailedPrecondition(f"NRI exec plugin {plugin.type} (create): cgroupsPath {wanted!r} is the root")
