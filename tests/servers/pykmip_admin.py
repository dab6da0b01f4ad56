"""What an administrator does with PyKMIP's own client, in its own environment: the tests' second opinion on KMIP.

Reads a JSON list of commands from its standard input, writes the list of their results: `[{"do": "create", …}]`.
It shares no code with sovstore.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kmip.core import enums, utils  # type: ignore[import-not-found]  # in its own environment
from kmip.core.attributes import CryptographicParameters  # type: ignore[import-not-found]
from kmip.core.messages import messages, payloads  # type: ignore[import-not-found]
from kmip.pie.client import ProxyKmipClient  # type: ignore[import-not-found]

_GCM = {
    "block_cipher_mode": enums.BlockCipherMode.GCM,
    "cryptographic_algorithm": enums.CryptographicAlgorithm.AES,
    "tag_length": 16,
}


def create(client: Any, command: dict[str, Any]) -> str:
    """Make a symmetric key and activate it; return its unique identifier."""
    masks = [enums.CryptographicUsageMask[name] for name in command.get("masks", ("ENCRYPT", "DECRYPT"))]
    algorithm = enums.CryptographicAlgorithm[command.get("algorithm", "AES")]
    made = client.create(
        algorithm, command.get("bits", 256), cryptographic_usage_mask=masks, operation_policy_name=command.get("policy")
    )
    if command.get("active", True):
        client.activate(made)
    return str(made)


def create_key_pair(client: Any, command: dict[str, Any]) -> list[str]:
    """Make an RSA key pair; return the unique identifiers of the public and the private key."""
    del command
    encrypt, decrypt = [enums.CryptographicUsageMask.ENCRYPT], [enums.CryptographicUsageMask.DECRYPT]
    pair = client.create_key_pair(
        enums.CryptographicAlgorithm.RSA, 2048, public_usage_mask=encrypt, private_usage_mask=decrypt
    )
    for uid in pair:
        client.activate(uid)
    return [str(uid) for uid in pair]


def revoke(client: Any, command: dict[str, Any]) -> None:
    """Deactivate a key, or declare it compromised."""
    client.revoke(enums.RevocationReasonCode[command.get("reason", "CESSATION_OF_OPERATION")], command["uid"])


def destroy(client: Any, command: dict[str, Any]) -> None:
    """Destroy a key."""
    client.destroy(command["uid"])


def decrypt(client: Any, command: dict[str, Any]) -> str:
    """Decrypt by AES-GCM with AAD; hexadecimal in and out."""
    given = {name: bytes.fromhex(command[name]) for name in ("data", "iv", "aad", "tag")}
    payload = payloads.DecryptRequestPayload(
        command["uid"],
        CryptographicParameters(**_GCM),
        given["data"],
        given["iv"],
        given["aad"],
        given["tag"],
    )
    reply = client.proxy.send_request_payload(enums.Operation.DECRYPT, payload)
    return bytes(reply.data).hex()


def recode(client: Any, command: dict[str, Any]) -> str:
    """Decode a message and encode it again; hexadecimal in and out."""
    del client
    kinds = {"78": messages.RequestMessage, "7b": messages.ResponseMessage}
    version = enums.KMIPVersion[command.get("version", "KMIP_1_4")]
    message = kinds[command["message"][4:6]]()
    message.read(utils.BytearrayStream(bytes.fromhex(command["message"])), kmip_version=version)
    for item in message.batch_items:
        asked = getattr(item, "request_payload", None)
        if isinstance(asked, payloads.GetAttributesRequestPayload):
            # PyKMIP 0.11 pads a text of 8, 16, 24 … bytes by 8 more, but only one that it has read.
            item.request_payload = payloads.GetAttributesRequestPayload(asked.unique_identifier, asked.attribute_names)
    written = utils.BytearrayStream()
    message.write(written, kmip_version=version)
    return bytes(written.buffer).hex()


_ACTIONS = {f.__name__: f for f in (create, create_key_pair, revoke, destroy, decrypt, recode)}


def main() -> None:
    """Do what standard input says."""
    commands = json.load(sys.stdin)
    if len(sys.argv) == 1:
        results = [_ACTIONS[command["do"]](None, command) for command in commands]
    else:
        port, certificate, ca_file = sys.argv[1:]
        with ProxyKmipClient(
            "127.0.0.1",
            int(port),
            cert=certificate,
            key=certificate,
            ca=ca_file,
            ssl_version="PROTOCOL_TLSv1_2",
            config_file="/dev/null",
            kmip_version=enums.KMIPVersion.KMIP_1_4,
        ) as client:
            results = [_ACTIONS[command["do"]](client, command) for command in commands]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
