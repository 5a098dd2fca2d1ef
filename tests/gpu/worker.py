"""The process in which pieces run, one after the other: `python -m tests.gpu.worker '<settings as JSON>'`.

It reads lines {"piece": name, "seconds": limit} and writes lines {"head": …}, {"note": …} and {"end": …}. What pieces
themselves print goes to standard error.
"""

import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO
from unittest import SkipTest

import torch

from harness.runs.provenance import provenance
from harness.training.devices import device_name, driver_version
from tests.gpu.place import Place
from tests.gpu.plan import Piece, find

OPTIONAL = (
    "torchvision",
    "scipy",
    "pyarrow",
    "matplotlib",
    "fonttools",
    "rich",
    "faiss-cpu",
    "ray",
    "optuna",
    "pytest",
)


def main() -> None:
    """Say what the machine is, then run the pieces that are asked for until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    if not settings["stand_in"] and not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else f"torch {torch.__version__} is for processors alone"
        )
        say(answers, head={"refused": f"torch sees no GPU ({built}); --stand-in tries the command without one"})
        return
    place = Place(
        torch.device("cpu") if settings["stand_in"] else torch.device("cuda", 0),
        Path(settings["scratch"]),
        Path(settings["out"]),
        settings["data"] and Path(settings["data"]),
        settings["weights"] and Path(settings["weights"]),
        note=lambda what, value, unit="", **more: say(
            answers, note={"what": what, "value": value, "unit": unit, **more}
        ),
    )
    torch.set_num_threads(place.cores)
    say(answers, head=head(place))
    for line in sys.stdin:
        asked = json.loads(line)
        place.ends = time.monotonic() + asked["seconds"]
        say(answers, end=end_of(find(asked["piece"], settings["plan"]), place))


def say(answers: TextIO, **content: Any) -> None:
    """Write one line at once."""
    print(json.dumps(content), file=answers, flush=True)


def end_of(piece: Piece, place: Place) -> dict[str, str]:
    """Run a piece; how it ended, and why if not well."""
    try:
        piece.run(place)
        ended = {"outcome": "passed" if piece.is_test else "measured"}
    except SkipTest as reason:
        ended = {"outcome": "skipped", "why": str(reason)}
    except ModuleNotFoundError as error:
        ended = {"outcome": "skipped", "why": f"it needs the package {error.name}, which is not installed"}
    except Exception as error:  # whatever a piece raises, the others run
        traceback.print_exc()
        ended = {"outcome": "failed", "why": f"{type(error).__name__}: {error}"}
    gc.collect()
    if not place.stand_in:
        torch.cuda.empty_cache()
    return ended


def head(place: Place) -> dict[str, Any]:
    """What a figure must name: card, driver, versions, cores, revision, data."""
    revision = provenance()
    classes = [folder for folder in sorted(place.data.iterdir()) if folder.is_dir()]
    count = sum(1 for folder in classes for file in folder.iterdir())
    return {
        "device": "stand-in: cpu" if place.stand_in else device_name(place.device),
        "driver": driver_version(place.device) or "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if not place.stand_in else None,
        "cudnn": attempted(torch.backends.cudnn.version) if not place.stand_in else None,
        "python": platform.python_version(),
        "timm": version("timm"),
        "cores": place.cores,
        "revision": revision["revision"] or f"sources {revision['sources'][:12]}",
        "uncommitted": revision.get("uncommitted"),
        "data": f"{count:,} {'photographs that were given' if place.given else 'pictures drawn here'}, "
        f"{len(classes)} classes",
        "weights": place.weights.name if place.weights else "random",
        "missing": [name for name in OPTIONAL if version(name) is None],
    }


def version(package: str) -> str | None:
    """The version of a package that is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def attempted(call: Callable[[], Any]) -> Any:
    """What a call gives, or its error in words."""
    try:
        return call()
    except Exception as error:
        return str(error)


if __name__ == "__main__":
    main()
