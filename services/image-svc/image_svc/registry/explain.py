"""Why an image is looked for where it is looked for: every host in order, and what each answers now."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from bulkhead.config.model import Registry
from bulkhead.errors import BulkheadError, FailedPrecondition, NotFound
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.credentials import Providers
from image_svc.oci import reference
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry import hosts
from image_svc.registry.endpoint import Endpoint
from image_svc.registry.failures import HostFailure
from image_svc.registry.hosts import Host
from image_svc.registry.repository import Descriptor, Repository, needed, worst

#: Seconds that one host may take to answer.
HOST_TIME = 20.0


@dataclass(frozen=True)
class Step:
    """One host, in the order in which it would be asked."""

    #: The repository at that host, with `?ns=` where a mirror is told whose it is.
    url: str
    capabilities: tuple[str, ...]
    #: The file and line, or the rule, that names it.
    source: str
    #: Where its credentials come from, never what they are.
    credentials: str
    tls: str
    #: Names of the headers added to each request.
    headers: tuple[str, ...]
    #: Why it is not asked, or what it answered; empty if it would be asked and was not.
    result: str = ""
    #: Whether it has what is looked for, or would be asked for it.
    usable: bool = True
    #: How long the answer took.
    seconds: float = 0.0


@dataclass(frozen=True)
class Explanation:
    """What would happen to a name."""

    reference: str
    steps: tuple[Step, ...]
    #: What the name resolves to; empty if nobody was asked or nobody says.
    digest: str = ""
    media_type: str = ""
    #: Why it does not resolve, or cannot be asked for: what a pull would fail with.
    error: BulkheadError | None = None
    #: What belongs to no single host.
    notes: tuple[str, ...] = field(default=())


def explain(
    text: str,
    registry: Registry,
    patience: Patience,
    auth: AuthConfig | None = None,
    *,
    providers: Providers | None = None,
    offline: bool = False,
    push: bool = False,
) -> Explanation:
    """Return every host that would be asked for an image, in order, with why and, unless offline, what it answers.

    A wrong hosts.toml is part of the answer; InvalidArgument for what is no reference.
    """
    name = reference.parse(text)
    notes = tuple(_searched(name, registry))
    actions = ("pull", "push") if push else ("pull",)
    try:
        repository = Repository(name, registry, auth, providers=providers, actions=actions)
    except BulkheadError as error:
        return Explanation(str(name), (), error=error, notes=notes)
    with repository.held():
        made = [_planned(endpoint, name, push=push) for endpoint in repository.endpoints]
        if push:
            made = _first_alone(made)
        explanation = Explanation(str(name), tuple(made), notes=notes)
        return explanation if offline else _asked(explanation, repository, patience, push=push)


def _searched(name: Reference, registry: Registry) -> list[str]:
    """Say which configuration counts, and where it was looked for."""
    if registry.mirrors or name.domain in registry.tls:
        return ["registry.mirrors and registry.configs (deprecated) are in force"]
    if not registry.config_path:
        return ["no registry.config_path is set"]
    roots = ", ".join(registry.config_path)
    try:
        found = hosts.find_directory(name.domain, map(Path, registry.config_path))
    except BulkheadError as error:
        return [f"host configuration of {name.domain}: {error}"]
    if found is None:
        return [f"no directory for {name.domain} and no _default in {roots}"]
    return [f"host configuration of {name.domain}: {found}, the first found in {roots}"]


def _planned(endpoint: Endpoint, name: Reference, *, push: bool) -> Step:
    host = endpoint.host
    namespace = "" if host.serves(name.domain) else f"?ns={name.domain}"
    lacking = _wanted(name, push=push) - host.capabilities
    result = f"not asked: lacks the capability {' and '.join(sorted(lacking))}" if lacking else ""
    if lacking == {"resolve"}:
        result += "; content is fetched from it once the digest is known"
    return Step(
        url=f"{host.origin}{host.path}/{name.path}{namespace}",
        capabilities=tuple(sorted(host.capabilities)),
        source=host.source,
        credentials=endpoint.account.source,
        tls=_tls(host),
        headers=tuple(dict.fromkeys(key for key, _ in host.header)),
        result=result,
        usable=not lacking,
    )


def _wanted(name: Reference, *, push: bool) -> frozenset[str]:
    return frozenset({"push"}) if push else needed(name)


def _first_alone(steps: list[Step]) -> list[Step]:
    """Only the first host that may be pushed to is: everything must be in one place."""
    first = next((number for number, step in enumerate(steps) if step.usable), -1)
    other = "not asked: pushes go to the first host that allows them"
    return [replace(s, usable=False, result=other) if s.usable and n != first else s for n, s in enumerate(steps)]


def _tls(host: Host) -> str:
    if host.scheme == "http":
        return "none"
    words = ["certificate not verified" if host.tls.skip_verify else "verified"]
    words += [f"ca {path}" for path in host.tls.ca]
    words += [f"client certificate {certificate}" for certificate, _ in host.tls.client]
    if host.http_fallback:
        words.append("http where the port speaks no TLS")
    return ", ".join(words)


def _asked(plan: Explanation, repository: Repository, patience: Patience, *, push: bool) -> Explanation:
    """Ask every host that may be asked; after the first that answers the others are asked about that digest."""
    steps: list[Step] = []
    target: Descriptor | None = None
    errors: dict[str, BulkheadError] = {}
    #: What ends a pull without another host being asked: a mistake in the configuration.
    final: BulkheadError | None = None
    for endpoint, step in zip(repository.endpoints, plan.steps, strict=True):
        if step.usable:
            step, found, error = _probe(endpoint, step, repository, patience, push=push)
            if found is not None and target is not None and found.digest != target.digest:
                step = replace(step, result=f"{step.result}, other than the first answer")
            if target is None and isinstance(error, FailedPrecondition):
                final = final or error
            target = target or found
            errors |= {endpoint.origin: error.error if isinstance(error, HostFailure) else error} if error else {}
        steps.append(step)
    if final is not None:
        return replace(plan, steps=tuple(steps), error=final)
    if target is None:
        wanted = " and ".join(sorted(_wanted(repository.reference, push=push)))
        none = FailedPrecondition(f"{repository.reference}: no host has the capabilities {wanted}")
        able = any(step.usable for step in plan.steps)
        problem = worst(errors) if errors else None if able else none
        return replace(plan, steps=tuple(steps), error=problem)
    return replace(plan, steps=tuple(steps), digest=target.digest, media_type=target.media_type)


def _probe(
    endpoint: Endpoint, step: Step, repository: Repository, patience: Patience, *, push: bool
) -> tuple[Step, Descriptor | None, HostFailure | BulkheadError | None]:
    """Ask one host what the name stands for; return its step with the answer, what it has, and what went wrong."""
    began = time.monotonic()
    found: Descriptor | None = None
    problem: HostFailure | BulkheadError | None = None
    usable = True
    try:
        found = repository.probe(endpoint, Patience(min(HOST_TIME, patience.left), f"answer of {endpoint.origin}"))
        result = f"has {found.digest}"
    except (HostFailure, BulkheadError) as failure:
        patience.check()
        error = failure.error if isinstance(failure, HostFailure) else failure
        usable = push and isinstance(error, NotFound)
        result, problem = ("has nothing of that name yet", None) if usable else (str(error), failure)
    seconds = time.monotonic() - began
    # Only now is it known whether a credential provider had any.
    source = endpoint.account.source
    if endpoint.account.problem:
        source = f"{source}: {endpoint.account.problem}"
    return replace(step, result=result, usable=usable, credentials=source, seconds=seconds), found, problem
