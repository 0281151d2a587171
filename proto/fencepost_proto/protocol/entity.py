"""The base of what the metadata consists of: entities under keys. They are immutable, and keep their bytes once made."""

from __future__ import annotations


class Entity:
    """Base of every kind of entity; `metadata/kinds.py` lists them, with how each is coded and indexed."""

    __slots__ = ("_bytes",)
    _bytes: bytes

    @property
    def key(self) -> str:
        """Its name among all entities: that of its kind and, where there are many of the kind, its own."""
        raise NotImplementedError

    @property
    def kept_bytes(self) -> bytes | None:
        """Its bytes on the wire and in the store; None: not made yet."""
        try:
            return self._bytes
        except AttributeError:
            return None

    def keep_bytes(self, data: bytes) -> None:
        object.__setattr__(self, "_bytes", data)  # entities are frozen; this is no part of their value
