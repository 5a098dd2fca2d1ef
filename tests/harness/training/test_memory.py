"""The peak of memory is that of the work that is measured."""

import torch

from harness.training import memory


def test_a_gpu_is_initialised_before_its_peak_is_reset(monkeypatch):
    calls, device = [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    assert memory.begin(device)
    assert calls == ["init", device]
