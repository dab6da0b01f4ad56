"""Conformance suites that drivers, here and elsewhere, subclass, and a host that lies. Needs pytest."""

from sovstore.testing.backend import BackendTests
from sovstore.testing.hostile import HostileBackend, Request, hostile_hosts
from sovstore.testing.suite import Suite
from sovstore.testing.wrapping_key import WrappingKeyTests

__all__ = ["BackendTests", "HostileBackend", "Request", "Suite", "WrappingKeyTests", "hostile_hosts"]
