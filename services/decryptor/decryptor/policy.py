"""The key policy: which pods may use which keys (`[bulkhead.key_policy.<name>]`).

A key that some rule names opens layers only for pods that a rule naming it fits. A key that no rule names is for all.
"""

import re
from collections.abc import Mapping, Sequence

from bulkhead.config.model import KeyRule
from bulkhead.errors import InvalidArgument
from bulkhead.proto import keys_pb2

_HEX = re.compile(r"[0-9a-f]+").fullmatch


class Policy:
    """All rules."""

    def __init__(self, rules: Sequence[KeyRule]) -> None:
        self._rules = tuple(rules)
        self._named = frozenset(_plain(key) for rule in rules for key in rule.keys)

    def withheld(self, use: keys_pb2.Use) -> frozenset[str]:
        """Return the fingerprints that this use may not touch; none where it is open for which pod it is."""
        if not self._named or use.open == keys_pb2.Use.POD:
            return frozenset()
        granted = {_plain(key) for rule in self._rules if fits(rule, use) for key in rule.keys}
        return self._named - granted


def fits(rule: KeyRule, use: keys_pb2.Use) -> bool:
    """Whether everything the rule asks for holds, as far as it is known.

    A use outside a pod fits only a rule that asks for nothing.
    """
    if rule.namespaces and use.namespace not in rule.namespaces:
        return False
    if rule.service_accounts and not _served(rule.service_accounts, use):
        return False
    return _labelled(rule.pod_labels, use.pod_labels)


def _served(accounts: Sequence[str], use: keys_pb2.Use) -> bool:
    if use.open == keys_pb2.Use.SERVICE_ACCOUNT:
        return any(account.startswith(f"{use.namespace}/") for account in accounts)
    return f"{use.namespace}/{use.service_account}" in accounts


def _labelled(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(name in labels and labels[name] == value for name, value in wanted.items())


def _plain(name: str) -> str:
    """Return a key's name as keys have it: digits and a token's URI however they are written, a provider's as it is.

    InvalidArgument for a URI that could be no key's: a key that no rule names is for all.
    """
    if name.strip().lower().startswith("pkcs11:"):
        # Where needed: a node without tokens pays nothing for them.
        from decryptor.schemes import pkcs11

        try:
            return pkcs11.named(name.strip())
        except InvalidArgument as error:
            # The name is not quoted: who copies a key file's URI copies its PIN.
            raise InvalidArgument(f"bulkhead.key_policy: keys names a token's key, and {error}") from None
    digits = "".join(name.lower().removeprefix("sha256:").removeprefix("0x").replace(":", "").split())
    return digits if _HEX(digits) else name
