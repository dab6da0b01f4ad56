"""The format: bytes in, bytes out, no I/O. See docs/spec/format.md."""
