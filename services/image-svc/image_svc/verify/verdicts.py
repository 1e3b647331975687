"""Who passed the verifiers, remembered as long as they stay the same."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from bulkhead.config.model import ImageVerifier
from image_svc.kubelet_errors import SignatureValidationFailed
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor
from image_svc.verify import bindir
from image_svc.verify.bindir import Policy

logger = logging.getLogger(__name__)

#: Verdicts that are remembered; the oldest go first.
REMEMBERED = 10_000


@dataclass(frozen=True)
class Candidate:
    """A name of an image and what it resolved to when it was pulled, the two things that verifiers are told."""

    name: str
    target: Descriptor


class Verifier:
    """Has images verified, and remembers who passed as long as the verifiers stay the same."""

    def __init__(self, config: ImageVerifier) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._policy: Policy | None = None
        self._passed: dict[tuple[str, str], None] = {}

    def idle(self) -> bool:
        """Whether there is no verifier to be asked."""
        policy = self._current()
        return policy is None or not policy.programs

    def check(self, candidate: Candidate, patience: Patience) -> None:
        """Verify an image that is being pulled, whatever was found before; SignatureValidationFailed is a no."""
        policy = self._current()
        if policy is None or not policy.programs:
            return
        reasons = bindir.verify(policy, candidate.name, candidate.target, self._config.per_verifier_timeout, patience)
        logger.info("image verified", extra={"reference": candidate.name, "reasons": reasons})
        self._remember(policy, candidate)

    def check_again(self, candidates: Sequence[Candidate], patience: Patience) -> None:
        """See that an image that is here may still be run: one of its names must pass, now or since the last change.

        Containers name their image by its id, so which of its names a pod asked for is not known.
        """
        policy = self._current()
        if policy is None or not policy.programs:
            return None
        with self._lock:
            if self._policy == policy and any(_key(candidate) in self._passed for candidate in candidates):
                return None
        refusals: list[SignatureValidationFailed] = []
        for candidate in candidates:
            try:
                return self.check(candidate, patience)
            except SignatureValidationFailed as error:
                refusals.append(error)
        raise refusals[0] if refusals else SignatureValidationFailed("the image has no name that could be verified")

    def _current(self) -> Policy | None:
        """Return the verifiers of this moment; what passed under others is forgotten."""
        policy = bindir.read(self._config)
        with self._lock:
            if policy != self._policy:
                self._policy, self._passed = policy, {}
        return policy

    def _remember(self, policy: Policy, candidate: Candidate) -> None:
        with self._lock:
            if policy != self._policy:  # replaced while they were asked
                return
            if len(self._passed) >= REMEMBERED:
                del self._passed[next(iter(self._passed))]
            self._passed[_key(candidate)] = None


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.name, candidate.target.digest
