"""An OpenAPI 3.0 description as a judge: whether a request, and the reply to it, are what it allows.

Implements what that of OVHcloud KMS uses of it: paths, parameters of path and query, JSON bodies, statuses, `nullable`.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml  # type: ignore[import-untyped]  # ships no types
from referencing import Registry
from referencing.jsonschema import DRAFT4

_NAME = "urn:openapi"
_METHODS = ("get", "post", "put", "patch", "delete")


class Description:
    """A description that was read from a file."""

    def __init__(self, document: dict[str, Any]) -> None:
        # Schemas of OpenAPI 3.0 are those of the draft that became number 5 of JSON Schema; number 4 differs in nothing
        # that is used here. A sibling of `$ref` counts in neither.
        _allow_null(document)
        self._document = document
        registry: Registry[Any] = Registry()
        self._registry = registry.with_resource(_NAME, DRAFT4.create_resource(document))

    def find(self, method: str, target: str) -> tuple[str, dict[str, str]] | None:
        """Return the template of the path and the values in it; None where the description has no such operation."""
        path = urlsplit(target).path
        for template, operations in self._document["paths"].items():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
            if method.lower() in _METHODS and method.lower() in operations and (found := re.fullmatch(pattern, path)):
                return template, found.groupdict()
        return None

    def problems_of_request(self, method: str, target: str, headers: Message, raw: bytes) -> list[str]:
        """Return what the description does not allow in a request."""
        found = self.find(method, target)
        if found is None:
            return [f"no such operation: {method} {target}"]
        template, values = found
        operation = self._document["paths"][template][method.lower()]
        return [
            *self._problems_of_parameters(operation, values, urlsplit(target).query),
            *self._problems_of_body(operation.get("requestBody"), headers, raw),
        ]

    def problems_of_reply(self, method: str, target: str, status: int, raw: bytes) -> list[str]:
        """Return what the description does not allow in a reply."""
        template, _ = self.find(method, target) or ("", {})
        declared = self._document["paths"][template][method.lower()]["responses"].get(str(status))
        if declared is None:
            return [f"{method} {template}: a status that is not declared: {status}"]
        if "content" not in declared:
            return [f"{status} has no body"] if raw else []
        return self._problems_of_json(declared["content"]["application/json"]["schema"], raw)

    def _problems_of_parameters(
        self, operation: Mapping[str, Any], values: Mapping[str, str], query: str
    ) -> Iterator[str]:
        parameters = [self._resolved(parameter) for parameter in operation.get("parameters", ())]
        given = {"path": dict(values), "query": dict(parse_qsl(query, keep_blank_values=True))}
        for parameter in parameters:
            value = given.get(parameter["in"], {}).pop(parameter["name"], None)
            if value is not None:
                yield from self._problems(parameter["schema"], value)
            elif parameter.get("required"):
                yield f"the parameter {parameter['name']} is missing"
        for place, left in given.items():
            yield from (f"unknown parameter in the {place}: {name}" for name in left)

    def _problems_of_body(self, body: Mapping[str, Any] | None, headers: Message, raw: bytes) -> list[str]:
        if body is None:
            return ["a body where there is none"] if raw else []
        media = headers.get("Content-Type", "").partition(";")[0]
        if media not in body["content"]:
            return [f"the media type is {media!r}"]
        return self._problems_of_json(body["content"][media]["schema"], raw)

    def _problems_of_json(self, schema: Mapping[str, Any], raw: bytes) -> list[str]:
        try:
            value = json.loads(raw)
        except ValueError:
            return ["the body is not JSON"]
        return self._problems(schema, value)

    def _problems(self, schema: Mapping[str, Any], value: object) -> list[str]:
        # Imported here: that takes seconds, and every process of the tests imports this file.
        import jsonschema  # type: ignore[import-untyped]  # ships no types

        absolute = json.loads(json.dumps(schema).replace('"#/', f'"{_NAME}#/'))
        validator = jsonschema.Draft4Validator(absolute, registry=self._registry, format_checker=_formats())
        # Not the message of jsonschema, which quotes the value.
        return [f"{error.json_path}: {error.validator}" for error in validator.iter_errors(value)]

    def _resolved(self, parameter: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in parameter:
            return parameter
        name = parameter["$ref"].removeprefix("#/components/parameters/")
        resolved: Mapping[str, Any] = self._document["components"]["parameters"][name]
        return resolved


@functools.cache
def read(file: Path) -> Description:
    """Return the description in a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Description(yaml.load(file.read_bytes(), Loader=loader))  # noqa: S506  # both are safe


def _allow_null(node: object) -> None:
    """Write `nullable` as JSON Schema says it."""
    if isinstance(node, list):
        for child in node:
            _allow_null(child)
    if isinstance(node, dict):
        if node.get("nullable") is True and isinstance(node.get("type"), str):
            node["type"] = [node["type"], "null"]
        for child in node.values():
            _allow_null(child)


def _is_uuid(value: str) -> bool:
    return str(uuid.UUID(value)) == value.lower()


def _is_base64(value: str) -> bool:
    return base64.b64encode(base64.b64decode(value, validate=True)).decode() == value


def _is_jwe(value: str) -> bool:
    return re.fullmatch(r"[\w-]+(\.[\w-]*){3}\.[\w-]+", value, re.ASCII) is not None


@functools.cache
def _formats() -> Any:
    import jsonschema

    def on_text(check: Callable[[str], bool]) -> Callable[[object], bool]:
        return lambda value: not isinstance(value, str) or check(value)

    formats = jsonschema.FormatChecker(formats=())
    for name, check in {"uuid": _is_uuid, "byte": _is_base64, "jwe-token": _is_jwe}.items():
        formats.checks(name, raises=ValueError)(on_text(check))
    formats.checks("int32")(lambda value: not isinstance(value, int) or -(2**31) <= value < 2**31)
    return formats
