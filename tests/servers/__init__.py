"""Real servers for the tests, each started on loopback by a context manager and always stopped."""
