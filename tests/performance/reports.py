"""The report of many records: seconds, memory, size of the page, and how fast it sorts and filters in a browser.

Aims: 10,000 records with 60 epochs each in 30 s and 2 GB, the page under 5 MB and answering within 100 ms; 200
records in 5 s. The records are made up, and made as plain JSON, which is much faster than through the models.
"""

import argparse
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import baselines
from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial

DATASETS = ("glyphs", "omniglot", "cub200", "cars196")
LEVELS = ("", "+embedding", "+feature", "+input")
METRICS = ("R@1", "R@2", "R@4", "R@8", "MAP@R", "R-Precision")
SEEDS, EPOCHS = range(5), 60
CLICKS = """
const timed = act => {
  const began = performance.now();
  act();
  document.body.offsetHeight;  // makes the browser lay the page out now
  return performance.now() - began;
};
const heads = () => document.querySelectorAll("[data-sort]");
const type = words => { find("query").value = words; find("query").dispatchEvent(new Event("input")); };
const sort = [1, 1, 1, 2, 2, 2].map(place => timed(() => heads()[place].click()));
const filter = ["c", "co", "input", "zzz", ""].map(words => timed(() => type(words)));
document.title = JSON.stringify({ sort: Math.max(...sort), filter: Math.max(...filter) });
"""


def trials(number: int) -> Iterator[Trial]:
    """As many trials as asked for: datasets × losses with a Metrix form × levels × seeds, in as many networks."""
    losses = [name for name in baselines.names() if baselines.describe(name).metrix]
    made = 0
    for network in range(number):
        for dataset in DATASETS:
            for loss in losses:
                for level in LEVELS:
                    for seed in SEEDS:
                        if made == number:
                            return
                        made += 1
                        yield Trial(
                            dataset=Choice(name=dataset),
                            backbone=Backbone(name=f"network_{network}"),
                            model=Model(dim=64),
                            images=Images(side_px=32, crop_scale=(0.6, 1.0)),
                            training=Training(epochs=EPOCHS, lr=1e-2, schedule="cosine"),
                            arm=Arm.parse(loss + level),
                            seed=seed,
                        )


def record(trial: Trial, rng: np.random.Generator) -> dict:
    """A record as its file holds it, with a score and a curve that look like those of a run."""
    score = 0.6 + rng.normal(0, 0.01)
    shares = dict(zip(METRICS, (1, 1.1, 1.2, 1.25, 0.5, 0.6), strict=True))
    noise = rng.normal(0, 0.003, EPOCHS)
    curve = [
        {
            "epoch": e + 1,
            "loss": 2 * math.exp(-e / 20) + float(noise[e]),
            "lr": 0.01,
            "validation": {m: score * s * (1 - math.exp(-(e + 1) / 15)) + float(noise[e]) for m, s in shares.items()},
            "train_s": 20.0,
            "validation_s": 1.0,
        }
        for e in range(EPOCHS)
    ]
    return {
        "schema_version": 1,
        "id": trial.id,
        "trial": trial.model_dump(mode="json"),
        "arm": trial.arm.label,
        "level": trial.arm.at,
        "baseline": trial.arm.baseline,
        "grid": {"name": "made up", "version": 1},
        "protocol": {"name": "fair", "version": 1},
        "selected_epoch": EPOCHS,
        "validation": curve[-1]["validation"],
        "test": {m: score * s for m, s in shares.items()},
        "curve": curve,
        "cost": {"train_s": 20.0 * EPOCHS, "steps": 50 * EPOCHS, "forward_passes_per_step": 1.0, "peak_gb": 2.0},
        "data": {
            **{"index_fingerprint": "f" * 64, "split_fingerprint": "e" * 64, "test_queries": 800, "test_excluded": 0},
            "images": {"train": 700, "validation": 160, "test": 800},
            "classes": {"train": 50, "validation": 12, "test": 60},
        },
        "provenance": {"revision": "0" * 40, "evaluator": "d" * 64, "device": "a processor"},
        "finished": "2026-01-01T00:00:00Z",
    }


def report(folder: Path) -> tuple[float, float, float]:
    """Seconds, of them in this process's own work, and peak gigabytes of `metrix-bench report folder`."""
    words = [sys.executable, "-m", "harness.cli", "report", str(folder)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, busy, after.ru_maxrss * 1024 / 1e9


def answers(page: Path) -> dict[str, float] | None:
    """The slowest sort and filter in a browser, milliseconds; None without one."""
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if browser is None:
        return None
    probe = page.with_name("probe.html")
    probe.write_text(page.read_text().replace("</body>", f"<script>{CLICKS}</script></body>"))
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    words += [
        f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        probe.as_uri(),
    ]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    return json.loads(re.findall("<title>(.*?)</title>", shown)[0])


def main() -> None:
    """Print what a report of 200 and of 10,000 records takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[200, 10_000])
    options = parser.parse_args()
    print("report: seconds (of them busy), peak memory, size of the page, slowest sort and filter in a browser")
    for number in options.records:
        with tempfile.TemporaryDirectory() as folder:
            place, rng = Path(folder) / "records", np.random.default_rng(0)
            place.mkdir()
            for trial in trials(number):
                (place / f"{trial.id}.json").write_text(json.dumps(record(trial, rng)))
            seconds, busy, peak_gb = report(Path(folder))
            page = Path(folder) / "leaderboard.html"
            said = answers(page)
            clicks = f"sort {said['sort']:.0f} ms, filter {said['filter']:.0f} ms" if said else "no browser"
            megabytes = page.stat().st_size / 1e6
            print(
                f"  {number:6} records: {seconds:5.1f} s ({busy:.1f}), {peak_gb:.2f} GB, {megabytes:.2f} MB, {clicks}"
            )


if __name__ == "__main__":
    main()
