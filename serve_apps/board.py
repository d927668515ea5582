"""Where all processes of an application read and write what they tell each other: Ray's own
key-value store, which outlives every replica and Serve's controller."""

from __future__ import annotations

import threading
from typing import Protocol


class Board(Protocol):
    """Keys and values; every method may block for a moment, and raise OSError or RuntimeError."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes) -> None: ...

    def claim(self, key: str, value: bytes) -> bool:
        """Put it where there is none; whether it was put."""
        ...

    def keys(self, prefix: str) -> list[str]: ...

    def delete(self, key: str) -> None: ...


class MemoryBoard:
    """Within one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        with self._lock:
            self._values[key] = value

    def claim(self, key: str, value: bytes) -> bool:
        with self._lock:
            return self._values.setdefault(key, value) is value

    def keys(self, prefix: str) -> list[str]:
        with self._lock:
            return [key for key in self._values if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)


class RayBoard:
    """On the Ray cluster of this process.

    Args:
        prefix: of all its keys.
    """

    _SPACE = b"raycall"

    def __init__(self, prefix: str) -> None:
        from ray.experimental import internal_kv

        self._kv, self._prefix = internal_kv, prefix

    def get(self, key: str) -> bytes | None:
        return self._kv._internal_kv_get(self._prefix + key, namespace=self._SPACE)

    def put(self, key: str, value: bytes) -> None:
        self._kv._internal_kv_put(self._prefix + key, value, True, namespace=self._SPACE)

    def claim(self, key: str, value: bytes) -> bool:
        place = self._prefix + key
        return not self._kv._internal_kv_put(place, value, False, namespace=self._SPACE)

    def keys(self, prefix: str) -> list[str]:
        found = self._kv._internal_kv_list(self._prefix + prefix, namespace=self._SPACE)
        return [key.decode().removeprefix(self._prefix) for key in found]

    def delete(self, key: str) -> None:
        self._kv._internal_kv_del(self._prefix + key, namespace=self._SPACE)
