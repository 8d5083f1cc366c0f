"""The last finished records, for look-ups under any id that a client has seen."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Kept:
    ids: Sequence[str]
    text: str


@dataclass(slots=True)
class RecordStore:
    """The last finished records, as JSON text, under all their ids; safe from any thread."""

    limit: int
    _records: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    _index: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, ids: Iterable[str], text: str) -> None:
        """Keep a record under its internal id; an earlier version of the same one is replaced."""
        names = list(dict.fromkeys((key, *ids)))
        with self._lock:
            self._remove(key)
            self._records[key] = _Kept(names, text)
            for name in names:
                self._index.setdefault(name, []).append(key)
            while len(self._records) > self.limit:
                self._remove(next(iter(self._records)))

    def _remove(self, key: str) -> None:
        record = self._records.pop(key, None)
        for name in record.ids if record else ():
            keys = self._index[name]
            keys.remove(key)
            if not keys:
                del self._index[name]

    def find(self, request_id: str) -> Mapping[str, str]:
        """Records under an id of any kind: internal id to JSON text."""
        with self._lock:
            return {key: self._records[key].text for key in self._index.get(request_id, ())}
