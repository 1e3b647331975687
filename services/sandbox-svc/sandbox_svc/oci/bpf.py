"""Seccomp profiles compiled to the classic BPF program that the kernel runs, for a runtime that takes it ready-made.

crun compiles linux.seccomp with libseccomp at every create and takes most of its time for it; handed the program in the
annotation `run.oci.seccomp_bpf_data` (base64 of the array of struct sock_filter), it does not. A profile is compiled
once per content and kept.

The program says what libseccomp's would: bad architectures are killed, calls without a rule get the default action. In
one point it says what runc's says and crun's does not: calls newer than the table of syscalls.tsv get ENOSYS where the
default is an errno, so that a newer libc falls back instead of failing with EPERM. What cannot be compiled faithfully
is refused (`Unsupported`), and the runtime then compiles the section itself.
"""

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sandbox_svc.oci.model import Json
from sandbox_svc.oci.syscalls import BY_MACHINE, BY_NAME, X32, X32_BIT, X86_64, Architecture, multiplexed, numbers

ANNOTATION = "run.oci.seccomp_bpf_data"

#: The most instructions that the kernel takes (BPF_MAXINSNS).
MAX_INSTRUCTIONS = 4096

# linux/bpf_common.h
_LD, _AND, _JA, _JEQ, _JGT, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x06

# struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NR, _ARCH, _ARGS = 0, 4, 16

_KILL_THREAD, _ERRNO = 0x00000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_ACTIONS = {
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
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


#: code, jt, jf, k of struct sock_filter.
Instruction = tuple[int, int, int, int]


def annotation(profile: Json, machine: str) -> str | None:
    """Return the value of crun's annotation for a linux.seccomp section, None where it cannot be compiled."""
    return _cached(json.dumps(profile, sort_keys=True), machine)


@lru_cache(maxsize=128)
def _cached(profile: str, machine: str) -> str | None:
    try:
        program = compile_profile(json.loads(profile), machine)
    except Unsupported:
        return None
    return base64.b64encode(assemble(program)).decode()


def assemble(program: Sequence[Instruction]) -> bytes:
    """Return the array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", code, jt, jf, k) for code, jt, jf, k in program)


def compile_profile(profile: Json, machine: str) -> list[Instruction]:
    """Return the program of a linux.seccomp section on a machine (platform.machine()); raises Unsupported."""
    native = BY_MACHINE.get(machine)
    if native is None or profile.get("listenerPath"):
        raise Unsupported(f"no compiler for {machine}, or for listeners")
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    program: list[Instruction] = [(_LD, 0, 0, _ARCH)]
    architectures = _architectures(profile, native)
    sections = {
        audit: _section(profile, [a for a in architectures if a.audit == audit], default)
        for audit in dict.fromkeys(a.audit for a in architectures)
    }
    for audit, body in sections.items():
        section = [(_LD, 0, 0, _NR), *body]
        program += [(_JEQ, 1, 0, audit), (_JA, 0, 0, len(section)), *section]
    program.append((_RET, 0, 0, _KILL_THREAD))
    if len(program) > MAX_INSTRUCTIONS:
        raise Unsupported(f"{len(program)} instructions")
    return program


def _architectures(profile: Json, native: Architecture) -> list[Architecture]:
    """Return those of the profile that this kernel serves, and always the native one first, as libseccomp does."""
    found = [native]
    for name in profile.get("architectures") or ():
        architecture = BY_NAME.get(name)
        if architecture is None:
            raise Unsupported(f"architecture {name}")
        if architecture not in found:
            found.append(architecture)
    return found


def _section(profile: Json, architectures: list[Architecture], default: Verdict) -> list[Instruction]:
    """Return the program for calls of one audit architecture, with the number in the accumulator."""
    verdicts: dict[int, Verdict] = {}
    narrow = {}
    for architecture in architectures:
        found = _verdicts(profile, architecture, default)
        verdicts.update(found)
        narrow.update(dict.fromkeys(found, not architecture.wide))
    ranges = _ranges(verdicts, _gaps(architectures, default))
    return _tree(ranges, narrow, default)


def _gaps(architectures: list[Architecture], default: Verdict) -> list[tuple[int, Verdict]]:
    """Return from which number on which verdict holds for calls without a rule."""
    newer = Verdict(_ERRNO | _ENOSYS) if default.action & 0xFFFF0000 == _ERRNO else default
    gaps = [(0, default)]
    for architecture in architectures:
        known = [number for number in numbers(architecture.column).values() if number & ~X32_BIT < 0x10000]
        if architecture is X32:
            gaps.append((X32_BIT, default))
        gaps.append((max(known) + 1, newer))
    if architectures[0] is X86_64 and X32 not in architectures:
        gaps.append((X32_BIT, Verdict(_KILL_THREAD)))
    # -1 is the number that a tracer gives a call to skip; it is left to the default, as libseccomp does.
    return [*sorted(gaps, key=lambda gap: gap[0]), (0xFFFFFFFF, default)]


def _ranges(verdicts: dict[int, Verdict], gaps: list[tuple[int, Verdict]]) -> list[tuple[int, Verdict]]:
    """Return (first number, verdict) of every run of equal verdicts, in order, covering all 32-bit numbers."""
    starts: dict[int, Verdict] = dict(gaps)

    def gap(number: int) -> Verdict:
        return next(verdict for first, verdict in reversed(gaps) if first <= number)

    for number in verdicts:
        if number + 1 not in verdicts:
            starts.setdefault(number + 1, gap(number + 1))
    starts.update(verdicts)
    ranges: list[tuple[int, Verdict]] = []
    for number in sorted(starts):
        if not ranges or ranges[-1][1] != starts[number]:
            ranges.append((number, starts[number]))
    return ranges


def _tree(ranges: list[tuple[int, Verdict]], narrow: dict[int, bool], default: Verdict) -> list[Instruction]:
    """Return a binary search for the range that holds the accumulator."""
    if len(ranges) == 1:
        first, verdict = ranges[0]
        return _leaf(verdict, narrow.get(first, False), default)
    middle = len(ranges) // 2
    left, right = _tree(ranges[:middle], narrow, default), _tree(ranges[middle:], narrow, default)
    pivot = ranges[middle][0]
    if len(left) < 256:
        return [(_JGE, len(left), 0, pivot), *left, *right]
    return [(_JGE, 0, 1, pivot), (_JA, 0, 0, len(left)), *left, *right]


def _leaf(verdict: Verdict, narrow: bool, default: Verdict) -> list[Instruction]:
    if not verdict.alternatives:
        return [(_RET, 0, 0, verdict.action)]
    then = [(_RET, 0, 0, verdict.action)]
    code = [line for alternative in verdict.alternatives for line in _all_hold(alternative, narrow, then)]
    return [*code, (_RET, 0, 0, default.action)]


def _all_hold(comparisons: Iterable[Comparison], narrow: bool, then: list[Instruction]) -> list[Instruction]:
    """Return code that runs `then` where all comparisons hold, and falls through where one does not."""
    code = then
    for comparison in reversed(list(comparisons)):
        code = _guard(comparison, narrow, code)
    if len(code) > 250:
        raise Unsupported("more comparisons than a jump can cross")
    return code


def _guard(comparison: Comparison, narrow: bool, then: list[Instruction]) -> list[Instruction]:
    """Return code that runs `then` where the comparison holds, and jumps past it where it does not.

    Arguments are 64-bit in seccomp_data, low word first (both machines are little-endian); 32-bit ABIs use the low one.
    """
    low, high = comparison.value & 0xFFFFFFFF, comparison.value >> 32
    load_low: Instruction = (_LD, 0, 0, _ARGS + 8 * comparison.index)
    load_high: Instruction = (_LD, 0, 0, _ARGS + 8 * comparison.index + 4)
    n = len(then)
    if comparison.op == "SCMP_CMP_MASKED_EQ":
        low_two, high_two = comparison.value_two & 0xFFFFFFFF, comparison.value_two >> 32
        tail: list[Instruction] = [load_low, (_AND, 0, 0, low), (_JEQ, 0, n, low_two), *then]
        return tail if narrow else [load_high, (_AND, 0, 0, high), (_JEQ, 0, len(tail), high_two), *tail]
    if comparison.op == "SCMP_CMP_EQ":
        tail = [load_low, (_JEQ, 0, n, low), *then]
        return tail if narrow else [load_high, (_JEQ, 0, len(tail), high), *tail]
    if comparison.op == "SCMP_CMP_NE":
        tail = [load_low, (_JEQ, n, 0, low), *then]
        # An unequal high word decides at once: past the two instructions that look at the low one.
        return tail if narrow else [load_high, (_JEQ, 0, 2, high), *tail]
    jump, holds = {
        "SCMP_CMP_LT": (_JGE, False),
        "SCMP_CMP_LE": (_JGT, False),
        "SCMP_CMP_GE": (_JGE, True),
        "SCMP_CMP_GT": (_JGT, True),
    }[comparison.op]
    tail = [load_low, (jump, 0, n, low) if holds else (jump, n, 0, low), *then]
    if narrow:
        return tail
    # A greater or smaller high word decides; an equal one leaves it to the low word.
    greater = 3 if holds else 3 + n
    smaller = 2 + n if holds else 2
    return [load_high, (_JGT, greater, 0, high), (_JEQ, 0, smaller, high), *tail]


def _verdicts(profile: Json, architecture: Architecture, default: Verdict) -> dict[int, Verdict]:
    """Return the verdict of every call that the profile names and the architecture has."""
    table = numbers(architecture.column)
    found: dict[int, Verdict] = {}
    unclear: list[tuple[int, int]] = []
    for rule in profile.get("syscalls") or ():
        action = _action(rule["action"], rule.get("errnoRet")).action
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


def _action(name: str, errno: int | None) -> Verdict:
    """Return an action of linux.seccomp as the value that a filter returns; ERRNO and TRACE carry EPERM by default."""
    value = _ACTIONS.get(name)
    if value is None:
        raise Unsupported(f"action {name}")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (_EPERM if errno is None else errno) & 0xFFFF
    return Verdict(value)
