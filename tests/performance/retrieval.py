"""Exact retrieval against one dense float32 matrix product of the same size, and the memory it takes.

The product is queries × galleryᵀ in blocks into one buffer, by numpy's and torch's BLAS, and the faster of the two is
the measure. (numpy's `a @ a.T` would use symmetry and do half of the work, so the gallery is a copy.) Classes have
the sizes of Stanford Online Products, 5.3 images on average. `--full` is its test split: 60,502 × 512.
"""

import argparse
import os
import resource
import time
from functools import partial

AIMS, AIM_GB = {"torch": 0.65, "faiss": 1.3}, 2.0  # torch computes each similarity of two images once
FULL = 60_502
BLOCK = 1024
KS = (1, 10, 100, 1000)


def main() -> None:
    """Print for each embedding and engine the seconds of product and retrieval, their ratio, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--full", action="store_true", help=f"the size of Stanford Online Products, {FULL} images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--engines", nargs="+", default=["torch", "faiss"])
    options = parser.parse_args()
    images = FULL if options.full else options.images
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)  # read at import

    import torch

    from harness.evaluation.retrieval import evaluate

    torch.set_num_threads(options.threads)
    print(
        f"retrieval of {images} × {options.dim}, {options.threads} threads, least of {options.rounds}"
        f" (aim: at most {AIMS['torch']} × the product with torch, {AIMS['faiss']} with faiss,"
        f" under {AIM_GB:.0f} GB above the embeddings)"
    )
    for name, spread in (("trained", 2.2), ("untrained", 100.0)):
        embeddings, labels = products_like(images, options.dim, spread)
        for engine in options.engines:
            retrieve = partial(evaluate, embeddings, labels, ks=KS, engine=engine)
            before = _resident_gb()
            found = retrieve().values
            peak = _peak_gb() - before
            product, retrieval = [], []
            for _ in range(options.rounds):
                product.append(min(_seconds(_by_numpy, embeddings), _seconds(_by_torch, embeddings)))
                retrieval.append(_seconds(retrieve))
            wall, cpu = (min(r[i] for r in retrieval) / min(p[i] for p in product) for i in (0, 1))
            print(
                f"  {name:9} {engine:5}  product {min(product)[0]:6.2f} s  retrieval {min(retrieval)[0]:6.2f} s"
                f"  ratio {wall:.2f} (CPU seconds {cpu:.2f})  {peak:.2f} GB"
                f"  R@1 {found['R@1']:.3f}  R@1000 {found['R@1000']:.3f}  MAP@R {found['MAP@R']:.3f}"
            )


def _seconds(call, *arguments) -> tuple[float, float]:
    """By the wall's clock and of the processor; the latter is the fairer on a machine that others use too."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def products_like(images: int, dim: int, spread: float):
    """Class centres plus noise of `spread`, in classes of 2 to 9 images (5.3 on average)."""
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = rng.choice([2, 3, 4, 5, 6, 7, 8, 9], images, p=[0.1, 0.1, 0.15, 0.18, 0.19, 0.14, 0.08, 0.06])
    labels = np.repeat(np.arange(images), sizes)[:images]
    embeddings = rng.standard_normal((images, dim), np.float32)
    embeddings *= spread
    embeddings += rng.standard_normal((labels[-1] + 1, dim), np.float32)[labels]
    order = rng.permutation(images)
    return embeddings[order], labels[order]


def _by_numpy(embeddings) -> None:
    import numpy as np

    gallery, block = embeddings.copy(), np.empty((BLOCK, len(embeddings)), np.float32)
    for begin in range(0, len(embeddings), BLOCK):
        queries = embeddings[begin : begin + BLOCK]
        np.matmul(queries, gallery.T, out=block[: len(queries)])


def _by_torch(embeddings) -> None:
    import torch

    gallery, block = torch.from_numpy(embeddings), torch.empty(BLOCK, len(embeddings))
    for queries in gallery.split(BLOCK):
        torch.mm(queries, gallery.T, out=block[: len(queries)])


def _resident_gb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
