"""One-time tickets: sandbox-svc registers what a stream may do, stream-svc redeems it."""

from bulkhead.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from bulkhead.proto.shim_pb2 import AddTicketRequest
from sandbox_svc.shim.loop import Loop, Timer

#: Seconds that a ticket is good for, where its maker does not say.
TTL = 60.0
#: Tickets that may wait at once: each of them is one kubelet call that nobody followed up.
LIMIT = 1000
#: The shortest token taken.
TOKEN_LENGTH = 32


class Tickets:
    """The tickets that have not been redeemed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tickets: dict[str, tuple[AddTicketRequest, Timer]] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: AddTicketRequest) -> None:
        """Keep a ticket until it is redeemed or its time is over."""
        token = ticket.token
        if len(token) < TOKEN_LENGTH:
            raise InvalidArgument(f"ticket token of {len(token)} characters, at least {TOKEN_LENGTH} are needed")
        if ticket.WhichOneof("what") is None:
            raise InvalidArgument("ticket is for neither exec nor attach nor port_forward")
        if token in self._tickets:
            raise AlreadyExists("a ticket of this token exists")
        if len(self._tickets) >= LIMIT:
            raise ResourceExhausted(f"{LIMIT} tickets wait to be redeemed")
        timer = self._loop.later(ticket.ttl_ms / 1000 or TTL, lambda: self._tickets.pop(token, None))
        self._tickets[token] = ticket, timer

    def redeem(self, token: object) -> AddTicketRequest:
        """Return a ticket and forget it; NotFound if it is unknown, used or expired."""
        found = self._tickets.pop(token, None) if isinstance(token, str) else None
        if found is None:
            raise NotFound("the ticket is unknown, used or expired")
        ticket, timer = found
        timer.cancel()
        return ticket
