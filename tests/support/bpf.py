"""A small interpreter of the instructions that our system call filters are made of."""

import struct


def answer(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Return what a filter answers for a call, as the kernel would run it (seccomp(2)); absent arguments are 0."""
    data = struct.pack("=iI7Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    position, accumulator = 0, 0
    while True:
        operation, true, false, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x15:
            position += true if accumulator == value else false
        elif operation == 0x45:
            position += true if accumulator & value else false
        else:
            assert operation == 0x06
            return int(value)
