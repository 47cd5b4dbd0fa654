"""The code digest: which definitions a stage runs, and a checksum of each, from the syntax tree.

Starting from a task's class (and the registry entries that its config names) the digest follows
references definition by definition: a function that mentions `collate` depends on `collate`, wherever
that name was imported from, and on nothing else of that module but its bare top-level statements.
So a comment, a docstring, formatting, or a change to a sibling that is not reached moves no key.

Where a reference cannot be resolved to one definition (a module used as a value), the whole module
counts. Only project modules are followed: the four packages and the folder of the user's own recipe;
library versions are recorded in the manifest, not in the key. `PLACEMENT` modules say where work runs,
never what it computes, and are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.files import cache_folder

PACKAGES = ("pipelines", "tasks", "modeling", "cluster")
PLACEMENT = frozenset(
    {
        "tasks.base",
        "modeling.checkpoints.capture",
        "modeling.checkpoints.checkpointer",
        "modeling.checkpoints.layout",
        "modeling.checkpoints.policy",
        "modeling.checkpoints.reader",
        "modeling.checkpoints.shards",
        "modeling.checkpoints.snapshot",
        "modeling.checkpoints.universal",
        "modeling.checkpoints.writer",
        "modeling.config",
        "modeling.errors",
        "modeling.hardware",
        "modeling.memory_use",
        "modeling.prefetch",
        "modeling.step_clock",
        "cluster.deepspeed",
        "cluster.errors",
        "cluster.faults",
        "cluster.lines",
        "cluster.parallel",
        "cluster.workers",
        "cluster.store",
        "cluster.tracking",
    }
)
ROOT = Path(__file__).resolve().parent.parent
_FORMAT = 4  # of the cached facts; raise when `_facts` changes
_WHOLE = "*"

Facts = dict[str, Any]


def _canonical(node: Any) -> str:
    """The syntax tree as text without positions, docstrings or empty fields (so Python versions agree)."""
    if isinstance(node, ast.AST):
        body = getattr(node, "body", None)
        parts = []
        for field, value in ast.iter_fields(node):
            if value is None or value == []:
                continue
            if field == "body" and isinstance(body, list) and _docstring(body):
                value = body[1:]
            if field in ("type_comment", "ctx"):
                continue
            parts.append(f"{field}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    return repr(node)


def _docstring(body: list[Any]) -> bool:
    return bool(
        body
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _absolute(module: str, package: str, level: int) -> str:
    if not level:
        return module
    base = package.split(".")
    base = base[: len(base) - level + 1]
    return ".".join([*base, module] if module else base)


Imports = dict[str, list[list[str]]]
"""{local name: [[module, attribute or ""], …]}: several where branches import different things under one name."""


def _imports(node: ast.AST, package: str) -> Imports:
    """Of the import statements at or below `node`."""
    found: Imports = {}

    def add(name: str, module: str, attribute: str = "") -> None:
        meant = found.setdefault(name, [])
        if [module, attribute] not in meant:
            meant.append([module, attribute])

    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            for alias in item.names:
                if alias.asname:
                    add(alias.asname, alias.name)
                else:
                    first = alias.name.partition(".")[0]
                    add(first, first)
                    add("import " + alias.name, alias.name)
        elif isinstance(item, ast.ImportFrom):
            module = _absolute(item.module or "", package, item.level)
            for alias in item.names:
                add(alias.asname or alias.name, module, alias.name)
    return found


def _both(first: Imports, second: Imports) -> Imports:
    """All that either says of each name."""
    found = {name: list(meant) for name, meant in first.items()}
    for name, meant in second.items():
        known = found.setdefault(name, [])
        known.extend(each for each in meant if each not in known)
    return found


def _references(node: ast.AST) -> list[str]:
    """Names and dotted chains rooted at a name that the node mentions, longest first: `a.b.c`, `a`."""
    found: set[str] = set()
    inner: set[int] = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and id(item) not in inner:
            chain: list[str] = []
            part: ast.AST = item
            while isinstance(part, ast.Attribute):
                chain.append(part.attr)
                inner.add(id(part))
                part = part.value
            if isinstance(part, ast.Name):
                inner.add(id(part))
                found.add(".".join([part.id, *reversed(chain)]))
    for item in ast.walk(node):
        if isinstance(item, ast.Name) and id(item) not in inner:
            found.add(item.id)
    return sorted(found)


def _bound(node: ast.AST) -> list[str]:
    """Names that a top-level statement binds (not looking into functions or classes)."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    names: list[str] = []
    for item in ast.iter_child_nodes(node):
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
            names.append(item.id)
        elif not isinstance(item, ast.Lambda):
            names.extend(_bound(item))
    return names


def _is_registry(node: ast.AST) -> bool:
    value = getattr(node, "value", None)
    return (
        isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "Registry"
    )


def _skipped(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":` never run as part of a stage."""
    if not isinstance(node, ast.If):
        return False
    test = ast.unparse(node.test)
    return test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") or test.startswith("__name__ ==")


def module_facts(source: str, package: str) -> Facts:
    """What a module defines: {definitions: {name: {parts, refs, imports}}, imports, effects, loads}.

    `parts` maps `name` or `Class.method` to a digest, so that a change can be named; `effects` is the
    pseudo-definition of all statements that bind no name.
    """
    tree = ast.parse(source)
    definitions: dict[str, Facts] = {}
    imports: Imports = {}
    effects: list[ast.stmt] = []
    for index, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports = _both(imports, _imports(node, package))
            continue
        if _skipped(node) or (index == 0 and _docstring(tree.body)):
            continue
        if _is_registry(node):
            definitions.update(
                {name: {"parts": {name: "registry"}, "refs": [], "imports": {}} for name in _bound(node)}
            )
            continue
        bound = _bound(node)
        nested = _imports(node, package)
        if not bound and not nested:
            effects.append(node)
            continue
        if isinstance(node, ast.If | ast.Try) and nested:  # guarded imports: `try: import x`
            imports = _both(imports, nested)
        entry: Facts = {"parts": _parts(node), "refs": _references(node), "imports": nested}
        for name in bound:
            if name in definitions:  # bound twice: both statements count
                old: Facts = definitions[name]
                entry = {
                    "parts": {name: _digest(json.dumps([old["parts"], entry["parts"]], sort_keys=True))},
                    "refs": sorted({*old["refs"], *entry["refs"]}),
                    "imports": _both(old["imports"], entry["imports"]),
                }
            definitions[name] = entry
    block = ast.Module(body=effects, type_ignores=[])
    return {
        "definitions": definitions,
        "imports": imports,
        "effects": {"digest": _digest(_canonical(effects)) if effects else "", "refs": _references(block)},
    }


def _parts(node: ast.stmt) -> dict[str, str]:
    if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
        rest = [m for m in node.body if m not in methods]
        frame = ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list)
        parts = {node.name: _digest(_canonical(frame))}
        for method in methods:
            name = f"{node.name}.{method.name}"
            parts[name] = _digest(parts.get(name, "") + _canonical(method))  # property getter and setter share a name
        return parts
    names = _bound(node)
    return {names[0] if names else "?": _digest(_canonical(node))}


class CodeIndex:
    """Facts of the project's modules, read once and kept in the user's cache by size and time of change.

    Args:
        roots: folders that project modules are found below, besides Triptych's own packages.
        project: where Triptych's own packages are.
    """

    def __init__(self, roots: Iterable[Path] = (), project: Path = ROOT) -> None:
        self.roots = [project, *(Path(r).resolve() for r in roots)]
        self._facts: dict[str, Facts | None] = {}
        self._closures: dict[str, dict[str, str]] = {}
        self._digests: dict[tuple[str, ...], tuple[dict[str, str], str]] = {}
        self._file = cache_folder() / f"code-{_FORMAT}.json"
        self._cache: dict[str, Any] = {}
        self._dirty = False
        try:
            self._cache = json.loads(self._file.read_text())
        except (OSError, ValueError):
            self._cache = {}

    def save(self) -> None:
        """Keep what was parsed for the next process; a failure to write costs time only."""
        if not self._dirty:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._cache))
            temporary.replace(self._file)
            self._dirty = False
        except OSError:
            pass

    def stamps(self, names: Iterable[str]) -> list[tuple[str, int, int]]:
        """(file, bytes, time of change) of the modules behind a digest's names, as they were when read."""
        found = []
        for module in sorted({name.partition(":")[0] for name in names} - {"__main__"}):
            path = self._path(module)
            if path is not None and (cached := self._cache.get(str(path))):
                found.append((str(path), *cached[0]))
        return found

    def _path(self, module: str) -> Path | None:
        parts = module.split(".")
        roots = self.roots[:1] if parts[0] in PACKAGES else self.roots[1:]
        for root in roots:
            base = root.joinpath(*parts)
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                if path.is_file():
                    return path
        return None

    def facts(self, module: str) -> Facts | None:
        """Facts of a project module; None where the module is a library's."""
        if module in self._facts:
            return self._facts[module]
        facts: Facts | None = None
        if module == "__main__":
            facts = self._main_facts()
        elif (path := self._path(module)) is not None:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            cached = self._cache.get(str(path))
            if cached and cached[0] == stamp:
                facts = cached[1]
            else:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                facts = module_facts(path.read_text(encoding="utf-8"), package)
                self._cache[str(path)] = [stamp, facts]
                self._dirty = True
        self._facts[module] = facts
        return facts

    @staticmethod
    def _main_facts() -> Facts | None:
        """A script's or notebook's own definitions: its file, or the cells that IPython remembers."""
        main = sys.modules.get("__main__")
        path = getattr(main, "__file__", None)
        if path and os.path.isfile(path):
            return module_facts(Path(path).read_text(encoding="utf-8"), "")
        cells = getattr(main, "In", None)
        if not isinstance(cells, list):
            return None
        merged: Facts = {"definitions": {}, "imports": {}, "effects": {"digest": "", "refs": []}}
        for cell in cells:
            try:
                facts = module_facts(cell, "")
            except SyntaxError:  # magics; they define nothing a stage can use
                continue
            merged["definitions"].update(facts["definitions"])
            merged["imports"] = _both(merged["imports"], facts["imports"])
        return merged

    def digest(self, roots: Iterable[str]) -> tuple[dict[str, str], str]:
        """All that the roots (`module:attribute`) reach: ({`module:definition`: digest}, one checksum)."""
        asked = tuple(roots)
        if asked not in self._digests:
            found: dict[str, str] = {}
            for root in asked:
                found.update(self._closure(root))
            ordered = dict(sorted(found.items()))
            self._digests[asked] = (ordered, _digest(json.dumps(list(ordered.items()))))
        return self._digests[asked]

    def _closure(self, root: str) -> dict[str, str]:
        if root in self._closures:
            return self._closures[root]
        found: dict[str, str] = {}
        todo = [root]
        seen: set[str] = set()
        while todo:
            item = todo.pop()
            if item in seen:
                continue
            seen.add(item)
            module, _, name = item.partition(":")
            if module in PLACEMENT:
                continue
            facts = self.facts(module)
            if facts is None:
                continue
            todo.append(f"{module}:")  # reaching a module runs its bare statements and its packages'
            if "." in module:
                todo.append(f"{module.rpartition('.')[0]}:")
            if name == "":
                effects = facts["effects"]
                if effects["digest"]:
                    found[f"{module}:(top level)"] = effects["digest"]
                    todo.extend(self._resolve(module, facts, effects["refs"], {}))
            elif name == _WHOLE:
                todo.extend(f"{module}:{each}" for each in facts["definitions"])
            elif name in facts["definitions"]:
                entry = facts["definitions"][name]
                found.update({f"{module}:{part}": digest for part, digest in entry["parts"].items()})
                todo.extend(self._resolve(module, facts, entry["refs"], entry["imports"]))
            elif name in facts["imports"]:  # re-exported
                todo.extend(self._resolve(module, facts, [name], {}))
            elif self.facts(f"{module}.{name}") is not None:
                todo.append(f"{module}.{name}:{_WHOLE}")
            # else: a name made at run time (globals(), module __getattr__): nothing to follow
        self._closures[root] = found
        return found

    def _resolve(self, module: str, facts: Facts, refs: Iterable[str], nested: Imports) -> list[str]:
        """References of a definition as `module:name` items."""
        imports = {**facts["imports"], **nested}
        items: list[str] = []
        for ref in refs:
            first, *rest = ref.split(".")
            if first in facts["definitions"] and first not in nested:
                items.append(f"{module}:{first}")
            for target, attribute in imports.get(first, ()):
                if attribute:
                    if self.facts(f"{target}.{attribute}") is not None:  # `from tasks import metrics`
                        items.append(self._attribute(f"{target}.{attribute}", rest))
                    else:
                        items.append(f"{target}:{attribute}")
                elif self.facts(target) is not None:
                    items.append(self._attribute(target, rest))
        for known in (nested, facts["imports"]):  # importing runs the module
            items.extend(f"{target}:" for meant in known.values() for target, _ in meant)
        return items

    def _attribute(self, module: str, rest: list[str]) -> str:
        """`pkg.mod.f` by way of `import pkg`: follow modules as far as they go, then one definition."""
        while rest and self.facts(f"{module}.{rest[0]}") is not None:
            module, rest = f"{module}.{rest[0]}", rest[1:]
        return f"{module}:{rest[0] if rest else _WHOLE}"
