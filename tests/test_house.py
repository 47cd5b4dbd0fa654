"""The rules of the house, held by reading the source: who imports whom, what the planner loads, what files may say.

The arrows are `pipelines → tasks → modeling` and `pipelines, tasks → cluster`. Imports inside functions
count, and so do the names in a `Registry` ("package.module:attribute"), which are imports at one remove.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pipelines": {"pipelines", "tasks", "modeling", "cluster"},
    "tasks": {"tasks", "modeling", "cluster"},
    "modeling": {"modeling"},
    "cluster": {"cluster"},
}
REGISTERED = re.compile(rf"((?:{'|'.join(MAY_IMPORT)})(?:\.\w+)+):\w+")
HEAVY = {"torch", "deepspeed", "mlflow", "ray", "transformers", "pyarrow", "numpy", "pandas", "scipy", "sklearn"}
HABIT_LINES, LIMIT_LINES = 400, 500


def house_files() -> list[Path]:
    """Every file that is in the repository or would be with `git add`; all of them where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        return [p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".v") for part in p.parts)]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def reached(source: str, package: str) -> dict[str, int]:
    """{dotted name: line} of what a module of `package` imports anywhere, and of what its registries name."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` means the package itself; each further dot, one level up
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            found[".".join([*base, *([node.module] if node.module else [])])] = node.lineno
        elif isinstance(node, ast.Constant) and (match := REGISTERED.fullmatch(str(node.value))):
            found[match[1]] = node.lineno
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for name, line in reached(path.read_text(), ".".join(path.parent.relative_to(ROOT).parts)).items()
        if (top := name.partition(".")[0]) in {*MAY_IMPORT, "tests", "benchmarks"} and top not in MAY_IMPORT[package]
    ]
    assert not wrong, f"{package} may import only {sorted(MAY_IMPORT[package])} of the house:\n" + "\n".join(wrong)


def test_reached_sees_functions_registries_and_relative_imports() -> None:
    source = 'from . import a\nfrom ..b import c\ndef f():\n    import cluster.x\nR = {"m": "modeling.heads:Head"}\n'
    assert reached(source, "tasks.sources") == {"tasks.sources": 1, "tasks.b": 2, "cluster.x": 4, "modeling.heads": 5}


def planner_modules() -> list[str]:
    """Modules that a plan loads: the command, the recipes, and every module in `tasks` with a task's config in it."""
    names = ["pipelines.cli", *(dotted(p) for p in modules("pipelines/recipes"))]
    for path in modules("tasks"):
        classes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
        if any(isinstance(base, ast.Name) and base.id in {"Task", "Config"} for c in classes for base in c.bases):
            names.append(dotted(path))
    return names


def test_planning_loads_nothing_heavy() -> None:
    """`triptych --help` and `plan` answer at once because no task's module loads more than pydantic."""
    code = (
        "import importlib, json, sys\n"
        f"names, heavy, blamed = {planner_modules()!r}, {HEAVY!r}, {{}}\n"
        "for name in names:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    new = {m.partition('.')[0] for m in set(sys.modules) - before} & heavy\n"
        "    if new: blamed[name] = sorted(new)\n"
        "print(json.dumps(blamed))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {}, "import these inside the functions that need them"


def test_files_have_one_idea() -> None:
    lengths = {
        str(p.relative_to(ROOT)): p.read_text().count("\n") for folder in MAY_IMPORT for p in modules(folder)
    } | {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in (*modules("tests"), *modules("benchmarks"))}
    long = {name: n for name, n in lengths.items() if n > HABIT_LINES}
    if long:
        warnings.warn(f"files over {HABIT_LINES} lines: {long}", stacklevel=1)
    assert not {name: n for name, n in long.items() if n > LIMIT_LINES}, f"over {LIMIT_LINES} lines: split by idea"


def test_every_module_says_why() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for folder in MAY_IMPORT
        for p in modules(folder)
        if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent, f"modules without a docstring: {silent}"


# Built from pieces, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.~{}<>*$)-])/(?:" + "|".join(["work", "root", "opt"]) + r")/\w"),
    "the name of a package registry": re.compile(r"pypi" + r"\.org|file" + r"://+opt|--(?:extra-)?index-" + "url"),
    "a secret": re.compile("AKIA" + r"[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|hf_" + r"[A-Za-z]{30,}"),
}


def test_no_file_holds_what_belongs_to_one_machine() -> None:
    wrong = []
    for path in house_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            if match := pattern.search(text):
                wrong.append(
                    f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1} has {what}: {match[0]}"
                )
    assert not wrong, "\n".join(wrong)


def test_the_readme_example_plans(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(example)
    (tmp_path / "articles.jsonl").write_text('{"text": "A short article."}\n')
    call = ["plan", "mine.py:lengths", "corpus=articles.jsonl", "--store", "store", "--json"]
    run = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *call],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "pretrain-128" in run.stdout


def test_repository_stays_small() -> None:
    """Data sets, runs and built things do not belong into it."""
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in house_files() if p.stat().st_size > 1_000_000}
    assert not large, f"files over 1 MB: {large}"


def test_pins_cover_the_dependencies() -> None:
    """constraints.txt pins every dependency within the range pyproject.toml gives, and any build of it will do."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert not [line for line in lines if "+" in line or "@" in line]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None and pin in requirement.specifier, f"{text}: constraints.txt has {pin}"


def test_ray_config_is_valid_for_the_cluster_launcher() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_worker"]["resources"]["GPU"] > 0 and "GPU" not in types["cpu_worker"]["resources"]
    assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in ("cpu_worker", "gpu_worker"))
    # who reaches the job server runs code: it must not listen beyond the head's own loopback
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start and "RAY_AUTH_MODE=token" in start
