"""Seed torch's own generators: for a while from a generator of their own, or for a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_from(generator: torch.Generator | int | None) -> Iterator[None]:
    """Seed torch's own generator from `generator` for a while, then restore it; do nothing for None."""
    if generator is None:
        yield
        return
    if isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator)  # torch.manual_seed would seed the GPUs' generators as well
        yield


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's own generator, and that of `device`.

    torch.manual_seed would do the same for every kind of device, of which each takes a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
