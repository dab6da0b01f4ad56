"""`check` on real servers: what it measures, what it says of a wrong catalogue, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from sovstore.backends import providers, s3_probe
from sovstore.backends.base import Place
from sovstore.backends.registry import open_backend
from sovstore.check import check
from sovstore.check.tls import check_tls
from sovstore.errors import StoreError
from tests.servers.facts import CEPH, MOTO

pytestmark = pytest.mark.usefixtures("small_parts")

_SECRET = "canary-secret-key-77ab"
#: shared/reference/backends.md, section 1
_ON_CEPH = {"read:match", "put:create", "put:replace"}
_ON_MOTO = {"read:match", "put:create", "put:replace", "delete:match"}
_ON_AZURITE = {*_ON_MOTO, "complete:create", "complete:replace"}


def _entry(name, **facts):
    return providers.parse(name, {"like": "s3", **facts}, "tests", providers.catalogue())


def _s3_place(server, provider=CEPH, prefix="root", **options: Any):
    bucket = server.create_bucket(f"b{uuid4().hex[:12]}")
    return Place(provider, f"{bucket}/{prefix}".rstrip("/"), options={**server.storage_options, **options})


def _results(report):
    return {finding.check: finding.result for finding in report.findings}


def _kept(report):
    return {name for name, answer in report.probe.conditions.items() if answer.value}


def _found(report, check_name):
    return next(finding for finding in report.findings if finding.check == check_name)


async def _left(place):
    """Return what lies below the root, and how many uploads are unfinished there."""
    backend = open_backend(replace(place, transport=None))
    try:
        names = [found.name async for found in backend.list("", recursive=True)]
        return names, await backend.sweep(timedelta(days=-2), dry_run=True)
    finally:
        await backend.close()


def _versions(server, place):
    with contextlib.closing(server.client()) as client:
        page = client.list_object_versions(Bucket=place.root.partition("/")[0])
    return [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]


def _run(place, **options):
    report = asyncio.run(check(place, **options))
    assert asyncio.run(_left(place)) == ([], 0)
    return report


# What is measured


def test_ceph_keeps_what_is_known_of_it(s3_server, usual_parts):
    steps = []
    report = _run(_s3_place(s3_server), progress=steps.append)
    assert _kept(report) == _ON_CEPH
    assert set(report.probe.conditions) == set(providers.CONDITIONS)
    assert all(answer.value is not None for answer in report.probe.conditions.values())
    assert report.probe.ability("etag_quotes").value == "bare"
    assert report.probe.ability("smallest_part").value == 5 * 2**20
    assert report.probe.ability("versioning").value is False
    assert report.probe.ability("anonymous_read").value is False
    assert report.ok
    assert report.entry == {}
    assert _results(report)["condition complete:replace"] == "missing"
    assert "the last one wins" in _found(report, "condition complete:replace").cost
    assert steps[:2] == ["connection", "rights needed"]


def test_over_tls(s3_server):
    tls = s3_server.over_tls
    report = _run(replace(_s3_place(tls), ca_file=str(tls.ca_file)))
    assert report.ok
    assert _kept(report) == _ON_CEPH
    assert _results(report)["TLS"] == "ok"
    assert "TLSv1.3" in _found(report, "TLS").detail
    # Ceph 16 refuses the trailer that the SDK sends by default over TLS.
    assert report.probe.ability("checksums").value is False


def test_moto_keeps_what_is_known_of_it(moto_server, usual_parts):
    # It looks first and writes then, on many threads: now and then a race has two winners, and the check says so.
    for _ in range(5):
        report = _run(_s3_place(moto_server, MOTO))
        if _kept(report) == _ON_MOTO:
            break
        assert _kept(report) <= _ON_MOTO
        for name in _ON_MOTO - _kept(report):
            assert "were told that they won" in report.probe.condition(name).reason
    assert _kept(report) == _ON_MOTO
    # It refuses the header of one request, and lets several at once through.
    assert "won" in report.probe.condition("complete:create").reason
    assert report.entry == {}
    # It looks at no credentials when names are listed.
    assert [f.check for f in report.findings if f.result == "failed"] == ["public listing"]


@pytest.mark.parametrize("transport", [None, "obstore"])
def test_azurite_keeps_all(azurite_server, monkeypatch, transport, usual_parts):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
    container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
    place = Place(providers.catalogue()["azurite"], f"{container}/root", transport=transport)
    report = _run(place)
    assert _kept(report) == _ON_AZURITE
    assert report.endpoint == azurite_server.blob_endpoint
    assert report.ok
    assert report.entry == {}
    with azurite_server.client() as client, client.get_container_client(container) as blobs:
        assert not list(blobs.list_blobs(include=["uncommittedblobs"]))


# What the catalogue says


def test_a_host_of_which_nothing_is_known(s3_server):
    report = _run(_s3_place(s3_server, providers.catalogue()["s3"]))
    assert report.ok
    assert report.entry == {"conditions": ["read:match", "put:create", "put:replace"], "etag_quotes": "bare"}
    assert "the catalogue does not say so" in _found(report, "condition put:create").detail
    # With that entry, there is nothing left to say.
    assert _run(_s3_place(s3_server, _entry("mine", **report.entry))).entry == {}


def test_a_catalogue_that_claims_too_much(s3_server):
    liar = _entry("liar", conditions=[*_ON_CEPH, "complete:create"], etag_quotes="bare")
    report = _run(_s3_place(s3_server, liar))
    assert not report.ok
    found = _found(report, "condition complete:create")
    assert found.result == "failed"
    assert "the catalogue says that it is kept; measured: it is not" in found.detail
    assert set(report.entry["conditions"]) == _ON_CEPH


def test_a_catalogue_with_the_wrong_quotes(s3_server):
    report = _run(_s3_place(s3_server, _entry("liar", conditions=sorted(_ON_CEPH), etag_quotes="quoted")))
    assert _found(report, "ETag in conditions").result == "failed"
    assert report.entry["etag_quotes"] == "bare"


def test_checksums_that_the_host_refuses(s3_server):
    tls = s3_server.over_tls
    liar = _entry("liar", conditions=sorted(_ON_CEPH), etag_quotes="bare", checksums="when_supported")
    place = _s3_place(tls, liar)
    # The options of the tests would hide what the catalogue says.
    place = replace(place, ca_file=str(tls.ca_file), options={**place.options, "config_kwargs": {}})
    report = asyncio.run(check(place))
    assert not report.ok


# Who may do what


def test_a_wrong_secret_key(s3_server):
    place = _s3_place(s3_server, secret=_SECRET)
    report = asyncio.run(check(place))
    found = report.findings[0]
    assert (found.check, found.result) == ("connection", "failed")
    assert "SignatureDoesNotMatch" in found.detail
    assert "sovstore login" in found.cost
    assert [f.check for f in report.findings] == ["connection", "TLS"]
    assert _SECRET not in repr(report)


def test_a_missing_bucket(s3_server):
    place = replace(_s3_place(s3_server), root=f"no{uuid4().hex[:8]}/root")
    report = asyncio.run(check(place))
    assert "there is no bucket" in report.findings[0].detail
    assert not report.ok


def test_a_missing_container(azurite_server, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
    report = asyncio.run(check(Place(providers.catalogue()["azurite"], "nosuchcontainer/root")))
    assert "there is no container" in report.findings[0].detail


def test_a_host_that_is_not_there():
    once = {"retries": {"total_max_attempts": 1}}
    options = {"key": "k", "secret": _SECRET, "config_kwargs": once}
    place = Place(CEPH, "bucket/root", endpoint="http://127.0.0.1:9", options=options)
    report = asyncio.run(check(place))
    assert report.findings[0].result == "failed"
    assert report.endpoint == "http://127.0.0.1:9"


def test_credentials_that_only_list(s3_server):
    place = _s3_place(s3_server)
    with contextlib.closing(s3_server.client()) as client:
        client.put_bucket_acl(Bucket=place.root.partition("/")[0], ACL="public-read")
    anybody = {key: value for key, value in place.options.items() if key not in ("key", "secret")}
    report = asyncio.run(check(replace(place, options={**anybody, "anon": True})))
    assert report.findings[0].detail == "the host refuses to write"
    assert _found(_run(place), "public listing").result == "failed"


def _policy(server, place, effect, *actions):
    bucket = place.root.partition("/")[0]
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": effect, "Principal": "*", "Action": list(actions), "Resource": resources}
    with contextlib.closing(server.client()) as client:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def test_objects_that_anybody_reads(s3_server):
    place = _s3_place(s3_server)
    _policy(s3_server, place, "Allow", "s3:GetObject")
    report = _run(place)
    assert _found(report, "public read").result == "failed"
    assert _found(report, "public listing").result == "ok"


def test_credentials_that_may_not_find_unfinished_uploads(s3_server):
    place = _s3_place(s3_server)
    _policy(s3_server, place, "Deny", "s3:ListBucketMultipartUploads")
    report = asyncio.run(check(place))
    found = _found(report, "rights needed")
    assert found.result == "failed"
    assert found.detail == "refused: list unfinished uploads"
    assert "gc cannot find" in found.cost


def test_it_says_what_it_could_not_clean_up(s3_server):
    place = _s3_place(s3_server)
    _policy(s3_server, place, "Deny", "s3:DeleteObject")
    report = asyncio.run(check(place))
    assert "delete" in _found(report, "rights needed").detail
    found = _found(report, "clean-up")
    assert "objects are left" in found.detail
    assert f"{place.root}/.sovstore/check/" in found.cost
    names, _ = asyncio.run(_left(place))
    assert all(name.startswith(".sovstore/check/") for name in names)


def test_versioning_is_said_and_no_old_version_is_left(s3_server):
    place = _s3_place(s3_server)
    with contextlib.closing(s3_server.client()) as client:
        client.put_bucket_versioning(Bucket=place.root.partition("/")[0], VersioningConfiguration={"Status": "Enabled"})
    report = asyncio.run(check(place))
    found = _found(report, "versioning")
    assert found.result == "missing"
    assert "erasure needs key destruction" in found.cost
    below = [version for version in _versions(s3_server, place) if version["Key"].startswith("root/")]
    assert below == []


# Cancelling


@pytest.mark.parametrize("step", ["connection", "upload in parts", "header replacement"])
@pytest.mark.parametrize("delay", [0, 0.06])
def test_cancelled_it_leaves_nothing(s3_server, step, delay):
    _cancelled(_s3_place(s3_server), step, delay)


@pytest.mark.parametrize("step", ["upload in parts", "conditions and permissions"])
def test_cancelled_it_leaves_no_old_version(s3_server, step):
    place = _s3_place(s3_server)
    with contextlib.closing(s3_server.client()) as client:
        client.put_bucket_versioning(Bucket=place.root.partition("/")[0], VersioningConfiguration={"Status": "Enabled"})
    _cancelled(place, step, 0.05)
    assert [version for version in _versions(s3_server, place) if version["Key"].startswith("root/")] == []


@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_cancelled_while_it_measures_it_leaves_nothing(s3_server, delay):
    _cancelled(_s3_place(s3_server), "conditions and permissions", delay)


class _Endless:
    """A host that goes on listing versions: as many different pages as there are, again and again."""

    prefix = "root/"

    def __init__(self, pages):
        self.client, self.asked, self._pages = self, 0, pages

    async def call(self, _, operation, **arguments):
        if operation != "list_object_versions":
            assert arguments["Key"].startswith("root/scratch/")
            return {}
        self.asked += 1
        number = self.asked % self._pages
        theirs = {"Key": "root/theirs", "VersionId": "1"}
        return {"IsTruncated": True, "Versions": [{"Key": "root/scratch/a", "VersionId": f"{number}"}, theirs]}


@pytest.mark.parametrize(("pages", "asked"), [(1, 2), (2, 3), (10**9, 100)])
def test_a_host_that_lists_for_ever(pages, asked):
    host = _Endless(pages)
    with pytest.raises(StoreError, match="does not stop listing"):
        asyncio.run(s3_probe.purge_versions(host, "scratch"))
    assert host.asked == asked


def test_cancelled_on_azurite_it_leaves_nothing(azurite_server, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
    container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
    for step in ("upload in parts", "conditions and permissions"):
        _cancelled(Place(providers.catalogue()["azurite"], f"{container}/root"), step, 0.05)


def _cancelled(place, step, delay):
    asyncio.run(_cancel_at(place, step, delay))
    assert asyncio.run(_left(place)) == ([], 0)


async def _cancel_at(place, step, delay):
    loop, reached = asyncio.get_running_loop(), []

    def progress(name):
        if name == step:
            reached.append(name)
            loop.call_later(delay, task.cancel)

    task = loop.create_task(check(place, progress=progress))
    # A short step may end before.
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert reached


def test_cancelled_it_logs_what_it_could_not_clean_up(s3_server, caplog):
    place = _s3_place(s3_server)
    _policy(s3_server, place, "Deny", "s3:DeleteObject", "s3:DeleteObjectVersion")
    with caplog.at_level(logging.WARNING):
        asyncio.run(_cancel_at(place, "ranges", 0.05))
    assert "could not be cleaned up" in caplog.text


# TLS


def _tls(place, endpoint):
    return asyncio.run(check_tls(place, endpoint))


def test_a_certificate_of_nobody(s3_server):
    found = _tls(Place(CEPH, "bucket"), s3_server.over_tls.endpoint_url)
    assert found.result == "failed"
    assert "ca_file" in found.cost


def test_verification_that_is_switched_off(s3_server):
    place = Place(CEPH, "bucket", options={"client_kwargs": {"verify": False}})
    assert _tls(place, s3_server.over_tls.endpoint_url).result == "failed"
