"""A fake of OSV's advisory service, `POST /v1/query`, written from its published interface.

https://google.github.io/osv.dev/post-v1-query/ and https://ossf.github.io/osv-schema/. It holds a client to what is
written there; it is no proof of what the real service answers, and its advisories are made up.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.servers.http_fake import Answer, HTTPFake, Request, ViolationError

_PATH = "/v1/query"
#: PEP 503, in which PyPI's names stand at OSV.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Advisory:
    """A vulnerability of some versions of a package of PyPI."""

    id: str
    package: str
    versions: tuple[str, ...]
    fixed: str | None = None
    aliases: tuple[str, ...] = ()
    schema_version: str = "1.7.0"

    def record(self) -> dict[str, Any]:
        """Return it in the OSV schema."""
        events: list[dict[str, str]] = [{"introduced": "0"}]
        if self.fixed is not None:
            events.append({"fixed": self.fixed})
        affected = {
            "package": {"ecosystem": "PyPI", "name": self.package, "purl": f"pkg:pypi/{self.package}"},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
            "versions": list(self.versions),
        }
        return {
            "schema_version": self.schema_version,
            "id": self.id,
            "aliases": list(self.aliases),
            "published": "2026-11-01T00:00:00Z",
            "modified": "2026-11-02T00:00:00Z",
            "summary": "made up for a test",
            "affected": [affected],
            "references": [{"type": "ADVISORY", "url": "https://example.org/advisory"}],
        }


class OSVFake(HTTPFake):
    """The service, with the advisories that a test gives it."""

    def __init__(self, *advisories: Advisory) -> None:
        super().__init__()
        self.advisories = advisories
        #: name and version of each query
        self.asked: list[tuple[str, str]] = []

    @property
    def query_url(self) -> str:
        """Where queries go."""
        return self.url + _PATH

    def answer(self, request: Request) -> Answer:
        """Return the advisories of one version of one package."""
        if (request.method, request.target) != ("POST", _PATH):
            raise ViolationError("not POST /v1/query")
        name, version = _query(request.body)
        self.asked.append((name, version))
        found = [a.record() for a in self.advisories if a.package == name and version in a.versions]
        # The real one leaves the member out where there is none.
        return Answer(200, {"vulns": found} if found else {})

    def invalid(self, request: Request) -> Answer:
        """Return what a gRPC gateway says of an invalid argument."""
        return Answer(400, {"code": 3, "message": "Invalid query."})


def _query(body: bytes) -> tuple[str, str]:
    try:
        query = json.loads(body)
    except ValueError as exc:
        raise ViolationError("the body is not JSON") from exc
    if not isinstance(query, dict) or set(query) != {"package", "version"}:
        raise ViolationError("not a query by package and version")
    package, version = query["package"], query["version"]
    if not isinstance(package, dict) or set(package) != {"name", "ecosystem"} or package["ecosystem"] != "PyPI":
        raise ViolationError("not a package of PyPI by its name")
    if not isinstance(package["name"], str) or not _NAME.fullmatch(package["name"]):
        raise ViolationError("the name is not normalised")
    if not isinstance(version, str) or not version:
        raise ViolationError("no version")
    return package["name"], version
