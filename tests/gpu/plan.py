"""The pieces in the order in which they run, the most important first; nothing is imported to read this list."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A test or a group of figures.

    `home` is "module:function", `needs_s` the seconds without which it is not begun, and `limit_s` those after which
    it is ended, on one H100.
    """

    name: str
    home: str
    needs_s: float
    limit_s: float

    @property
    def is_test(self) -> bool:
        """Return whether it is a test that passes or fails; figures are only measured."""
        return self.home.partition(":")[2].startswith("test_")

    def run(self, place: Any) -> None:
        """Run it at this place."""
        module, _, function = self.home.partition(":")
        getattr(import_module(module), function)(place)


PLAN = (
    Piece("losses", "tests.gpu.test_losses:test_values_and_gradients_are_those_of_the_cpu", 20, 90),
    Piece("precision", "tests.gpu.test_losses:test_neither_tf32_nor_autocast_reaches_a_loss", 5, 30),
    Piece("conformance", "tests.gpu.test_scores:test_the_evaluator_is_right_and_counts_ties_equally", 3, 20),
    Piece("scores", "tests.gpu.test_scores:test_a_large_embedding_scores_the_same_on_both", 15, 60),
    Piece("images", "tests.gpu.test_images:test_both_paths_show_what_they_show_on_the_cpu", 5, 30),
    Piece("trial", "tests.gpu.test_trials:test_a_trial_is_that_of_the_cpu_within_noise", 15, 60),
    Piece("twice", "tests.gpu.test_trials:test_a_trial_run_twice_has_equal_scores", 8, 40),
    Piece("resume", "tests.gpu.test_trials:test_a_trial_that_is_killed_goes_on", 15, 60),
    Piece("waits", "tests.gpu.test_waits:test_waits_are_counted_by_place", 10, 40),
    Piece("peak", "tests.gpu.test_memory:test_the_peak_memory_is_the_one_recorded", 10, 50),
    Piece("chunks", "tests.gpu.test_memory:test_a_trial_out_of_memory_goes_on_in_chunks", 15, 60),
    Piece("taken", "tests.gpu.test_memory:test_another_process_takes_most_of_the_memory", 20, 70),
    Piece("sharing", "tests.gpu.test_trials:test_two_trials_share_the_device", 15, 60),
    Piece("resnet", "tests.gpu.figures:resnet", 20, 70),
    Piece("levels", "tests.gpu.figures:levels", 15, 60),
    Piece("criteria", "tests.gpu.figures:criteria", 15, 60),
    Piece("evaluation", "tests.gpu.figures:evaluation", 8, 40),
    Piece("epoch", "tests.gpu.figures:epoch", 15, 60),
    Piece("frozen", "tests.gpu.frozen:frozen", 15, 60),
    Piece("vit", "tests.gpu.figures:vit", 15, 60),
    Piece("efficientnet", "tests.gpu.figures:efficientnet", 15, 60),
    Piece("options", "tests.gpu.figures:options", 90, 240),
    Piece("finetune", "tests.gpu.finetune:finetune", 20, 900),
)


def find(name: str, where: str = __name__) -> Piece:
    """Return the piece of this name in the plan of a module."""
    return {piece.name: piece for piece in import_module(where).PLAN}[name]


def chosen(only: str, where: str = __name__) -> tuple[Piece, ...]:
    """The pieces that `only` names, in the order of the plan: names, `tests` and `figures`; all where it is empty.

    Raises ValueError for a name that there is not.
    """
    pieces = import_module(where).PLAN
    groups = {"tests": [p.name for p in pieces if p.is_test], "figures": [p.name for p in pieces if not p.is_test]}
    wanted: set[str] = set()
    for name in filter(None, (part.strip() for part in only.split(","))):
        if name not in groups and name not in {piece.name for piece in pieces}:
            listed = ", ".join(["tests", "figures", *(piece.name for piece in pieces)])
            raise ValueError(f"--only {name}: there is no such piece; there are {listed}")
        wanted |= set(groups.get(name, [name]))
    return tuple(piece for piece in pieces if not only.strip() or piece.name in wanted)
