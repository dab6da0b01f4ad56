"""All targets, by name."""

from __future__ import annotations

import os

from tests.fuzz import secrets

# For the drivers whose credentials are looked up when they are made.
os.environ.setdefault("SOVSTORE_FUZZ_TOKEN", secrets.TOKEN)

from tests.fuzz import keysets, objects, replies, settings  # they read the environment
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        objects.HEADER,
        objects.BODY,
        objects.NAMES,
        keysets.KEYSET,
        keysets.RECOVERY,
        settings.CONFIG,
        settings.URI,
        replies.TTLV,
        replies.REPLIES,
    )
}
