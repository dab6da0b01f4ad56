"""What a test can break between a client and a server, and which requests it strikes."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tests.servers.wire import Head

#: targets of whole objects and of ranges of them: neither listings nor parts, blocks or other sub-resources
OBJECTS = r"^[^?]*$"
#: targets of listings of objects, of S3 and of Azure
LISTINGS = r"[?&](list-type=|delimiter=|marker=|comp=list(&|$))"

#: what S3 and Azure send with 503, with their word for it
BUSY_DOCUMENT = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'

#: faults that end the reply after a number of its bytes
CUTS = frozenset({"reset_after", "close_after", "stall_after"})

_KINDS = (
    "busy",
    "refuse_with",
    "lose_reply",
    "reset_request_after",
    "wrong_content_range",
    "whole_object",
    "shorter_by",
    "longer_by",
    "corrupt_at",
    "packed",
    *sorted(CUTS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """One kind of fault and when it strikes; the same seed and the same requests give the same faults."""

    #: seconds that every request waits, whatever the fields below say
    latency_s: float = 0

    #: 503 and an error document at once; the server never hears of the request
    busy: bool = False
    #: this status and an error document of this code at once; the server never hears of the request
    refuse_with: tuple[int, str] | None = None
    #: the server does what it was asked; the client gets a reset and no byte of the reply
    lose_reply: bool = False
    #: reset after so many bytes of a request's body: the server never has it whole
    reset_request_after: int | None = None
    #: reset after so many bytes of a reply's body
    reset_after: int | None = None
    #: an orderly end after so many bytes of a reply's body, which its Content-Length belies
    close_after: int | None = None
    #: nothing more after so many bytes of a reply's body, until the client gives up
    stall_after: int | None = None
    #: a Content-Range one byte further on than the body
    wrong_content_range: bool = False
    #: status 200 and the whole object instead of 206 and the range
    whole_object: bool = False
    #: so many bytes fewer, and a Content-Length that agrees
    shorter_by: int | None = None
    #: so many bytes more, and a Content-Length that agrees
    longer_by: int | None = None
    #: one bit of the byte at this offset of the reply's body
    corrupt_at: int | None = None
    #: the body as gzip with so many zeros behind it, and a Content-Encoding that says so: a client unpacks it unasked
    packed: int | None = None

    #: which requests, by method and by a pattern searched in the target; and how many of those
    methods: tuple[str, ...] = ("GET",)
    target: str = ""
    probability: float = 1
    #: no more faults than this
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(kinds := self._kinds()) > 1:
            raise ValueError(f"one kind of fault at a time, not {', '.join(kinds)}")

    @property
    def kind(self) -> str | None:
        """The name of the field that says what is broken."""
        return next(iter(self._kinds()), None)

    @property
    def size(self) -> int:
        """The number of bytes that the kind takes."""
        return int(getattr(self, self.kind)) if self.kind else 0

    def concern(self, request: Request) -> bool:
        """Say whether a request is one of those that can be struck."""
        return request.method in self.methods and re.search(self.target, request.target) is not None

    def can_change(self, reply: Head) -> bool:
        """Say whether a reply has what the fault would change; a fault that could not be seen is none."""
        if self.kind in {"wrong_content_range", "whole_object"}:
            return reply.status == 206 and reply.get("Content-Range") is not None
        if self.kind in {"shorter_by", "longer_by", "corrupt_at", "packed"}:
            least = self.size if self.kind in {"shorter_by", "corrupt_at"} else 0
            return reply.status in {200, 206} and (reply.length or 0) > least
        if self.kind in CUTS:
            return reply.length is None or reply.length > self.size
        return self.kind == "lose_reply"

    def _kinds(self) -> list[str]:
        # Not by truth: 0 bytes is a place, too.
        return [name for name in _KINDS if getattr(self, name) is not None and getattr(self, name) is not False]


@dataclass(slots=True)
class Request:
    """A request that came through, and what became of it."""

    method: str
    target: str
    range: str | None
    #: of the server's reply, whatever the client got of it
    status: int | None = None
    #: the kind of the fault it met
    fault: str | None = None


class Dice:
    """Decides which requests meet a fault."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._random = random.Random(faults.seed)
        self._left = faults.limit

    def strike(self, request: Request) -> bool:
        """Say whether this request meets the fault, and note it there."""
        faults = self.faults
        if not faults.concern(request) or self._left == 0 or self._random.random() >= faults.probability:
            return False
        if self._left is not None:
            self._left -= 1
        request.fault = faults.kind
        return True
