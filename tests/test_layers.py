"""Imports go one way, and each heavy dependency is imported by one file."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("baselines", "metrix", "harness")
FLOORS = (  # a file imports from its own room and from floors below it, never from a neighbour
    {"baselines", "harness.errors"},
    {"harness.streams", "harness.registry", "harness.grids"},
    {"metrix", "harness.data", "harness.config"},
    {"harness.evaluation", "harness.grid"},
    {"harness.runs"},
    {"harness.fairness"},
    {"harness.training", "harness.leaderboard"},
    {"harness.launch", "harness.reports", "harness.audit", "harness.verify"},
    {"harness.cli"},
)
DOORS = {
    "timm": "harness/training/backbones.py",
    "huggingface_hub": "harness/training/backbones.py",
    "torchvision": "harness/data/loading.py",
    "pytorch_metric_learning": "harness/training/pml.py",
    "safetensors": "harness/training/checkpoint.py",
    "torch.distributed": "harness/training/group.py",
    "faiss": "harness/evaluation/retrieval.py",
    "scipy": "harness/leaderboard/statistics.py",
    "scipy.io": "harness/data/datasets/cars196.py",
    "pandas": "harness/leaderboard/",
    "pyarrow": "harness/runs/bucket.py",
    "ray": "harness/launch/",
    "optuna": "harness/launch/search.py",
    "rich": "harness/reports/terminal.py",
    "jinja2": "harness/reports/formats/web.py",
    "matplotlib": "harness/reports/drawing.py",
    "yaml": "harness/grids/notation.py",
    "fontTools": "harness/data/datasets/glyphs.py",
}
VALUES = {"torch", "numpy", "pydantic", "PIL"}
ALLOWED = ({"torch"}, VALUES, VALUES, VALUES, VALUES)  # from outside, by floor; the doors above come on top


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The room of a module: `harness.data` of `harness.data.datasets.folder`, `metrix` of `metrix.pairs`."""
    return ".".join(name.split(".")[:2]) if name.startswith("harness.") else name.partition(".")[0]


def floor(name: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if room(name) in rooms), None)


def imports(path: Path) -> set[str]:
    """Return what a file imports, inside functions and for types too; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_floors_and_through_the_doors(path):
    own = floor(module(path))
    assert own is not None or module(path) == "harness", f"{path} stands on no floor"
    for name in imports(path):
        top = name.partition(".")[0]
        part = ".".join(name.split(".")[:2])  # part of a package may have its own
        if door := DOORS.get(part, DOORS.get(top)):
            own_path = str(path.relative_to(ROOT))
            assert own_path == door or (door.endswith("/") and own_path.startswith(door)), f"{name}: {door}"
        elif top in PACKAGES:
            target = floor(name)
            inside = room(name) == room(module(path))
            below = own is None or target is None or target < own
            assert inside or below, f"{module(path)} ({own}) imports {name} ({target})"
        elif own is not None and own < len(ALLOWED):
            assert top in ALLOWED[own] or top in sys.stdlib_module_names, f"floor {own} may not import {top}"


def packages_of(name: str) -> set[str]:
    """Return the packages that a module lies in, which are imported before it: a and a.b of a.b.c."""
    parts = name.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


def test_no_file_imports_itself_indirectly():
    files = {module(path): path for path in sources()}
    graph = {}
    for name, path in files.items():
        targets = {target if target in files else target.rpartition(".")[0] for target in imports(path)}
        packages = {above for target in targets for above in packages_of(target) if not name.startswith(f"{above}.")}
        graph[name] = (targets | packages) & files.keys() - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_losses_metrix_and_metrics_need_no_timm_and_a_trial_no_ray_faiss_or_optuna():
    hidden = "import sys\nfor name in {!r}: sys.modules[name] = None\n"
    for names, line in (
        (("timm", "ray", "faiss", "optuna", "torchvision"), "import baselines, metrix, harness.evaluation.metrics"),
        (("ray", "faiss", "optuna"), "import harness; harness.run_trial; harness.evaluate; harness.Grid"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", hidden.format(names) + line], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*sources(), *sorted(ROOT.glob("tests/**/*.py"))], ids=lambda path: path.stem)
def test_standard_error_of_a_failed_process_is_not_lost(path):
    """Nothing is discarded, and nothing is captured where `check` raises, because that shows no output."""
    if path.name == "provenance.py":  # asks git, whose failure is an answer
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert not {"capture_output", "check"} <= {name for name in given if given[name] == "True"}, node.lineno
            assert given.get("stderr") != "subprocess.DEVNULL", node.lineno


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_with_an_encoding(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            given = {word.arg for word in node.keywords}
            values = [getattr(word, "value", None) for word in node.args]
            values += [getattr(word.value, "value", None) for word in node.keywords if word.arg == "mode"]
            modes = [value for value in values if isinstance(value, str) and re.fullmatch(r"[rwax]b?\+?", value)]
            opens = name in ("open", "fdopen") and (modes or not node.args) and "b" not in "".join(modes)
            if name in ("read_text", "write_text") or opens:
                assert "encoding" in given, f"line {node.lineno}: {ast.unparse(node)} names no encoding"
            assert "text" not in given or "run" not in name, f"line {node.lineno}: name an encoding, not text=True"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_read_as_data_and_never_as_code(path):
    """No pickle is opened: arrays and weights that others wrote could run anything."""
    own_pipe = path.name == "ranks.py"  # to processes that it starts itself; no file is read
    formats = {"dill", "joblib", "shelve", "marshal"} | ({"pickle"} if not own_pipe else set())
    assert not {name.partition(".")[0] for name in imports(path)} & formats
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            match ast.unparse(node.func):
                case "np.load" | "numpy.load":
                    assert given.get("allow_pickle") is False, f"line {node.lineno}: np.load(…, allow_pickle=False)"
                case "torch.load":
                    assert given.get("weights_only") is True, f"line {node.lineno}: torch.load(…, weights_only=True)"
                case "eval" | "exec":
                    raise AssertionError(f"line {node.lineno}: {ast.unparse(node.func)}")
