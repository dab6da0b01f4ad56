"""Make the vectors of keysets whose text is refused: not canonical JSON, or not of the right members."""

import base64
from typing import Any

from tests.vectors.keyset_parts import (
    AUTH_KEY,
    URI,
    b64,
    body_of,
    canonical,
    compact,
    encrypted,
    entry,
    file_of,
    key_id,
    outer_of,
    refused,
    wrap,
)
from tests.vectors.make_objects import STORE_ID, Made


def make_texts() -> list[Made]:
    """Return the vectors."""
    return [*_file_texts(), *_body_texts()]


def _file_texts() -> list[Made]:
    """Return files that are not canonical JSON, or not of the right members, about a right body."""
    text = file_of(body_of())
    outer = outer_of(canonical(body_of()))
    tag, wrapped = outer["tag"], outer["wraps"][0]["wrapped"]
    body = canonical(body_of())
    unusual = file_of(body, wraps=[entry(URI, wrap(body)), entry("keyring://\u00e9\n\x7f", bytes(9))])
    texts = {
        "white-space": {
            "a space after the first colon": text.replace(":", ": ", 1),
            "a space after a comma between the wraps": "}, {".join(text.rsplit("},{", 1)),
            "a line feed at the end": text + "\n",
            "a space at the start": " " + text,
        },
        "key-order": {
            "tag before body": _ordered(outer, "tag", "body", "wraps"),
            "wrapped before kek": text.replace(
                f'"kek":"{URI}","wrapped":"{wrapped}"', f'"wrapped":"{wrapped}","kek":"{URI}"'
            ),
        },
        "duplicate-key": {
            "the same tag twice": text.replace('"tag":', f'"tag":"{tag}","tag":'),
            "the same kek twice": text.replace('{"kek":', f'{{"kek":"{URI}","kek":', 1),
        },
        "escape": {
            "\\u0022 for a quotation mark": text.replace('\\"', "\\u0022", 1),
            "\\/ for a slash": text.replace("keyring://", "keyring:\\/\\/"),
            "an escaped letter": text.replace("keyring:", "\\u006beyring:"),
            "capitals in an escape": unusual.replace("\\u00e9", "\\u00E9"),
            "a letter outside ASCII, in UTF-8": unusual.replace("\\u00e9", "\u00e9"),
            "the short escape of a line feed": unusual.replace("\\u000a", "\\n"),
            "a raw delete character": unusual.replace("\\u007f", "\x7f"),
        },
        "base64": {
            "a tag without padding": text.replace(tag, tag.rstrip("=")),
            "unused bits in the tag": text.replace(tag, tag[:-3] + chr(ord(tag[-3]) + 1) + "=="),
            "the base64url alphabet in the tag": text.replace(tag, _urlsafe(tag)),
            "a line feed in the tag": text.replace(tag, tag[:64] + "\\n" + tag[64:]),
        },
        "not-json": {
            "nothing": "",
            "the last brace is missing": text[:-1],
            "two objects": text + text,
            "a comma at the end": text[:-1] + ",}",
            "a comment": text + "//",
            "a byte order mark": "\ufeff" + text,
            "100,000 open brackets": "[" * 100_000,
            "a million open brackets as the tag": text.replace(f'"{tag}"', "[" * 1_000_000),
        },
        "type": {
            "an array": f"[{text}]",
            "a string": canonical(text),
            "null for the tag": text.replace(f'"{tag}"', "null"),
            "true for the tag": text.replace(f'"{tag}"', "true"),
            "a number for the tag": text.replace(f'"{tag}"', "1"),
            "the body is an object": canonical({**outer, "body": body_of()}),
            "wraps is an object": canonical({**outer, "wraps": outer["wraps"][0]}),
            "an entry of wraps is a string": canonical({**outer, "wraps": [URI]}),
        },
        "unknown-member": {
            "of the file": canonical({**outer, "zone": 1}),
            "of an entry of wraps": file_of(canonical(body_of()), wraps=[{**outer["wraps"][0], "zone": 1}]),
        },
        "missing-member": {
            f"{name} of the file": canonical({k: v for k, v in outer.items() if k != name}) for name in outer
        },
        "tag-size": {
            "63 bytes": text.replace(tag, b64(base64.b64decode(tag)[:63])),
            "65 bytes": text.replace(tag, b64(base64.b64decode(tag) + bytes(1))),
            "none": text.replace(tag, ""),
        },
    }
    made = [refused(cause, comment, value) for cause, some in texts.items() for comment, value in some.items()]
    for member in ("kek", "wrapped"):
        wraps = [{k: v for k, v in outer["wraps"][0].items() if k != member}]
        made.append(refused("missing-member", f"{member} of a wrap", file_of(canonical(body_of()), wraps=wraps)))
    assert all(item["file"] != compact(text) for item in made), "an edit changed nothing"
    return made


def _ordered(value: dict[str, Any], *names: str) -> str:
    return "{" + ",".join(f'"{name}":{canonical(value[name])}' for name in names) + "}"


def _urlsafe(text: str) -> str:
    return text.replace("+", "-").replace("/", "_")


def _body_texts() -> list[Made]:
    """Return bodies that are not canonical JSON in files that are, with a right tag and right wraps."""
    text = canonical(body_of())
    auth = body_of()["auth"]["key"]
    ident = key_id("auth")
    short = encrypted("auth", "auth", key=AUTH_KEY, bound_id=ident[2:])
    texts = {
        "white-space": {
            "a space after the first colon of the body": text.replace(":", ": ", 1),
            "a line feed after the body": text + "\n",
            "a tab in the body": text.replace(",", ",\t", 1),
        },
        "key-order": {"format first in the body": '{"format":1,' + text.replace('"format":1,', "")[1:]},
        "duplicate-key": {
            "the same format twice": text.replace('"format":1', '"format":1,"format":1'),
            "two versions, the last as before": text.replace('"version":7', '"version":6,"version":7'),
        },
        "float": {
            "version 7.0": text.replace('"version":7', '"version":7.0'),
            "version 7e0": text.replace('"version":7', '"version":7e0'),
            "created NaN": text.replace('"created":1767312000', '"created":NaN'),
            "created Infinity": text.replace('"created":1767312000', '"created":Infinity'),
        },
        "integer": {
            "version 07": text.replace('"version":7', '"version":07'),
            "created -0": text.replace('"created":1767312000', '"created":-0'),
            "created with 5000 digits": text.replace('"created":1767312000', f'"created":1{"0" * 4999}'),
        },
        "bool": {
            "format true": text.replace('"format":1', '"format":true'),
            "version true": text.replace('"version":7', '"version":true'),
            "created false": text.replace('"created":1767312000', '"created":false'),
        },
        "null": {
            "created null": text.replace('"created":1767312000', '"created":null'),
            "recovery null": text.replace('"recovery":[]', '"recovery":null'),
        },
        "hex": {
            "store id in capitals": text.replace(STORE_ID.hex(), STORE_ID.hex().upper()),
            "key id in capitals": text.replace(ident, ident.upper()),
            "key id of 15 bytes": text.replace(ident, ident[2:]).replace(auth, short),
            "key id with a space": text.replace(ident, ident[:-1] + " "),
            "key id with other digits": text.replace(ident, ident[:-1] + "\uff11"),
        },
        "base64": {
            "a key without padding": text.replace(auth, auth.rstrip("=")),
            "unused bits in a key": text.replace(auth, auth[:-2] + chr(ord(auth[-2]) + 1) + "="),
            "white space in a key": text.replace(auth, auth[:64] + " " + auth[64:]),
            "the base64url alphabet in a key": text.replace(auth, _urlsafe(auth)),
        },
        "escape": {"an escaped letter in the body": text.replace("primary", "\\u0070rimary")},
        "not-json": {
            "an empty body": "",
            "an array around the body": f"[{text}]",
            "100,000 open brackets": "[" * 100_000,
        },
    }
    assert all(value != text for some in texts.values() for value in some.values()), "an edit changed nothing"
    return [refused(cause, comment, file_of(value)) for cause, some in texts.items() for comment, value in some.items()]
