"""WWW-Authenticate: what a registry wants to see (RFC 9110, section 11.6.1)."""

import re
from dataclasses import dataclass

_CHARACTERS = r"A-Za-z0-9!#$%&'*+\-.^_`|~"
_SCHEME = re.compile(rf"\s*([{_CHARACTERS}]+)(?:[ \t]+|$|(?=,))")
# Unquoted addresses are not allowed, and some registries send them all the same.
_PARAMETER = re.compile(rf'\s*([{_CHARACTERS}]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([{_CHARACTERS}/:=]+))\s*')
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9\-._~+/]+=*\s*(?=,|$)")
_COMMAS = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Challenge:
    """One scheme (lower case) with its parameters (names in lower case)."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> list[Challenge]:
    """Return every challenge of a header that may hold several, in order; what cannot be read is left out."""
    found: list[Challenge] = []
    at = _skip(header, 0)
    while at < len(header):
        parameter = _PARAMETER.match(header, at)
        if parameter and found and _ends(header, parameter.end()):
            _store(found[-1], parameter)
            at = _skip(header, parameter.end())
            continue
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            at = _next_comma(header, at)
            continue
        found.append(Challenge(scheme[1].lower(), {}))
        at = _first_parameter(header, scheme.end(), found[-1])
    return found


def _first_parameter(header: str, at: int, challenge: Challenge) -> int:
    """Read what may follow a scheme without a comma: a parameter or a token68; return where reading goes on."""
    parameter = _PARAMETER.match(header, at)
    if parameter and _ends(header, parameter.end()):
        _store(challenge, parameter)
        return _skip(header, parameter.end())
    blob = _TOKEN68.match(header, at)
    return _skip(header, blob.end() if blob else at)


def _store(challenge: Challenge, match: re.Match[str]) -> None:
    value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
    challenge.parameters.setdefault(match[1].lower(), value)


def _ends(header: str, at: int) -> bool:
    return at >= len(header) or header[at] == ","


def _skip(header: str, at: int) -> int:
    match = _COMMAS.match(header, at)
    return match.end() if match else at


def _next_comma(header: str, at: int) -> int:
    comma = header.find(",", at)
    return len(header) if comma < 0 else _skip(header, comma)
