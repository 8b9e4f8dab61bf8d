"""A key that signs elsewhere: in KMS, in Vault."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memory_layer.audit.seal import key_id, load_public_key, verify_signature
from memory_layer.errors import SignerUnavailable, UsageError
from memory_layer.stores.remote.faults import Fault
from memory_layer.stores.remote.threads import Connection, Failed


class RemoteSigner:
    """Its answers are checked here, so that a Signer's signature always verifies."""

    local = False

    def __init__(
        self, connection: Connection, name: str, algorithm: str, public_key_der: bytes, sign: Callable[[bytes], bytes]
    ) -> None:
        """``name`` is for people. ``sign`` blocks. Raises UsageError when the key is none that a seal may have."""
        if load_public_key(algorithm, public_key_der) is None:
            raise UsageError(f"{connection.service} gave a public key for {name} that is no {algorithm} key.")
        self.name = name
        self.algorithm = algorithm
        self.public_key_der = public_key_der
        self.key_id = key_id(public_key_der)
        self._sign = sign
        self._connection = connection
        self._closed = False
        connection.retain()

    async def sign(self, message: bytes) -> bytes:
        try:
            return await self._connection.call(f"sign with {self.name}", partial(self._checked, message))
        except SignerUnavailable as error:
            raise SignerUnavailable(f"{error.message} Nothing was written.") from None

    def _checked(self, message: bytes) -> bytes:
        signature = self._sign(message)
        if not verify_signature(self.algorithm, self.public_key_der, message, signature):
            raise Failed(Fault("its signature does not verify under the key's public key", True))
        return signature

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._connection.release()
