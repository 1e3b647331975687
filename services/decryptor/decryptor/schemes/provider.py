"""Key providers (ocicrypt's docs/keyprovider.md): a program or a gRPC server that wraps and unwraps as it likes.

A provider is sent its own parameters and nothing else: ocicrypt sends it every private key of the configuration.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from bulkhead import rpc
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, Unavailable
from decryptor.deadline import Deadline
from decryptor.helper import LIMIT, Helper
from decryptor.options import encode

_SERVICE = "/keyprovider.KeyProviderService/"


@dataclass(frozen=True)
class Provider:
    """One entry of the configuration: a command, or the address of a server behind a unix socket."""

    name: str
    command: tuple[str, ...] = ()
    address: str = ""
    #: Why it cannot be used; empty when it can.
    error: str = ""


def read(data: bytes) -> dict[str, Provider]:
    """Return the providers of an ocicrypt_keyprovider.conf by name; InvalidArgument if it is none.

    An entry that cannot be used is returned with its error: the others go on.
    """
    try:
        document = json.loads(data)
        entries = document.get("key-providers") or {}
        return {str(name): _provider(str(name), entry) for name, entry in entries.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise InvalidArgument("not a key provider configuration: expected JSON with key-providers") from error


def _provider(name: str, entry: object) -> Provider:
    if not isinstance(entry, dict):
        return Provider(name, error="is not an object")
    if isinstance(command := entry.get("cmd"), dict):
        path, args = command.get("path"), command.get("args") or []
        if not isinstance(path, str) or not path or not isinstance(args, list):
            return Provider(name, error="cmd needs a path, and args as a list")
        return Provider(name, command=(path, *map(str, args)))
    address = entry.get("grpc")
    if not isinstance(address, str) or not address:
        return Provider(name, error="has neither cmd nor grpc")
    if not address.startswith(("unix:", "unix-abstract:")):
        return Provider(
            name, error=f"grpc is {address!r}; the decryptor has no network: put the server behind a unix:/// socket"
        )
    if entry.get("grpc-tls"):
        return Provider(name, error="grpc-tls has no use over a unix socket")
    return Provider(name, address=address)


def unwrap(provider: Provider, parameters: list[bytes], blob: bytes, helper: Helper, deadline: Deadline) -> bytes:
    """Return the private options that the provider unwrapped; BulkheadError says why it did not."""
    own = {"Parameters": {provider.name: [encode(each) for each in parameters]} if parameters else {}}
    request = {
        "op": "keyunwrap",
        "keywrapparams": {"ec": None, "optsdata": None},
        "keyunwrapparams": {"dc": own, "annotation": encode(blob)},
    }
    return _result(_ask(provider, "UnWrapKey", request, helper, deadline), "keyunwrapresults", "optsdata", provider)


def wrap(provider: Provider, parameter: bytes, payload: bytes, helper: Helper, deadline: Deadline) -> bytes:
    """Return the annotation that the provider made of the private options; BulkheadError says why it did not."""
    own = {"Parameters": {provider.name: [encode(parameter or b"Enabled")]}, "DecryptConfig": {"Parameters": None}}
    request = {
        "op": "keywrap",
        "keywrapparams": {"ec": own, "optsdata": encode(payload)},
        "keyunwrapparams": {"dc": None, "annotation": None},
    }
    return _result(_ask(provider, "WrapKey", request, helper, deadline), "keywrapresults", "annotation", provider)


def _ask(provider: Provider, method: str, request: Mapping[str, Any], helper: Helper, deadline: Deadline) -> bytes:
    if provider.error:
        raise FailedPrecondition(f"key provider {provider.name!r} {provider.error}")
    data = json.dumps(request).encode()
    seconds = deadline.for_answer
    if provider.command:
        try:
            return helper.run(provider.command, input=data, timeout=seconds)
        except BulkheadError as error:
            raise type(error)(f"key provider {provider.name!r}: {error}") from error
    return _call(provider, method, data, seconds)


def _call(provider: Provider, method: str, data: bytes, seconds: float) -> bytes:
    """Ask a server. Both messages hold one byte field of number 1, which is easily written without generated code."""
    with grpc.insecure_channel(provider.address, options=[("grpc.default_authority", "localhost")]) as channel:
        call = channel.unary_unary(_SERVICE + method, request_serializer=_field, response_deserializer=_unfield)
        try:
            return bytes(call(data, timeout=seconds))
        except grpc.RpcError as error:
            text = (error.details() or "") if isinstance(error, grpc.Call) else ""
            raise Unavailable(
                f"key provider {provider.name!r} at {provider.address}: {text[: rpc.TEXT_LIMIT]}"
            ) from error


def _field(data: bytes) -> bytes:
    size, head = len(data), bytearray((0x0A,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*head, size)) + data


def _unfield(message: bytes) -> bytes:
    """Return field 1 of a message, the last if it stands there more than once; ValueError if it is malformed."""
    found, rest = b"", memoryview(message)
    while rest:
        tag, rest = _varint(rest)
        if tag & 7 == 2:
            size, rest = _varint(rest)
            if size > len(rest):
                raise ValueError("field longer than the message")
            found, rest = (bytes(rest[:size]) if tag == 0x0A else found), rest[size:]
        elif tag & 7 == 0:
            _, rest = _varint(rest)
        else:
            raise ValueError("a field of an unexpected type")
    return found


def _varint(data: memoryview) -> tuple[int, memoryview]:
    number = 0
    for index in range(10):
        if index >= len(data):
            break
        number |= (data[index] & 0x7F) << 7 * index
        if data[index] < 0x80:
            return number, data[index + 1 :]
    raise ValueError("a number that does not end")


def _result(answer: bytes, part: str, name: str, provider: Provider) -> bytes:
    """Return one byte member of an answer; FailedPrecondition without quoting it, for it may hold a key."""
    try:
        if len(answer) > LIMIT:
            raise ValueError("too long")
        document = json.loads(answer)
        text = (document.get(part) or {}).get(name)
        value = base64.b64decode(text, validate=True) if text else b""
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise FailedPrecondition(f"key provider {provider.name!r} answered something else than its protocol") from None
    if not value:
        raise FailedPrecondition(f"key provider {provider.name!r} answered without {part}.{name}")
    return value
