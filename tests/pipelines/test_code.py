"""The code digest moves with what a stage uses, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.code import PACKAGES, ROOT, CodeIndex
from pipelines.definitions import module_facts

BASE = {
    "app.py": '''
"""Docs."""
from helper import scale, Shape
import deep.inner as inner
from registry import THINGS

LIMIT = 3

def unused():
    return 1

def work(x):
    """What it does."""
    return scale(x) * LIMIT + inner.twice(x)

class Stage:
    """A stage."""
    size: Shape
    def run(self):
        return work(2)
    def describe(self):
        return THINGS["a"]
''',
    "helper.py": "def scale(x):\n    return x * FACTOR\n\nFACTOR = 2\n\nclass Shape: ...\n\ndef other(): return 0\n",
    "deep/__init__.py": "",
    "deep/inner.py": "def twice(x):\n    return 2 * x\n\ndef thrice(x):\n    return 3 * x\n",
    "registry.py": """
from modeling.config import Registry
THINGS = Registry("thing", {"a": "thing_a:f", "b": "thing_b:f"})
""",
    "thing_a.py": "def f():\n    return 1\n",
    "thing_b.py": "def f():\n    return 2\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def digest(folder: Path, *roots: str) -> dict[str, str]:
    return CodeIndex([folder]).digest(roots or ("app:Stage",))[0]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("app.py", "LIMIT = 3", "LIMIT = 3  # three"),
        ("app.py", '"""What it does."""', '"""Other words."""'),
        ("app.py", "def unused():\n    return 1", "def unused():\n    return 100"),
        ("app.py", "scale(x) * LIMIT", "(scale(x)\n        * LIMIT)"),
        ("helper.py", "def other(): return 0", "def other(): return 5"),
        ("deep/inner.py", "3 * x", "4 * x"),
        ("registry.py", '"b": "thing_b:f"', '"b": "thing_b:f", "c": "thing_c:f"'),
        ("thing_b.py", "return 2", "return 3"),
    ],
)
def test_what_is_not_used_moves_nothing(tmp_path: Path, file: str, old: str, new: str) -> None:
    write(tmp_path, BASE)
    before = digest(tmp_path, "app:Stage", "thing_a:f")
    assert old in BASE[file]
    (tmp_path / file).write_text(BASE[file].replace(old, new))
    assert digest(tmp_path, "app:Stage", "thing_a:f") == before


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("app.py", "LIMIT = 3", "LIMIT = 4", "app:LIMIT"),
        ("app.py", "return work(2)", "return work(3)", "app:Stage.run"),
        ("helper.py", "FACTOR = 2", "FACTOR = 7", "helper:FACTOR"),
        ("helper.py", "class Shape: ...", "class Shape:\n    n = 1", "helper:Shape"),
        ("deep/inner.py", "2 * x", "x + x", "deep.inner:twice"),
        ("thing_a.py", "return 1", "return 11", "thing_a:f"),
        ("deep/__init__.py", "", "print('loaded')", "deep:(top level)"),
    ],
)
def test_what_is_used_moves_and_is_named(tmp_path: Path, file: str, old: str, new: str, named: str) -> None:
    write(tmp_path, BASE)
    before = digest(tmp_path, "app:Stage", "thing_a:f")
    (tmp_path / file).write_text(BASE[file].replace(old, new) if old else new)
    after = digest(tmp_path, "app:Stage", "thing_a:f")
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {named}


def test_a_module_used_as_a_value_counts_whole(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b\ndef f(): return g(b)\ndef g(m): return m\n", "b.py": "def x(): return 1\n"})
    before = digest(tmp_path, "a:f")
    assert "b:x" in before


def test_imports_inside_functions_and_relative_ones_are_followed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pkg/__init__.py": "",
            "pkg/a.py": "def f():\n    from .b import g\n    return g()\n",
            "pkg/b.py": "def g():\n    return h()\n\ndef h():\n    return 1\n",
        },
    )
    assert set(digest(tmp_path, "pkg.a:f")) == {"pkg.a:f", "pkg.b:g", "pkg.b:h"}


def test_guarded_and_repeated_definitions_count(tmp_path: Path) -> None:
    source = "try:\n    import fast as lib\nexcept ImportError:\n    lib = None\nif lib:\n    X = 1\nelse:\n    X = 2\n"
    facts = module_facts(source + "def f():\n    return X, lib\n", "")
    assert {"X", "lib", "f"} <= set(facts["definitions"])


def test_the_cache_gives_the_same_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, BASE)
    first = CodeIndex([tmp_path])
    found = first.digest(["app:Stage"])
    first.save()
    assert (tmp_path / "cache" / "triptych").exists()
    assert CodeIndex([tmp_path]).digest(["app:Stage"]) == found


def project_copy(folder: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_siblings_in_our_own_registries_do_not_touch_each_other(tmp_path: Path) -> None:
    """Every objective, downstream task and recipe: changing one leaves the digests of the others alone."""
    from pipelines.recipes import RECIPES
    from tasks.downstream import DOWNSTREAM
    from tasks.objectives import OBJECTIVES

    project = project_copy(tmp_path)
    stages = ["tasks.examples:MakeExamples", "tasks.pretrain:Pretrain", "tasks.finetune:Finetune"]

    def all_digests() -> dict[str, str]:
        index = CodeIndex(project=project)
        found = {stage: index.digest([stage])[1] for stage in stages}
        for registry in (OBJECTIVES, DOWNSTREAM):
            for name, target in registry.items():
                found[f"{registry.kind} {name}"] = index.digest(["tasks.datasets:LabelledData", target])[1]
        return found

    before = all_digests()
    for target in RECIPES.values():  # a recipe is part of no stage
        path = project / (target.partition(":")[0].replace(".", "/") + ".py")
        path.write_text(path.read_text() + "\n\nADDED = 1\n")
    objectives = project / "tasks/objectives/__init__.py"
    objectives.write_text(objectives.read_text().replace('"mlm":', '"new": "tasks.objectives.new:New", "mlm":'))
    assert '"new":' in objectives.read_text()
    (project / "tasks/objectives/new.py").write_text("class New: ...\n")
    assert all_digests() == before


def test_branches_that_import_different_things_under_one_name_all_count(tmp_path: Path) -> None:
    write(tmp_path, BASE)
    branches = "    if a:\n        from thing_a import f\n    else:\n        from thing_b import f\n"
    (tmp_path / "branches.py").write_text(f"def pick(a):\n{branches}    return f()\n")
    assert {"thing_a:f", "thing_b:f"} <= set(digest(tmp_path, "branches:pick"))
