"""What else encrypts, each in an environment of its own; nothing here imports sovstore, or more than one peer.

A module of a peer has ``encrypt(source, target)`` and ``decrypt(source, target)``, of binary files; what it has for
one message in memory besides, ``seal(data)`` and ``unseal(data)``; and ``reader(path)`` when it reads at an offset.
"""
