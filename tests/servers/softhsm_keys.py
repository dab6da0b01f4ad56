"""Makes one key in a token, as the JSON on standard input says. A program, since a login is for a whole process."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass


def main() -> None:
    """Make the key."""
    wanted = json.load(sys.stdin)
    token = pkcs11.lib(wanted["module"]).get_token(token_label=wanted["token"])
    attributes: dict[Any, Any] = {Attribute[name]: value for name, value in wanted["attributes"].items()}
    if Attribute.ID in attributes:
        attributes[Attribute.ID] = bytes.fromhex(attributes[Attribute.ID])
    with token.open(rw=True, user_pin=wanted["pin"]) as session:
        _make(session, wanted["kind"], wanted["label"], attributes)


def _make(session: Any, kind: str, label: str, attributes: dict[Any, Any]) -> None:
    if kind == "RSA":
        session.generate_keypair(KeyType.RSA, 2048, label=label, store=True)
    elif kind == "imported":
        fixed = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
        mine = {Attribute.LABEL: label, Attribute.TOKEN: True, Attribute.VALUE: os.urandom(32)}
        session.create_object({**attributes, **fixed, **mine})
    else:
        kind, _, bits = kind.partition("-")
        session.generate_key(
            KeyType[kind],
            int(bits or 256),
            label=label,
            store=True,
            capabilities=MechanismFlag(0),
            template=attributes,
        )


if __name__ == "__main__":
    main()
