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
from functools import lru_cache

from sandbox_svc.oci.model import Json
from sandbox_svc.oci.seccomp_rules import (
    ENOSYS,
    ERRNO,
    KILL_THREAD,
    Comparison,
    Unsupported,
    Verdict,
    verdict_of,
    verdicts,
)
from sandbox_svc.oci.syscalls import BY_MACHINE, BY_NAME, X32, X32_BIT, X86_64, Architecture, numbers

ANNOTATION = "run.oci.seccomp_bpf_data"

#: The most instructions that the kernel takes (BPF_MAXINSNS).
MAX_INSTRUCTIONS = 4096

# linux/bpf_common.h
_LD, _AND, _JA, _JEQ, _JGT, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x06

# struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NR, _ARCH, _ARGS = 0, 4, 16

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
    default = verdict_of(profile["defaultAction"], profile.get("defaultErrnoRet"))
    program: list[Instruction] = [(_LD, 0, 0, _ARCH)]
    architectures = _architectures(profile, native)
    sections = {
        audit: _section(profile, [a for a in architectures if a.audit == audit], default)
        for audit in dict.fromkeys(a.audit for a in architectures)
    }
    for audit, body in sections.items():
        section = [(_LD, 0, 0, _NR), *body]
        program += [(_JEQ, 1, 0, audit), (_JA, 0, 0, len(section)), *section]
    program.append((_RET, 0, 0, KILL_THREAD))
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
    ruled: dict[int, Verdict] = {}
    narrow = {}
    for architecture in architectures:
        found = verdicts(profile, architecture, default)
        ruled.update(found)
        narrow.update(dict.fromkeys(found, not architecture.wide))
    ranges = _ranges(ruled, _gaps(architectures, default))
    return _tree(ranges, narrow, default)


def _gaps(architectures: list[Architecture], default: Verdict) -> list[tuple[int, Verdict]]:
    """Return from which number on which verdict holds for calls without a rule."""
    newer = Verdict(ERRNO | ENOSYS) if default.action & 0xFFFF0000 == ERRNO else default
    gaps = [(0, default)]
    for architecture in architectures:
        known = [number for number in numbers(architecture.column).values() if number & ~X32_BIT < 0x10000]
        if architecture is X32:
            gaps.append((X32_BIT, default))
        gaps.append((max(known) + 1, newer))
    if architectures[0] is X86_64 and X32 not in architectures:
        gaps.append((X32_BIT, Verdict(KILL_THREAD)))
    # -1 is the number that a tracer gives a call to skip; it is left to the default, as libseccomp does.
    return [*sorted(gaps, key=lambda gap: gap[0]), (0xFFFFFFFF, default)]


def _ranges(ruled: dict[int, Verdict], gaps: list[tuple[int, Verdict]]) -> list[tuple[int, Verdict]]:
    """Return (first number, verdict) of every run of equal verdicts, in order, covering all 32-bit numbers."""
    starts: dict[int, Verdict] = dict(gaps)

    def gap(number: int) -> Verdict:
        return next(verdict for first, verdict in reversed(gaps) if first <= number)

    for number in ruled:
        if number + 1 not in ruled:
            starts.setdefault(number + 1, gap(number + 1))
    starts.update(ruled)
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
