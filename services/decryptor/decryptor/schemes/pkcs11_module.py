"""`python -m decryptor.schemes.pkcs11_module`: one operation with one key in one token, and the end.

The order comes as JSON on standard input, the answer goes as JSON to standard output: `{"data": base64}`, `{"data":
null}` if no copy was for this key, or `{"error": text}`.
"""

import base64
import json
import sys
from typing import Any

import pkcs11
from pkcs11 import MGF, Attribute, Mechanism, ObjectClass

from decryptor.options import encode

_OAEP = {"sha1": (Mechanism.SHA_1, MGF.SHA1, None), "sha256": (Mechanism.SHA256, MGF.SHA256, None)}
#: What a token answers when the ciphertext is for another key, or the mechanism is not its.
_NOT_FOR_IT = (
    pkcs11.exceptions.EncryptedDataInvalid,
    pkcs11.exceptions.EncryptedDataLenRange,
    pkcs11.exceptions.DataInvalid,
    pkcs11.exceptions.DataLenRange,
    pkcs11.exceptions.FunctionFailed,
    pkcs11.exceptions.GeneralError,
    pkcs11.exceptions.ArgumentsBad,
    pkcs11.exceptions.MechanismParamInvalid,
    pkcs11.exceptions.MechanismInvalid,
)


def main() -> int:
    """Carry out the order."""
    order = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"data": _work(order)}
    except pkcs11.exceptions.PKCS11Error as error:
        # The error's name alone; its text may be the module's.
        answer = {"error": f"the token answered {type(error).__name__}"}
    except LookupError as error:
        answer = {"error": str(error.args[0])}
    json.dump(answer, sys.stdout)
    return 0


def _work(order: dict[str, Any]) -> str | None:
    token = _token(order)
    with token.open(user_pin=order["pin"]) as session:
        if "encrypt" in order:
            what = order["encrypt"]
            key = _key(session, order, ObjectClass.PUBLIC_KEY)
            data = base64.b64decode(what["data"])
            return encode(key.encrypt(data, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=_OAEP[what["hash"]]))
        key = _key(session, order, ObjectClass.PRIVATE_KEY)
        for copy in order["decrypt"]:
            data = base64.b64decode(copy["data"])
            try:
                found = key.decrypt(data, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=_OAEP[copy["hash"]])
            except _NOT_FOR_IT:
                continue
            return encode(found)
    return None


def _token(order: dict[str, Any]) -> Any:
    library = pkcs11.lib(order["module"])
    for slot in library.get_slots(token_present=True):
        if order["slot"] and str(slot.slot_id) != order["slot"]:
            continue
        token = slot.get_token()
        if not order["token"] or token.label.rstrip() == order["token"]:
            return token
    raise LookupError("no such token in any slot")


def _key(session: Any, order: dict[str, Any], kind: ObjectClass) -> Any:
    wanted: dict[Attribute, Any] = {Attribute.CLASS: kind}
    if order["object"]:
        wanted[Attribute.LABEL] = order["object"]
    if order["id"]:
        wanted[Attribute.ID] = bytes.fromhex(order["id"])
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise LookupError(f"{len(found)} keys in the token fit the URI, expected one")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
