"""A bounded memory that makes each value once, also when many threads ask at the same time."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Least recently used values leave first. A failure is raised to all who wait for it, and not remembered."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._futures: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._futures)

    def get(self, key: K, make: Callable[[], V]) -> V:
        with self._lock:
            known = self._futures.get(key)
            future: Future[V] = Future() if known is None else known
            self._futures[key] = future
            self._futures.move_to_end(key)
            while len(self._futures) > self.size:
                self._futures.popitem(last=False)
        if known is None:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._futures.get(key) is future:
                        del self._futures[key]
                future.set_exception(error)
                raise
        return future.result()

    def peek(self, key: K) -> V | None:
        """What is there already; None also while it is being made."""
        with self._lock:
            future = self._futures.get(key)
            if future is None or not future.done() or future.exception() is not None:
                return None
            self._futures.move_to_end(key)
        return future.result()
