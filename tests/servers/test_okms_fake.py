"""The fake of OVHcloud KMS is as strict as it says."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from contextlib import closing

import pytest

from tests.servers import okms_fake as fakes
from tests.servers import openapi

PLAIN = base64.b64encode(b"plaintext").decode()


@pytest.fixture
def fake(okms_fake):
    yield okms_fake
    # The violations of these tests are on purpose.
    okms_fake.violations.clear()


@pytest.fixture
def ask(fake):
    key, token = fake.add_key(), fake.token()
    context = ssl.create_default_context(cafile=str(fake.files.ca_file))

    def ask(action, body=None, *, method="POST", path=None, **headers):
        fields = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} | headers
        target = path or f"/api/{fake.okms_id}/v1/servicekey/{key.id}{action}"
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPSConnection(fake.endpoint.removeprefix("https://"), context=context)
        with closing(connection):
            connection.request(method, target, body=raw, headers=fields)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    return ask


def test_what_is_allowed_is_no_violation(fake, ask):
    status, sealed = ask("/encrypt", {"plaintext": PLAIN, "context": "a" * 64})
    assert status == 200
    assert ask("/decrypt", sealed | {"context": "a" * 64}) == (200, {"plaintext": PLAIN})
    assert ask("/decrypt", sealed | {"context": None})[0] == 400
    assert ask("", method="GET")[1]["type"] == "oct"
    assert ask("?format=jwk", method="GET")[0] == 200
    assert (fake.violations, len(fake.requests)) == ([], 5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        [],
        {},
        {"plaintext": ""},
        {"plaintext": 1},
        {"plaintext": None},
        {"plaintext": "_-_-"},
        {"plaintext": "YQ"},
        {"plaintext": "YR=="},
        {"plaintext": "A" * 5468},
        {"plaintext": PLAIN, "context": "a" * 65},
        {"plaintext": PLAIN, "context": 5},
        {"plaintext": PLAIN, "more": 1},
    ],
)
def test_a_body_that_is_not_allowed_is_a_violation(fake, ask, body):
    assert ask("/encrypt", body)[0] == 400
    assert (len(fake.violations) > 0, fake.requests) == (True, [])


@pytest.mark.parametrize("token", ["", "text", "a.b.c.d", "a.b.c.d.e.f", "a.b.c.d.e=", "A" * 5457 + "." * 4 + "AAAA"])
def test_a_ciphertext_that_is_not_allowed_is_a_violation(fake, ask, token):
    assert ask("/decrypt", {"ciphertext": token})[0] == 400
    assert len(fake.violations) > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/servicekey/{key}/encrypt"),
        ("POST", "/api/{okms}/v1/servicekey/{key}/rotate"),
        ("POST", "/api/{okms}/v1/servicekey/{key}/encrypt/"),
        ("GET", "/api/{okms}/v1/servicekey/{key}/encrypt"),
        ("GET", "/api/{okms}/v1/servicekey/{key}?format=pem"),
        ("GET", "/api/{okms}/v1/servicekey/{key}?other=1"),
        ("GET", "/api/{okms}/v1/servicekey/no-uuid"),
    ],
)
def test_an_operation_that_is_not_there_is_a_violation(fake, ask, method, path):
    path = path.format(okms=fake.okms_id, key=fake.add_key().id)
    body = {"plaintext": PLAIN} if method == "POST" else None
    assert ask("", body, method=method, path=path)[0] == 400
    assert len(fake.violations) > 0


def test_another_media_type_is_a_violation(fake, ask):
    assert ask("/encrypt", {"plaintext": PLAIN}, **{"Content-Type": "text/plain"})[0] == 400
    assert fake.violations == ["request: the media type is 'text/plain'"]


def test_a_reply_that_is_not_allowed_is_a_violation(fake, ask):
    fake.plan(503, fakes.AWAY)
    ask("", method="GET")
    fake.add_key()
    fake.keys[next(iter(fake.keys))].level = "unheard of"
    ask("", method="GET")
    assert [violation[:6] for violation in fake.violations] == ["reply:", "reply:"]


@pytest.mark.parametrize("authorization", ["", "Bearer nobody", "Basic abc"])
def test_nobody_is_let_in(ask, authorization):
    status, body = ask("", method="GET", Authorization=authorization)
    assert (status, body["error_code"] >> 12 & 0xF) == (401, 3)


def test_a_plan_is_followed_once(ask, fake):
    fake.plan(429, fakes.THROTTLED)
    assert [ask("", method="GET")[0] for _ in range(2)] == [429, 200]


def test_the_description_has_what_the_driver_uses():
    file = fakes.description_file()
    if file is None:
        pytest.skip("no OpenAPI description of OVHcloud KMS")
    for method, action in (("POST", "/encrypt"), ("POST", "/decrypt"), ("GET", "")):
        assert openapi.read(file).find(method, f"/api/o/v1/servicekey/k{action}")
