"""Both ways from files to batches, decoded once or every time, show the device what they show the CPU."""

from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor

from harness.data import datasets
from harness.data.images import Originals, open_images
from harness.data.loading import Augmentation
from tests.gpu.place import Place

COUNT = 24


def test_both_paths_show_what_they_show_on_the_cpu(place: Place) -> None:
    """Crops drawn by one generator differ by less than one of 255 grey values on average, on both paths."""
    dataset = datasets.load("folder", place.few, place.cache)
    augmentation = Augmentation(place.sizes.side_px, (0.5,) * 3, (0.5,) * 3, centre_share=0.875)
    cached = open_images(dataset, round(place.sizes.side_px / 0.875), place.cache)
    chosen = np.linspace(0, len(dataset) - 1, COUNT).astype(int)
    same_size = chosen[(cached.sizes[chosen] == cached.sizes[chosen[0]]).all(1)]
    torch.set_num_threads(place.cores)

    def shown(source, indices, device, generator: torch.Generator | None) -> Tensor:
        images = source.batch(indices, device)
        if source is cached and len(indices) < COUNT:
            images = torch.stack(list(images))  # as where all images of a dataset have one size
        out = augmentation.evaluate(images) if generator is None else augmentation.train(images, generator)
        assert out.device.type == torch.device(device).type
        return out.cpu()

    sources = {"cached": (cached, chosen), "cached, one size": (cached, same_size[: COUNT - 1])}
    try:
        import torchvision  # noqa: F401

        sources["classical"] = (Originals(dataset), chosen)
    except ImportError as error:
        missing = error
    for name, (source, indices) in sources.items():
        for what, seed in (("training", 0), ("test", None)):
            generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
            here = shown(source, indices, "cpu", generators[0])
            there = shown(source, indices, place.device, generators[1])
            grey = (here - there).abs().mean().item() * 255 / 2
            place.note(f"{name} {what} image, mean difference from the CPU", grey, "of 255 grey values")
            assert grey < 1.0, f"{name} {what} images differ by {grey:.2f} of 255"
            assert there.std() > 0.05, f"{name} {what} images are empty"
    if "classical" not in sources:
        raise SkipTest(f"the classical path needs torchvision ({missing}); the cached path was tried")
