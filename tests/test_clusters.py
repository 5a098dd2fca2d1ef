"""The commands on the pages of clusters/ parse, and its files fit the programs that read them."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from harness.cli import parser

ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "clusters"
PAGES = sorted(CLUSTERS.glob("*.md"))
RAY = re.findall(r"^ray==(\d+\.\d+)\.\d+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[0]


def commands(program: str) -> list:
    """Return the arguments of every call of a program on the pages, in shell blocks and in the text.

    A command in the text that is shortened by … is left out.
    """
    found = []
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        lines = [line for line in re.findall(rf"`({program} [^`\n]+)`", text) if "…" not in line]
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
            lines += block.replace("\\\n", " ").splitlines()
        for line in dict.fromkeys(lines):
            words = shlex.split(line, comments=True)
            if program in words[:-1]:
                found.append(pytest.param(words[words.index(program) + 1 :], id=f"{page.stem}: {line}"))
    return found


def rayjob() -> dict:
    documents = yaml.safe_load_all((CLUSTERS / "rayjob.yaml").read_text(encoding="utf-8"))
    return next(document for document in documents if document and document["kind"] == "RayJob")


@pytest.mark.parametrize("words", commands("metrix-bench"))
def test_every_command_of_a_page_parses(words):
    assert parser().parse_args(words).command


@pytest.mark.parametrize("words", commands("make"))
def test_every_make_target_and_variable_of_a_page_exists(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9]+):", makefile, re.M))
    variables = set(re.findall(r"^([A-Z]+) +\?=", makefile, re.M))
    assert words[0] in targets
    values = dict(word.split("=", 1) for word in words[1:])
    assert values.keys() <= variables
    if words[0] == "benchmark":
        assert parser().parse_args(["run", "quick", *shlex.split(values.get("ARGS", ""))]).command


def test_make_passes_the_address():
    printed = subprocess.run(
        ["make", "--dry-run", "benchmark", "GRID=smoke", "ADDRESS=ray://head:10001"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert "run 'smoke' --out 'results/runs/smoke'" in printed
    assert "--address 'ray://head:10001'" in printed


def test_the_slurm_script_is_a_shell_script():
    script = CLUSTERS / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    line = re.findall(r'^"\$bin/metrix-bench" (.*) &$', script.read_text(encoding="utf-8"), re.M)[0]
    words = shlex.split(line.replace('"${@:2}"', "--out /runs/smoke").replace("$head", "node1:6379"))
    assert parser().parse_args(words).address == "node1:6379"


def test_the_rayjob_requires_a_token_and_names_the_installed_ray():
    spec = rayjob()["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"].startswith(f"{RAY}.")
    assert cluster["authOptions"]["mode"] == "token"
    assert spec["backoffLimit"] > 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "metrix-bench"
    arguments = parser().parse_args(words[1:])
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {str(arguments.data), str(Path(arguments.out).parent)} <= mounts.keys()
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
        assert container["image"] == "IMAGE"


def test_the_launcher_of_the_installed_ray_reads_the_cloud_file():
    text = (CLUSTERS / "cloud.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    # In a process of its own: ray takes its settings from the environment when it is imported.
    read = "import sys, yaml; from ray.autoscaler._private.util import prepare_config, validate_config; "
    read += "validate_config(prepare_config(yaml.safe_load(open(sys.argv[1]))))"
    done = subprocess.run([sys.executable, "-c", read, CLUSTERS / "cloud.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"ray {RAY}" in text
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
    assert f"ray[default,client]=={RAY}." in (CLUSTERS / "cloud.md").read_text(encoding="utf-8")


def test_the_image_and_the_wheel_hold_every_package():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    dockerfile = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^COPY (\w+) \w+$", dockerfile, re.M)) == packages
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.rstrip("*") for pattern in included} == packages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_says_what_was_tried_and_links_to_what_exists(page):
    text = page.read_text(encoding="utf-8")
    assert re.search(r"^Tried: ", text, re.M)
    assert "Never tried: " in " ".join(text.split())
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
