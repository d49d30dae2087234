"""What was found in texts at a cost, remembered by a digest of the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

DIGEST_BYTES = 16


class Remembered:
    """Arrays of one shape by the texts they were found in.

    At most `limit` of them: then it begins anew. What was found may be kept on the disk and
    recalled by another process (evaluation/kept.py).
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._found: dict[bytes, np.ndarray] = {}
        self._passing: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._found)

    def find(
        self, texts: Iterable[str], compute: Callable[[], np.ndarray], *, is_lasting: bool = True
    ) -> np.ndarray:
        """What `compute` gives for these texts; it is called once. Their boundaries count.

        is_lasting: False for what another process might find otherwise.
        """
        key = digest_of(texts)
        found = self._found.get(key)
        if found is None:
            found = compute()
            self._add(key, found)
            if not is_lasting:
                self._passing.add(key)
        return found

    def lasting(self) -> tuple[np.ndarray, np.ndarray]:
        """Digests (N, DIGEST_BYTES) of all texts, and what was found in them (N, ...)."""
        keys = [key for key in self._found if key not in self._passing]
        digests = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        return digests, np.array([self._found[key] for key in keys])

    def recall(self, digests: np.ndarray, found: np.ndarray) -> None:
        """Take over what `lasting` gave."""
        for digest, one in zip(digests, found, strict=True):
            self._add(digest.tobytes(), one)

    def clear(self) -> None:
        self._found.clear()
        self._passing.clear()

    def _add(self, key: bytes, found: np.ndarray) -> None:
        if key not in self._found and len(self._found) >= self.limit:
            self.clear()
        self._found[key] = found


def digest_of(texts: Iterable[str]) -> bytes:
    """Digest of a sequence of texts; their boundaries count."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
