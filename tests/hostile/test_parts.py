"""Attack 24 on the wire: a host that loses parts and replies gets the same bytes again, whatever it asks for."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest

from sovstore.errors import StoreError
from tests.hosts import cheap_key_files
from tests.servers.faults import Faults
from tests.servers.tap import tap
from tests.stores import make_store, on_azure, on_s3, open_fs

MIB = 2**20


def _part(target: str) -> str | None:
    """Return the object and the part that a request sends; None where it sends none."""
    if "comp=blocklist" in target:
        return None
    path, _, query = target.partition("?")
    words = dict(pair.partition("=")[::2] for pair in query.split("&"))
    number = words.get("partNumber") or words.get("blockid")
    return f"{path} {words.get('uploadId', '')} {number}" if number else None


@pytest.mark.parametrize("transport", [None, "obstore"])
@pytest.mark.parametrize("host", ["s3", "azurite"])
def test_24_parts_that_are_sent_again(
    host: str, transport: str | None, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sealing again for a retry would use nonces twice: the difference of two plaintexts, and forgeries, for free.
    cheap_key_files(monkeypatch)
    through = request.getfixturevalue(f"{host}_faults")()
    with tap(through.proxy.port) as tapped:
        server = through.server.at(tapped.endpoint_url)
        settings = {"transport": transport} if transport else {}
        place = {"s3": on_s3, "azurite": on_azure}[host](server, **settings)
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
        fs = open_fs(make_store(tmp_path, options={"part_size": 5 * MIB}, **place))
        fs.ls("")
        for seed, fault in enumerate(({"busy": True}, {"lose_reply": True}, {"reset_request_after": 100_000})):
            through.proxy.faults = Faults(**fault, methods=("PUT",), target=r"[?&](partNumber|blockid)=", limit=2)
            try:
                fs.pipe_file("object", random.Random(seed).randbytes(12 * MIB))
            except StoreError:
                # Some transports give up sooner than others; what was sent until then counts.
                assert transport == "obstore"
        through.proxy.faults = Faults()
        bodies: dict[str, list[bytes]] = defaultdict(list)
        for head, body in tapped.requests():
            if head.method == "PUT" and (part := _part(head.target)):
                bodies[part].append(body)
    again = [sent for sent in bodies.values() if len(sent) > 1]
    assert again, "no part was sent twice: the faults did not strike"
    for sent in again:
        whole = max(sent, key=len)
        assert all(whole.startswith(body) for body in sent)
    # And no two parts are the same, of one object or of several.
    firsts = [max(sent, key=len)[:4096] for sent in bodies.values() if max(sent, key=len)]
    assert len(set(firsts)) == len(firsts) >= 8
