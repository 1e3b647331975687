"""The services of a stack: in which order they start and stop, and what each is allowed."""

import resource
import signal
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bulkhead import paths
from bulkhead.config.model import Config
from bulkhead.launch.directories import credentials, granted_files
from bulkhead.launch.plan import UNPACK_CAPABILITIES, Plan, environment
from bulkhead.launch.users import Users
from bulkhead.processors import decoder_files, keys_path

ZYGOTE = "zygote"
_SCRIPTS = {ZYGOTE: "bulkhead-shim-zygote"}

#: In the order of starting: what others call first comes first.
START = (ZYGOTE, "decryptor", "image-svc-unpack", "image-svc", "sandbox-svc", "stream-svc", "cri-frontend")
#: In the order of stopping, side by side within a step; the zygote is not among them, since shims need it.
STOP = (("cri-frontend",), ("sandbox-svc", "stream-svc"), ("image-svc",), ("image-svc-unpack", "decryptor"))

_NOFILE = 65536
_OWN_MEMORY = frozenset({"cri-frontend", "stream-svc", "decryptor"})


@dataclass(frozen=True)
class Entry:
    """One service: its plan, and the socket that listens once it is up."""

    name: str
    plan: Plan
    socket: Path


def scripts_directory() -> Path:
    """Return where this installation's programs are."""
    return Path(sysconfig.get_path("scripts"))


def config_file(config: Config, service: str) -> Path:
    """Return where the service's own copy of the configuration stands."""
    return config.state / "config" / f"{service}.json"


def sockets(config: Config) -> dict[str, Path]:
    """Return the socket of every service."""
    return {
        name: {
            ZYGOTE: paths.zygote_socket(config.state),
            "image-svc-unpack": paths.unpack_socket(config.state),
            "cri-frontend": paths.cri_socket(config.state),
        }.get(name, paths.service_socket(config.state, name))
        for name in START
    }


def roster(config: Config, users: Users, source: Mapping[str, str], programs: Path) -> list[Entry]:
    """Return every service in the order of starting.

    `source` is the environment to pass on from, `programs` the directory of the services' scripts.
    """
    where = sockets(config)
    return [Entry(name, _plan(name, config, users, source, programs), where[name]) for name in START]


def _grants(name: str, config: Config) -> tuple[str, ...]:
    """Return where files of a service are, of TLS and of credential providers, which may be root's alone."""
    if name == "image-svc":
        registry = config.images.registry
        tls = (file for entry in registry.tls.values() for file in (entry.ca_file, entry.cert_file, entry.key_file))
        others = (*tls, config.bulkhead.image_credential_provider_config)
        return (*registry.config_path, *(file for file in others if file))
    if name == "stream-svc":
        streaming = config.streaming
        return tuple(file for file in (streaming.tls_cert_file, streaming.tls_key_file) if file)
    return decoder_files(config) if name == "decryptor" else ()


def _plan(name: str, config: Config, users: Users, source: Mapping[str, str], programs: Path) -> Plan:
    user = users.of(name)
    program = programs / _SCRIPTS.get(name, name)
    arguments = (str(program), "--config", str(config_file(config, name)))
    variables = environment(source, user.home)
    if name in ("sandbox-svc", ZYGOTE):
        # No mount namespace, ever: shims would mount in it, and propagation into pods would end there.
        if name == ZYGOTE:
            return Plan(arguments, variables, oom_score_adj=-999)
        # A few descriptors a pod; containers are the zygote's descendants and do not inherit this.
        return Plan(
            arguments,
            variables,
            parent_death_signal=signal.SIGTERM,
            limits={resource.RLIMIT_NOFILE: _NOFILE},
            oom_score_adj=-999,
        )
    hidden = (keys,) if (keys := keys_path(config)) else ()
    common = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: _NOFILE}
    if name == "image-svc-unpack":
        return Plan(
            arguments,
            variables,
            capabilities=UNPACK_CAPABILITIES,
            hide=hidden,
            no_network=True,
            parent_death_signal=signal.SIGTERM,
            limits=common,
        )
    decrypts = name == "decryptor"
    if decrypts:
        variables = {**variables, "CREDENTIALS_DIRECTORY": str(credentials(config.state, name))}
        common = {**common, resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY}
    return Plan(
        arguments,
        variables,
        uid=user.uid,
        gid=user.gid,
        # stream-svc, which talks to the network, and the decryptor call nobody.
        groups=(users.group,) if name in ("cri-frontend", "image-svc") else (),
        capabilities=(),
        hide=hidden,
        credentials=(keys, str(credentials(config.state, name))) if decrypts and keys else None,
        grants=(granted := _grants(name, config)),
        grants_directory=str(granted_files(config.state, name)) if granted else "",
        no_network=decrypts,
        umask=0o077 if name in _OWN_MEMORY else 0o022,
        parent_death_signal=signal.SIGTERM,
        limits=common,
        oom_score_adj=-900,
    )
