"""Conformance suites that drivers, here and elsewhere, subclass. Needs pytest."""

from sovstore.testing.backend import BackendTests
from sovstore.testing.suite import Suite
from sovstore.testing.wrapping_key import WrappingKeyTests

__all__ = ["BackendTests", "Suite", "WrappingKeyTests"]
