"""What unwrapping and wrapping need beside keys: providers, tokens' modules, and the helper that starts programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument
from decryptor.deadline import Deadline
from decryptor.helper import Helper

if TYPE_CHECKING:
    from decryptor.schemes.provider import Provider

#: Bytes of a provider configuration.
_LIMIT = 1024 * 1024
#: `key_timeout` where no configuration says otherwise, seconds.
PATIENCE = 20.0


class Tools:
    """Providers by name, as OCICRYPT_KEYPROVIDER_CONFIG configures them, and the policy of PKCS#11 modules."""

    def __init__(self, environ: Mapping[str, str], helper: Helper | None, patience: float = PATIENCE) -> None:
        #: Seconds that a provider or token may take for one answer.
        self.patience = patience
        self._environ, self._helper = dict(environ), helper
        self.providers: dict[str, Provider] = {}
        #: What is wrong with the configuration, for the face and the log.
        self.complaints: list[str] = []
        self.reload()

    def reload(self) -> None:
        """Read the providers anew; a file that cannot be read leaves none, and a complaint."""
        # At once: layers are being opened meanwhile.
        self.providers, self.complaints = self._read()

    def _read(self) -> "tuple[dict[str, Provider], list[str]]":
        name = self._environ.get("OCICRYPT_KEYPROVIDER_CONFIG", "")
        if not name:
            return {}, []
        from decryptor.schemes import provider

        try:
            with Path(name).open("rb") as file:
                found = provider.read(file.read(_LIMIT))
        except FileNotFoundError:
            return {}, []  # as in ocicrypt
        except OSError as error:
            return {}, [f"key providers: {name}: {error.strerror}"]
        except BulkheadError as error:
            return {}, [f"key providers: {name}: {error}"]
        return found, [f"key provider {each.name!r} {each.error}" for each in found.values() if each.error]

    @property
    def hash_name(self) -> str:
        """The hash that OAEP for tokens uses: `sha256`, or `sha1` by OCICRYPT_OAEP_HASHALG, for SoftHSM."""
        name = self._environ.get("OCICRYPT_OAEP_HASHALG", "").lower() or "sha256"
        if name not in ("sha1", "sha256"):
            raise InvalidArgument(f"OCICRYPT_OAEP_HASHALG is {name!r}, expected sha1 or sha256")
        return name

    def ask(self, name: str, blob: bytes, deadline: Deadline) -> bytes:
        """Have a provider unwrap a copy."""
        from decryptor.schemes import provider

        return provider.unwrap(self._provider(name), [], blob, self._needed(), deadline)

    def tell(self, name: str, parameter: bytes, payload: bytes, deadline: Deadline) -> bytes:
        """Have a provider wrap the private options; InvalidArgument if there is none of that name."""
        from decryptor.schemes import provider

        return provider.wrap(self._provider(name), parameter, payload, self._needed(), deadline)

    def message(self, secret: Any, blob: bytes, deadline: Deadline) -> bytes | None:
        """Have an OpenPGP key tried on a copy."""
        from decryptor.schemes import pgp

        return pgp.unwrap(secret, blob, self._needed(), deadline)

    def token(self, key: Any, blob: bytes, deadline: Deadline) -> bytes | None:
        """Have a token unwrap a copy."""
        from decryptor.schemes import pkcs11

        return pkcs11.unwrap(key, blob, pkcs11.Modules.read(self._environ), self._needed(), deadline)

    def wrap_for_tokens(self, keys: list[Any], payload: bytes, deadline: Deadline) -> bytes:
        """Wrap the private options for public keys of tokens."""
        from decryptor.schemes import pkcs11

        use = (pkcs11.Modules.read(self._environ), self._needed(), deadline)
        return pkcs11.wrap(payload, keys, self.hash_name, use)

    def _provider(self, name: str) -> "Provider":
        if (found := self.providers.get(name)) is None:
            raise InvalidArgument(f"provider:{name}: no key provider of that name is configured")
        return found

    def _needed(self) -> Helper:
        if self._helper is None:
            raise FailedPrecondition("this decryptor starts no programs")
        return self._helper
