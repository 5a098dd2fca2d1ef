"""What every test may rely on: nothing waits for long, and nothing is written outside its folder."""

import pytest


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    """Storage that stays full or away fails a test within seconds, not after the ten minutes of a real run."""
    monkeypatch.setenv("METRIX_BENCH_PATIENCE_S", "20")
