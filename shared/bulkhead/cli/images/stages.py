"""What the stages of a transfer and of its parts are called, and how much of them is there."""

from collections.abc import Iterable

from bulkhead.proto import images_pb2 as pb

STATES = {
    pb.Part.WAITING: "waiting",
    pb.Part.MOVING: "moving",
    pb.Part.UNPACKING: "unpacking",
    pb.Part.DONE: "done",
    pb.Part.PRESENT: "exists",
    pb.Part.FAILED: "failed",
}
STAGES = {
    pb.Transfer.RESOLVING: "resolving",
    pb.Transfer.MOVING: "moving",
    pb.Transfer.COMMITTING: "committing",
    pb.Transfer.DONE: "done",
    pb.Transfer.FAILED: "failed",
}


def amounts(transfers: Iterable[pb.Transfer]) -> tuple[int, int]:
    """Return the bytes that are there and those expected, of all parts; one that several transfers have, once."""
    parts = {part.digest: part for transfer in transfers for part in transfer.parts}.values()
    return sum(part.done for part in parts), sum(part.size for part in parts)
