"""Made photographs: files with the detail, size and cost of decoding of real ones."""

import numpy as np
from PIL import Image


def photograph(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth random colours with noise on top; as a JPEG of quality 85 at 500 x 375 px about 60 kB."""
    coarse = generator.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)))
    pixels = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)
