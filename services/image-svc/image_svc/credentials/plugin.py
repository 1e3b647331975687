"""Credential providers: programs that are asked for an image's credentials (kubelet credentialprovider v1).

The request goes to the program's standard input as JSON, the answer comes back on its standard output. They run as
image-svc's own user, without any privilege, so what they read must be readable to it. The configuration is read again
when its file changes.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bulkhead import command
from bulkhead.errors import BulkheadError
from image_svc import quote
from image_svc.credentials import configuration
from image_svc.credentials.configuration import Provider
from image_svc.credentials.matching import parse

logger = logging.getLogger(__name__)

#: Seconds a program has, the kubelet's own limit; and bytes that it may write.
TIMEOUT, OUTPUT_LIMIT = 60.0, 1 << 20
#: Answers that are remembered at once.
CACHE_LIMIT = 1000
_CACHE_KEYS = ("Image", "Registry", "Global")


class ProviderError(Exception):
    """A program gave no answer that can be used; the message names it and never repeats what it wrote as an answer."""


@dataclass(frozen=True)
class Found:
    """What a provider gave."""

    username: str = field(repr=False)
    password: str = field(repr=False)
    provider: str = ""


@dataclass(frozen=True)
class Answer:
    """A provider's answer: credentials by pattern, and how long and for what they are good."""

    auth: dict[str, tuple[str, str]] = field(repr=False)
    cache_key_type: str
    #: Seconds; None if the answer says nothing.
    cache_duration: float | None

    def choose(self, image: str) -> list[tuple[str, str]]:
        """Return the credentials of every pattern that fits, in reverse order: the longer before the shorter."""
        fitting = [pattern for pattern in sorted(self.auth, reverse=True) if parse(pattern).matches(image)]
        return [self.auth[pattern] for pattern in fitting]


class Providers:
    """The providers of a configuration file, with what they said; safe to share between threads."""

    def __init__(self, config: str, bin_dir: str, *, timeout: float = TIMEOUT, clock: Callable[[], float] = time.time):
        self._config = Path(config) if config else None
        self._bin_dir = Path(bin_dir)
        self._timeout = timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._providers: tuple[Provider, ...] = ()
        self._cache: dict[tuple[str, str], tuple[float, Answer]] = {}
        self._turns: dict[str, threading.Lock] = {}

    def matching(self, image: str) -> list[str]:
        """Return the names of the providers for an image, in the file's order; ProviderConfigError if it is wrong."""
        return [provider.name for provider in self._for(image)]

    def find(self, image: str) -> list[Found]:
        """Return credentials for an image's name, without tag or digest, to be tried in that order.

        Those of the provider that stands first in the file come first. ProviderError if there are none and one failed.
        """
        failures: list[str] = []
        found: list[Found] = []
        for provider in self._for(image):
            try:
                chosen = self._answer(provider, image).choose(image)
            except ProviderError as error:
                logger.warning("%s", error)
                failures.append(str(error))
            else:
                found += [Found(*each, provider=provider.name) for each in chosen]
        if failures and not found:
            raise ProviderError("; ".join(failures))
        return found

    def _for(self, image: str) -> list[Provider]:
        if self._config is None:
            return []
        try:
            status = self._config.stat()
        except OSError as error:
            raise configuration.ProviderConfigError(f"{self._config}: {error.strerror}") from error
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            if stamp != self._stamp:
                self._providers, self._cache = configuration.load(self._config), {}
                self._stamp = stamp
            providers = self._providers
        return [each for each in providers if any(pattern.matches(image) for pattern in each.match_images)]

    def _answer(self, provider: Provider, image: str) -> Answer:
        with self._lock:
            turn = self._turns.setdefault(provider.name, threading.Lock())
        # One at a time: of many pulls at once the first asks, the others find its answer. Those that have waited for as
        # long as an answer may take ask for themselves: a provider that hangs must not have them wait in line.
        first = turn.acquire(timeout=self._timeout)
        try:
            known = self._cached(provider.name, image)
            if known is None:
                known = ask(provider, self._bin_dir, image, self._timeout)
                self._keep(provider, image, known)
            return known
        finally:
            if first:
                turn.release()

    def _cached(self, name: str, image: str) -> Answer | None:
        now = self._clock()
        with self._lock:
            self._cache = {key: kept for key, kept in self._cache.items() if kept[0] > now}
            for kind in _CACHE_KEYS:
                if kept := self._cache.get((name, _cache_key(kind, image))):
                    return kept[1]
        return None

    def _keep(self, provider: Provider, image: str, answer: Answer) -> None:
        seconds = provider.default_cache_duration if answer.cache_duration is None else answer.cache_duration
        if seconds > 0:
            key = (provider.name, _cache_key(answer.cache_key_type, image))
            with self._lock:
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                self._cache[key] = (self._clock() + seconds, answer)


def _cache_key(kind: str, image: str) -> str:
    return {"Image": f"image {image}", "Registry": f"registry {image.partition('/')[0]}", "Global": "global"}[kind]


def ask(provider: Provider, bin_dir: Path, image: str, timeout: float) -> Answer:
    """Run a provider's program for an image's name and return its answer; ProviderError if there is none."""
    program = bin_dir / provider.name
    request = {"apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image}
    what = f"credential provider {provider.name}"
    try:
        result = command.run(
            [str(program), *provider.args],
            timeout=timeout,
            input=json.dumps(request).encode(),
            env={**os.environ, **dict(provider.env)},
            limit=OUTPUT_LIMIT,
        )
    except (BulkheadError, OSError) as error:
        raise ProviderError(f"{what}: {error}") from error
    if result.returncode != 0:
        # Its standard error is for people; the answer on the other stream may be half a password.
        words = quote.one_line(result.stderr.decode(errors="replace")).strip()[-300:]
        raise ProviderError(f"{what}: exit status {result.returncode}: {words or 'no word of why'}")
    try:
        return read_answer(json.loads(result.stdout), provider.api_version)
    except RecursionError:
        raise ProviderError(f"{what}: its answer is nested too deep") from None
    except ValueError as error:
        # The parser's own words would quote the answer.
        words = "it is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
        raise ProviderError(f"{what}: its answer cannot be used: {words}") from None


def read_answer(tree: object, api_version: str) -> Answer:
    """Check a CredentialProviderResponse; ValueError names the field and never shows what may be a secret."""
    if not isinstance(tree, dict):
        raise ValueError("it is not an object")
    if tree.get("kind") != "CredentialProviderResponse":
        raise ValueError("kind is not CredentialProviderResponse")
    if tree.get("apiVersion") != api_version:
        raise ValueError(f"apiVersion is not {api_version}")
    kind = tree.get("cacheKeyType")
    if kind not in _CACHE_KEYS:
        raise ValueError(f"cacheKeyType is not one of {', '.join(_CACHE_KEYS)}")
    duration = tree.get("cacheDuration")
    seconds = None if duration is None else configuration.duration(duration, "cacheDuration")
    entries = tree.get("auth")
    if entries is not None and not isinstance(entries, dict):
        raise ValueError("auth is not an object")
    return Answer(dict(_entry(*item) for item in (entries or {}).items()), str(kind), seconds)


def _entry(pattern: str, entry: Any) -> tuple[str, tuple[str, str]]:
    parse(pattern)
    username, password = (entry.get(key, "") if isinstance(entry, dict) else None for key in ("username", "password"))
    if not isinstance(username, str) or not isinstance(password, str):
        raise ValueError(f"auth[{pattern[:100]!r}] is not a username and a password")
    try:
        f"{username}{password}".encode()
    except UnicodeEncodeError:
        raise ValueError(f"auth[{pattern[:100]!r}] holds half a character") from None
    return pattern, (username, password)
