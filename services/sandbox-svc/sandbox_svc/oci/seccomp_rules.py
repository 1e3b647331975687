"""The rules of a linux.seccomp section as verdicts on system calls: what each call of an architecture comes to.

What libseccomp would make of a section in a way of its own is refused (`Unsupported`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sandbox_svc.oci.model import Json
from sandbox_svc.oci.syscalls import Architecture, multiplexed, numbers

KILL_THREAD, ERRNO = 0x00000000, 0x00050000
_EPERM, ENOSYS = 1, 38
_ACTIONS = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}


class Unsupported(Exception):
    """The profile asks for something whose compiled form could differ from libseccomp's."""


@dataclass(frozen=True)
class Comparison:
    """One condition on an argument, as linux.seccomp writes it."""

    index: int
    op: str
    value: int
    value_two: int


@dataclass(frozen=True)
class Verdict:
    """What happens to a call: `action` at once, or only if one of the alternatives holds (all of its comparisons)."""

    action: int
    alternatives: tuple[tuple[Comparison, ...], ...] = ()


def verdicts(profile: Json, architecture: Architecture, default: Verdict) -> dict[int, Verdict]:
    """Return the verdict of every call that the profile names and the architecture has."""
    table = numbers(architecture.column)
    found: dict[int, Verdict] = {}
    unclear: list[tuple[int, int]] = []
    for rule in profile.get("syscalls") or ():
        action = verdict_of(rule["action"], rule.get("errnoRet")).action
        if action == default.action:
            continue
        alternatives = _alternatives(rule.get("args") or ())
        for name in rule["names"]:
            if name in table:
                _add(found, table[name], Verdict(action, alternatives))
            route = multiplexed(architecture, name)
            if route and (alternatives or name not in table):
                unclear.append((table[route[0]], action))
            elif route:
                code = Comparison(0, "SCMP_CMP_EQ", route[1], 0)
                _add(found, table[route[0]], Verdict(action, ((code,),)))
    # What libseccomp makes of such a rule is peculiar; it does not matter where the multiplexer is ruled as a whole.
    if any(found.get(number) != Verdict(action) for number, action in unclear):
        raise Unsupported("a rule for a multiplexed call")
    return found


def _add(found: dict[int, Verdict], number: int, verdict: Verdict) -> None:
    """Put a rule beside those of the same call; only equal actions can be put together without an order of rules."""
    present = found.get(number)
    if present is None:
        found[number] = verdict
    elif present.action != verdict.action:
        raise Unsupported(f"two actions for system call {number}")
    elif not present.alternatives or not verdict.alternatives:
        found[number] = Verdict(verdict.action)
    else:
        found[number] = Verdict(verdict.action, (*present.alternatives, *verdict.alternatives))


def _alternatives(arguments: Iterable[Json]) -> tuple[tuple[Comparison, ...], ...]:
    """Return the rule's conditions: together, or each for itself where two look at one argument (as runc and crun)."""
    comparisons = tuple(
        Comparison(argument.get("index", 0), argument["op"], argument.get("value", 0), argument.get("valueTwo", 0))
        for argument in arguments
    )
    for comparison in comparisons:
        if not 0 <= comparison.index < 6 or not 0 <= comparison.value < 2**64 or not 0 <= comparison.value_two < 2**64:
            raise Unsupported(f"argument {comparison}")
        if comparison.op.removeprefix("SCMP_CMP_") not in ("EQ", "NE", "LT", "LE", "GE", "GT", "MASKED_EQ"):
            raise Unsupported(f"operator {comparison.op}")
    if not comparisons:
        return ()
    if len({comparison.index for comparison in comparisons}) < len(comparisons):
        return tuple((comparison,) for comparison in comparisons)
    return (comparisons,)


def verdict_of(name: str, errno: int | None) -> Verdict:
    """Return an action of linux.seccomp as the value that a filter returns; ERRNO and TRACE carry EPERM by default."""
    value = _ACTIONS.get(name)
    if value is None:
        raise Unsupported(f"action {name}")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (_EPERM if errno is None else errno) & 0xFFFF
    return Verdict(value)
