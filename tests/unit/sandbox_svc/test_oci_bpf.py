"""The compiled seccomp filter, run on a model of the kernel's machine and held against libseccomp's."""

import ctypes
import ctypes.util
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_svc.oci import bpf
from sandbox_svc.oci.base import DEFAULT_CAPABILITIES
from sandbox_svc.oci.seccomp import default_profile
from sandbox_svc.oci.seccomp_rules import Unsupported, verdict_of
from sandbox_svc.oci.syscalls import X32_BIT, numbers

X86_64, X86, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0

Program = list[tuple[int, int, int, int]]


def run(program: Program, nr: int, arch: int, args: tuple[int, ...] = (0,) * 6) -> int:
    """Return what the program returns for a call, as the kernel's interpreter would (net/core/filter.c)."""
    data = struct.pack("=IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *args)
    accumulator, counter = 0, 0
    while True:
        code, jt, jf, k = program[counter]
        counter += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x06:
            return k
        elif code == 0x05:
            counter += k
        elif code == 0x54:
            accumulator &= k
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[code]
            counter += jt if holds else jf


@pytest.fixture(scope="module")
def default() -> Program:
    return bpf.compile_profile(default_profile(DEFAULT_CAPABILITIES, "x86_64", (6, 1)), "x86_64")


def test_default_profile_allows_ordinary_calls(default: Program) -> None:
    """What every program does is allowed under each ABI of the machine."""
    for name in ("read", "openat", "execve", "fchmodat2", "mseal"):
        assert run(default, numbers("x86_64")[name], X86_64) == ALLOW
        assert run(default, numbers("x86")[name], X86) == ALLOW
        assert run(default, numbers("x32")[name], X86_64) == ALLOW


def test_default_profile_refuses_mount_and_answers_clone3_with_enosys(default: Program) -> None:
    """Calls outside the profile get EPERM; clone3 gets ENOSYS; clone only without namespaces."""
    table = numbers("x86_64")
    assert run(default, table["mount"], X86_64) == EPERM
    assert run(default, table["clone3"], X86_64) == ENOSYS
    assert run(default, table["clone"], X86_64, (0x11, 0, 0, 0, 0, 0)) == ALLOW
    assert run(default, table["clone"], X86_64, (0x10000000, 0, 0, 0, 0, 0)) == EPERM


def test_default_profile_judges_sockets_by_family(default: Program) -> None:
    """AF_ALG and AF_VSOCK are refused, AF_INET6 and AF_XDP are not."""
    socket = numbers("x86_64")["socket"]
    verdicts = {family: run(default, socket, X86_64, (family, 0, 0, 0, 0, 0)) for family in (1, 10, 38, 40, 44, 46)}
    assert verdicts == {1: ALLOW, 10: ALLOW, 38: EPERM, 40: EPERM, 44: ALLOW, 46: EPERM}


def test_newer_calls_get_enosys_and_foreign_architectures_die(default: Program) -> None:
    """A call newer than the table is "not implemented"; an ABI that the profile does not name is killed."""
    assert run(default, 600, X86_64) == ENOSYS
    assert run(default, 600, X86) == ENOSYS
    assert run(default, X32_BIT + 600, X86_64) == ENOSYS
    assert run(default, 0, AARCH64) == KILL


def test_x32_calls_die_where_the_profile_does_not_name_x32() -> None:
    """Without x32 among the architectures, a number with its bit is no native call."""
    program = bpf.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}, "x86_64")
    assert run(program, X32_BIT, X86_64) == KILL
    assert run(program, 0, X86_64) == ALLOW


@pytest.mark.parametrize("capabilities", [DEFAULT_CAPABILITIES, (), ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF")])
def test_default_profile_fits_on_every_machine(capabilities: tuple[str, ...]) -> None:
    """The default profile compiles for both machines, in an array that the kernel takes."""
    for machine in ("x86_64", "aarch64"):
        program = bpf.compile_profile(default_profile(capabilities, machine, (6, 1)), machine)
        assert len(program) <= 2000
        assert len(bpf.assemble(program)) == 8 * len(program)


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MIPS"]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["read"], "action": "SCMP_ACT_KILL"},
            ],
        },
    ],
)
def test_what_cannot_be_compiled_is_left_to_the_runtime(profile: dict[str, Any]) -> None:
    """Listeners, foreign architectures and rules that need an order have no annotation."""
    assert bpf.annotation(profile, "x86_64") is None
    assert bpf.annotation({"defaultAction": "SCMP_ACT_ALLOW"}, "sparc64") is None


# --- against libseccomp ---


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
TOKENS = {"SCMP_ARCH_X86_64": X86_64, "SCMP_ARCH_X86": X86, "SCMP_ARCH_X32": 0x4000003E}
TOKENS |= {"SCMP_ARCH_AARCH64": AARCH64, "SCMP_ARCH_ARM": ARM}


def load_libseccomp() -> ctypes.CDLL | None:
    found = ctypes.util.find_library("seccomp")
    if not found:
        return None
    library = ctypes.CDLL(found)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    return library


LIBRARY = load_libseccomp()
needs_libseccomp = pytest.mark.skipif(LIBRARY is None or os.uname().machine != "x86_64", reason="no libseccomp here")


def compile_with_libseccomp(profile: dict[str, Any]) -> Program:
    """Compile as crun does: every rule by name, conditions together, or one by one where an index repeats."""
    library = LIBRARY
    assert library is not None
    default = verdict_of(profile["defaultAction"], profile.get("defaultErrnoRet")).action
    context = library.seccomp_init(default)
    try:
        for name in profile.get("architectures", ()):
            assert library.seccomp_arch_add(context, TOKENS[name]) in (0, -17)
        for rule in profile.get("syscalls", ()):
            action = verdict_of(rule["action"], rule.get("errnoRet")).action
            if action == default:
                continue
            for name in rule["names"]:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number == -1:
                    continue
                args = [
                    _Compare(a["index"], OPS[a["op"][9:]], a["value"], a.get("valueTwo", 0))
                    for a in rule.get("args", ())
                ]
                repeats = len({a.arg for a in args}) < len(args)
                for group in [[a] for a in args] if repeats else [args]:
                    array = (_Compare * len(group))(*group)
                    result = library.seccomp_rule_add_array(context, action, number, len(group), array)
                    assert result == 0, (name, result)
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            file.seek(0)
            return [struct.unpack("=HBBI", chunk) for chunk in iter(lambda: file.read(8), b"")]
    finally:
        library.seccomp_release(context)


def calls(highest: int = 470) -> Iterator[tuple[int, int]]:
    """Every call that libseccomp knows, of all three ABIs, and numbers that are none."""
    for number in (*range(highest + 1), 0xFFFFFFFF):
        yield X86_64, number
        yield X86, number
    for number in range(highest + 1):
        yield X86_64, X32_BIT + number


def known_to_libseccomp(arch: int, number: int) -> bool:
    """Tell whether libseccomp has a name for the number: of later kernels' calls ours knows more."""
    assert LIBRARY is not None
    token = 0x4000003E if arch == X86_64 and number & X32_BIT else arch
    LIBRARY.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    return bool(LIBRARY.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(token), ctypes.c_int(number & 0x7FFFFFFF)))


@needs_libseccomp
@pytest.mark.parametrize("capabilities", [DEFAULT_CAPABILITIES, (), ("CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_SYS_TIME")])
def test_default_profile_equals_libseccomps(capabilities: tuple[str, ...]) -> None:
    """For every call that libseccomp knows and arguments on each side of the conditions, both filters agree."""
    profile = default_profile(capabilities, "x86_64", (6, 1))
    ours, theirs = bpf.compile_profile(profile, "x86_64"), compile_with_libseccomp(profile)
    arguments = [0, 1, 8, 37, 38, 39, 40, 44, 46, 0x20000, 0x20008, 0x10000000, 0xFFFFFFFF, 1 << 33, (1 << 33) + 1]
    for arch, number in calls():
        if not known_to_libseccomp(arch, number):
            continue
        for argument in arguments:
            if arch == X86 and argument > 0xFFFFFFFF:
                continue
            args = (argument, 0, 0, 0, 0, 0)
            assert run(ours, number, arch, args) == run(theirs, number, arch, args), (hex(arch), number, argument)


NAMES = st.sampled_from(
    ["read", "write", "close", "clone", "ioctl", "socket", "ipc", "socketcall", "semop", "mq_open", "accept"]
)
VALUES = st.one_of(st.integers(0, 20), st.sampled_from([2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64 - 1]))
ARGUMENTS = st.lists(
    st.builds(
        lambda index, op, value, two: {
            "index": index,
            "op": f"SCMP_CMP_{op}",
            "value": value,
            "valueTwo": two & value if op == "MASKED_EQ" else 0,
        },
        st.integers(0, 2),
        st.sampled_from(sorted(OPS)),
        VALUES,
        VALUES,
    ),
    max_size=2,
    unique_by=lambda argument: argument["index"],
)


@needs_libseccomp
@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(NAMES, min_size=1, max_size=3, unique=True),
    args=ARGUMENTS,
    default=st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"]),
    architectures=st.sets(st.sampled_from(["SCMP_ARCH_X86", "SCMP_ARCH_X32"])),
    values=st.lists(VALUES, min_size=3, max_size=3),
)
def test_any_rule_equals_libseccomps(
    names: list[str], args: list[dict[str, Any]], default: str, architectures: set[str], values: list[int]
) -> None:
    """For one rule with up to two conditions and any arguments, both filters agree on every call of each ABI."""
    profile = {
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64", *sorted(architectures)],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": args}],
    }
    try:
        ours = bpf.compile_profile(profile, "x86_64")
    except Unsupported:
        assert "SCMP_ARCH_X86" in architectures  # socketcall and ipc are what ours leaves to libseccomp
        return
    theirs = compile_with_libseccomp(profile)
    tried = [values, [a["value"] for a in args] + [0] * 3]
    for arch, number in calls(300):
        for given_values in tried:
            narrow = arch == X86 or bool(number & X32_BIT)
            args6 = tuple(v & 0xFFFFFFFF if narrow else v for v in (*given_values[:3], 0, 0, 0))
            assert run(ours, number, arch, args6) == run(theirs, number, arch, args6), (hex(arch), number, args6)
