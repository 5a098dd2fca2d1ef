"""Seconds to compute features, and a file of weights to compute them with."""

import os
import time
from itertools import pairwise
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from baselines.numerics import full_precision
from harness.config import Trial
from harness.data.datasets import Dataset
from harness.training.devices import rank_devices
from harness.training.network import build_embedder
from harness.training.pictures import FEATURE_BATCH, Sources, features_of, images_of
from tests.performance._clock import take_turns


def weights(network: str, folder: Path) -> Path:
    """A file of random weights."""
    path = folder / f"{network}.safetensors"
    save_file(timm.create_model(network).state_dict(), path)
    return path


def rates(trial: Trial, dataset: Dataset, sources: Sources) -> tuple[list[float], list[float]]:
    """Compute the features of a dataset; seconds of each whole batch, and of the bare network on a ready one."""
    images_of(trial, dataset, sources)
    device, marks = rank_devices(1, sources.device)[0], []
    features_of(trial, dataset, sources, progress=lambda *_: marks.append(time.perf_counter()))
    network, side = build_embedder(trial).to(device).eval(), trial.images.side_px
    batch = torch.randn(FEATURE_BATCH, 3, side, side, device=device)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as compute the features
    with torch.inference_mode(), full_precision(device, convolutions=True):
        bare = take_turns({"": lambda: network.pooled(batch)}, rounds=5, device=device)[""]
    return [b - a for a, b in pairwise(marks[: len(dataset) // FEATURE_BATCH])], bare
