"""Tests of sovstore; a package, so that tests and benchmarks import `tests.servers` by name."""
