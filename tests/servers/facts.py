"""What is known of the servers of the tests, as a user would say it of a host of their own: `[providers.NAME]`."""

from __future__ import annotations

from sovstore.backends import providers

_SHIPPED = providers.catalogue()


def _entry(name: str, **facts: object) -> providers.Provider:
    return providers.parse(name, {"like": "s3", **facts}, "tests", _SHIPPED)


#: Ceph RGW 16: no condition on the completion of a multipart upload, on copies and on deletes.
CEPH = _entry("ceph", conditions=["read:match", "put:create", "put:replace"], etag_quotes="bare")
#: moto 5.2: no condition on copies. On completions it looks first itself, so that races have two winners.
MOTO = _entry("moto", conditions=["read:match", "put:create", "put:replace", "delete:match"], etag_quotes="quoted")
