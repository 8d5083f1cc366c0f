"""The last finished records, for look-ups under any id that a client has seen."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Kept(Generic[T]):
    ids: Sequence[str]
    record: T


@dataclass(slots=True)
class RecordStore(Generic[T]):
    """The last finished records under all their ids; safe from any thread."""

    limit: int
    _records: OrderedDict[str, _Kept[T]] = field(default_factory=OrderedDict)
    _index: dict[str, dict[str, None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, ids: Iterable[str], record: T) -> None:
        """Keep a record under its internal id; an earlier version of the same one is replaced."""
        names = list(dict.fromkeys((key, *ids)))
        with self._lock:
            self._remove(key)
            self._records[key] = _Kept(names, record)
            for name in names:
                self._index.setdefault(name, {})[key] = None
            while len(self._records) > self.limit:
                self._remove(next(iter(self._records)))

    def _remove(self, key: str) -> None:
        record = self._records.pop(key, None)
        for name in record.ids if record else ():
            keys = self._index[name]
            del keys[key]
            if not keys:
                del self._index[name]

    def find(self, request_id: str) -> Mapping[str, T]:
        """Records under an id of any kind, by internal id; the latest come last."""
        with self._lock:
            return {key: self._records[key].record for key in self._index.get(request_id, ())}

    def get(self, key: str) -> T | None:
        """The record of an internal id."""
        kept = self._records.get(key)
        return kept.record if kept else None
