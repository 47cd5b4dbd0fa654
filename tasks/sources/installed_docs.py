"""`installed-docs`: the documentation inside the Python libraries installed here.

Docstrings of the standard library and of the libraries below, read from the source files by `ast` (nothing
of them is imported), cleaned of markup, each with facts for self-labelled tasks: library, module, object,
summary, parameters with their types. Tens of MB of technical English that need no network. The split is
drawn by module, so no module is on both sides. What the corpus is depends on the installed versions alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.files import File
from tasks.sources.base import Document, Part, ReadOptions, Source, Tally
from tasks.sources.docstrings import clean, is_prose, summary

# Distribution -> packages, where the names differ. Those that are not installed are left out.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "SQLAlchemy": ("sqlalchemy",),
    "aiohttp": ("aiohttp",),
    "alembic": ("alembic",),
    "deepspeed": ("deepspeed",),
    "fastapi": ("fastapi",),
    "fonttools": ("fontTools",),
    "fsspec": ("fsspec",),
    "huggingface_hub": ("huggingface_hub",),
    "hypothesis": ("hypothesis",),
    "joblib": ("joblib",),
    "matplotlib": ("matplotlib", "mpl_toolkits"),
    "mlflow": ("mlflow",),
    "mpmath": ("mpmath",),
    "networkx": ("networkx",),
    "nltk": ("nltk",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "pillow": ("PIL",),
    "pyarrow": ("pyarrow",),
    "pydantic": ("pydantic",),
    "pytest": ("_pytest",),
    "ray": ("ray",),
    "rich": ("rich",),
    "scikit-learn": ("sklearn",),
    "scipy": ("scipy",),
    "setuptools": ("setuptools",),
    "sympy": ("sympy",),
    "torch": ("torch",),
    "transformers": ("transformers",),
}
STANDARD_LIBRARY = "python"

_LEFT_OUT = {
    "tests", "test", "testing", "__pycache__", "_vendor", "_vendored", "vendor", "vendored", "extern",
    "externals", "thirdparty", "third_party", "thirdparty_files", "site-packages", "dist-packages", "idlelib",
    "lib2to3", "ensurepip", "pydoc_data", "_internal_tests",
}  # fmt: skip
# A third of all source here: much parsing for little text, which hundreds of model files say alike.
_LEFT_OUT_MODULES = ("transformers/models", "torch/_inductor", "torch/_dynamo")
_BUNDLE_BYTES = 3 << 20  # of source per part: about half a second of parsing
_DOC_CALLS = frozenset({"add_newdoc", "add_docstr", "_add_newdoc_ufunc", "add_newdoc_for_scalar_type"})


class Module(NamedTuple):
    library: str
    name: str
    path: str


class InstalledDocs(Source):
    """The reader; its parts are bundles of modules in a fixed order."""

    def fingerprint(self, source: str | tuple[str, ...]) -> Mapping[str, Any]:
        return {
            "python": ".".join(map(str, sys.version_info[:3])),
            "libraries": dict(sorted((name, version) for name, version, _ in installed())),
        }

    def files(self, source: str | tuple[str, ...]) -> list[File]:
        return []

    def parts(self, files: Sequence[File], options: ReadOptions) -> Iterator[Part]:
        number = 0
        held: list[Module] = []
        size = 0
        for module, module_bytes in modules():
            held.append(module)
            size += module_bytes
            if size >= _BUNDLE_BYTES:
                yield Part(f"modules-{number:04d}", held)
                number, held, size = number + 1, [], 0
        if held:
            yield Part(f"modules-{number:04d}", held)

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        import gc

        collecting = gc.isenabled()
        gc.disable()  # syntax trees are many small objects without cycles; collecting them costs a third of the time
        try:
            for module in part.at:
                yield from _documents(Module(*module))
        finally:
            if collecting:
                gc.enable()


def installed() -> list[tuple[str, str, list[Path]]]:
    """(distribution, version, package folders) of the libraries that are here, sorted by name."""
    from importlib.metadata import PackageNotFoundError, distribution

    found = []
    for name in sorted(LIBRARIES, key=str.lower):
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            continue
        folders = [Path(str(dist.locate_file(package))) for package in LIBRARIES[name]]
        if folders := [folder for folder in folders if folder.is_dir()]:
            found.append((name, dist.version, folders))
    return found


def modules() -> Iterator[tuple[Module, int]]:
    """(module, bytes of source) of all libraries, in a fixed order."""
    import sysconfig

    standard = Path(sysconfig.get_paths()["stdlib"])
    for library, base, folders in [(STANDARD_LIBRARY, standard, [standard])] + [
        (name, folder.parent, [folder]) for name, _, all_folders in installed() for folder in all_folders
    ]:
        for folder in folders:
            for root, subfolders, files in os.walk(folder):
                subfolders[:] = sorted(
                    d
                    for d in subfolders
                    if d not in _LEFT_OUT
                    and not d.startswith(".")
                    and Path(root, d).relative_to(base).as_posix() not in _LEFT_OUT_MODULES
                )
                for file in sorted(files):
                    if (
                        not file.endswith(".py")
                        or file.startswith("test_")
                        or file.endswith(("_pb2.py", "conftest.py"))
                    ):
                        continue
                    path = Path(root, file)
                    dotted = ".".join(path.relative_to(base).with_suffix("").parts)
                    yield Module(library, dotted.removesuffix(".__init__"), str(path)), path.stat().st_size


def _documents(module: Module) -> Iterator[Document]:
    import ast
    import warnings

    source = Path(module.path).read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries' escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and files for other Python versions
        return
    group = f"{module.library}:{module.name}"
    for qualname, kind, raw in _docstrings(tree):
        text, parameters = clean(raw)
        if not is_prose(text):
            continue
        meta: dict[str, Any] = {
            "library": module.library,
            "module": module.name,
            "object": qualname,
            "kind": kind,
            "summary": summary(text),
            "parameters": parameters,
        }
        yield Document(
            id=f"{group}:{qualname}",
            text=text,
            source=module.library,
            meta=json.dumps(meta, sort_keys=True, ensure_ascii=False),
            group=group,
            same_as=re.sub(r"\d+", "0", " ".join(text.split()).lower()),
        )


def _docstrings(tree: Any) -> Iterator[tuple[str, str, str]]:
    """(qualified name, kind, raw docstring) of a module's objects, in the order of the source."""
    import ast

    def own(node: Any) -> str | None:
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            value = node.body[0].value.value
            return value if isinstance(value, str) else None
        return None

    def inside(body: list[Any], prefix: str, in_class: bool) -> Iterator[tuple[str, str, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{node.name}"
                is_class = isinstance(node, ast.ClassDef)
                if (doc := own(node)) is not None:
                    yield name, "class" if is_class else "method" if in_class else "function", doc
                if is_class:
                    yield from inside(node.body, name + ".", True)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                yield from inside(node.body, prefix, in_class)
                yield from inside(getattr(node, "orelse", []), prefix, in_class)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (found := _added(node.value)):
                yield found

    if (doc := own(tree)) is not None:
        yield "", "module", doc
    yield from inside(tree.body, "", False)


def _added(call: Any) -> tuple[str, str, str] | None:
    """The documentation that a call such as `add_newdoc("numpy", "abs", text)` gives to a compiled object."""
    import ast

    if (getattr(call.func, "id", None) or getattr(call.func, "attr", None)) not in _DOC_CALLS:
        return None
    texts, name = [], []
    for argument in call.args:
        target = argument
        if isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute) and target.func.attr == "format":
            target = target.func.value  # its placeholders stand for shared paragraphs
        for constant in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                if "\n" in constant.value:
                    texts.append(re.sub(r"\{\w+\}", "", constant.value))
                else:
                    name.append(constant.value)
            elif isinstance(constant, ast.Attribute):
                name.append(ast.unparse(constant))
    return (".".join(name), "function", texts[-1]) if texts else None
