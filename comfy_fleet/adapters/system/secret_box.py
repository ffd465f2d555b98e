"""Encrypts partner keys and nodes' passwords at rest, with a key that only the fleet's user can read."""

import base64
import hashlib
import hmac
import logging
import os
import secrets as random
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from comfy_fleet.adapters.system.folders import private_folder, sync_folder
from comfy_fleet.domain.errors import ConfigError

logger = logging.getLogger(__name__)

_MOST_OPENED = 4096


class SecretBox:
    """Fernet (AES-128-CBC with HMAC-SHA256) under one key file."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._secret = base64.urlsafe_b64decode(key)

    def __repr__(self) -> str:
        return "SecretBox(***)"

    @classmethod
    def open(cls, path: Path) -> "SecretBox":
        """Read the key file; create it (mode 0600) if it is missing.

        Two processes that start at once get the same key: the first link wins.

        Raises:
            ConfigError: The file has no key, can't be made, or others may read it.
        """
        try:
            cls._make(path)
            exposed = path.stat().st_mode & 0o077 and not path.is_dir()
            key = b"" if exposed else path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"FLEET_SECRET_FILE: {path} can't be read or made: {error.strerror}; set FLEET_SECRET_FILE "
                "or FLEET_DATA to where this process may write"
            ) from error
        if exposed:
            raise ConfigError(f"FLEET_SECRET_FILE: {path} is readable by others: chmod 600 {path}")
        try:
            return cls(key)
        except ValueError:
            raise ConfigError(
                f"FLEET_SECRET_FILE: {path} must hold 32 bytes in URL-safe base64; remove it, and a new one "
                "is made"
            ) from None

    @staticmethod
    def _make(path: Path) -> None:
        """Draw the key, unless it is there.

        Raises:
            OSError: It can't be written.
        """
        if path.exists():
            return
        private_folder(path.parent)
        temp = path.with_name(f".{path.name}.{random.token_hex(8)}")
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(Fernet.generate_key())
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temp)
            sync_folder(path.parent)
        except FileExistsError:
            pass
        finally:
            temp.unlink()

    def seal(self, plain: bytes) -> bytes:
        """Encrypt."""
        return self._fernet.encrypt(plain)

    def open_sealed(self, sealed: bytes) -> bytes:
        """Decrypt.

        Raises:
            ConfigError: It was encrypted with another key.
        """
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise ConfigError(
                "a stored secret was sealed under another key: all processes need the same FLEET_SECRET_FILE"
            ) from None

    def derive(self, purpose: bytes) -> bytes:
        """Return 32 bytes for another purpose, which say nothing about the key that they are derived from."""
        return hmac.new(self._secret, b"derived key: " + purpose, hashlib.sha256).digest()


class NodeCredentials:
    """Decrypts :attr:`comfy_fleet.domain.nodes.node.Node.sealed`, each value once."""

    def __init__(self, path: Path) -> None:
        """Set up; the key file is read when the first node needs it, and never created."""
        self._path = path
        self._box: SecretBox | None = None
        self._opened: dict[str, str] = {}
        self._trouble = ""

    def __repr__(self) -> str:
        return "NodeCredentials(***)"

    def __call__(self, sealed: str) -> str:
        """Return ``USER:PASSWORD``; empty for a node without one, or, with a log line, if it can't be
        decrypted."""
        if not sealed:
            return ""
        if (known := self._opened.get(sealed)) is not None:
            return known
        try:
            plain = self._key().open_sealed(sealed.encode()).decode()
        except (ConfigError, OSError, UnicodeError) as error:
            self._box = None  # the file may have been replaced by the next time
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.error("passwords of nodes can't be read", extra={"reason": str(error)})
            return ""
        if len(self._opened) >= _MOST_OPENED:
            self._opened.clear()
        self._opened[sealed] = plain
        return plain

    def _key(self) -> SecretBox:
        if self._box is None:
            if not self._path.exists():
                raise ConfigError(f"{self._path} is missing: set FLEET_SECRET_FILE as the API has it")
            self._box = SecretBox.open(self._path)
        return self._box
