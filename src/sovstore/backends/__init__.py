"""Drivers of the places that hold ciphertext. They see names and bytes at the host, never a key or a plaintext."""
