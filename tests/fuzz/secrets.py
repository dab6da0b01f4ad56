"""The keys of the targets, and a check that an error shows none of them."""

from __future__ import annotations

import base64
import hashlib
import re

from sovstore.format.recovery import RecoveryKey
from sovstore.secret import Secret


def draw(label: str, size: int) -> bytes:
    """Return bytes that are the same in every run."""
    return hashlib.shake_256(b"sovstore fuzz " + label.encode()).digest(size)


STORE_ID, KEY_ID = draw("store id", 16), draw("key id", 16)
STORE_KEY, DEK, KSK, KEK, AUTH_KEY = (Secret(draw(name, 32)) for name in ("store", "dek", "ksk", "kek", "auth"))
NAME_KEY = Secret(draw("names", 64))
MLKEM_SEED, P384_SCALAR = draw("mlkem", 64), b"\0" + draw("p384", 47)
RECOVERY_KEY = RecoveryKey(MLKEM_SEED, P384_SCALAR)
#: What a service unwraps, and a token that is sent to it.
PAYLOAD, TOKEN = draw("payload", 32) + draw("context", 32), "canary-token-7c21"

_RAW = [key.reveal() for key in (STORE_KEY, DEK, KSK, KEK, AUTH_KEY, NAME_KEY)]
_RAW += [MLKEM_SEED, P384_SCALAR, PAYLOAD[:32]]
#: Half a key is a leak too, so each is looked for by its first bytes.
_SHOWN = re.compile(
    "|".join(
        re.escape(form)
        for raw in _RAW
        for form in (raw[:15].hex(), base64.b64encode(raw[:15]).decode(), repr(raw[:15])[2:-1])
    )
    + "|"
    + re.escape(TOKEN)
)


def shown_in(error: BaseException) -> str | None:
    """Return the secret that an error, or what led to it, shows; None when it shows none."""
    link: BaseException | None = error
    while link is not None:
        if (found := _SHOWN.search(f"{link}\n{link!r}")) is not None:
            return found[0]
        link = link.__cause__ or link.__context__
    return None
