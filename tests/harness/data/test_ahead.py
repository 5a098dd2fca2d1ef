"""Items are read in threads, in order, a bounded number ahead, and no thread is left."""

import threading
import time

import pytest

from harness.data.ahead import read_ahead


class Reader:
    """Reads numbers after a moment, and counts those that wait or are being read."""

    def __init__(self, broken=()):
        self.lock, self.begun, self.used, self.most, self.broken = threading.Lock(), [], 0, 0, broken

    def __call__(self, item):
        with self.lock:
            self.begun.append(item)
            self.most = max(self.most, len(self.begun) - self.used)
        time.sleep(0.001 * (item % 3))
        if item in self.broken:
            raise ValueError(f"item {item}")
        return item


def test_results_come_in_order_and_few_are_ahead():
    reader, before = Reader(), threading.active_count()
    found = []
    for result in read_ahead(reader, range(40), threads=3, ahead=4):
        reader.used += 1
        found.append(result)
        time.sleep(0.002)
        assert threading.active_count() <= before + 3
    assert found == list(range(40))
    assert reader.most <= 5  # four ahead, and the one that is waited for
    assert threading.active_count() == before


def test_an_error_comes_in_its_turn_and_ends_the_threads():
    reader, before, found = Reader(broken=(5, 6)), threading.active_count(), []
    with pytest.raises(ValueError, match="item 5"):
        found.extend(read_ahead(reader, range(100), threads=2, ahead=3))
    assert found == [0, 1, 2, 3, 4]
    assert threading.active_count() == before
    assert len(reader.begun) <= 9


def test_closing_begins_nothing_more():
    reader, before = Reader(), threading.active_count()
    results = read_ahead(reader, range(100), threads=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert threading.active_count() == before
    assert len(reader.begun) <= 5


def test_nothing_is_read_before_it_is_asked_for():
    reader = Reader()
    read_ahead(reader, range(3)).close()
    assert reader.begun == []
