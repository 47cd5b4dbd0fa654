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

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.files import cache_folder
from pipelines.definitions import Facts, Imports, both, checksum, module_facts

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
_FORMAT = 4  # of the cached facts; raise when `module_facts` changes
_WHOLE = "*"


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
            merged["imports"] = both(merged["imports"], facts["imports"])
        return merged

    def digest(self, roots: Iterable[str]) -> tuple[dict[str, str], str]:
        """All that the roots (`module:attribute`) reach: ({`module:definition`: digest}, one checksum)."""
        asked = tuple(roots)
        if asked not in self._digests:
            found: dict[str, str] = {}
            for root in asked:
                found.update(self._closure(root))
            ordered = dict(sorted(found.items()))
            self._digests[asked] = (ordered, checksum(json.dumps(list(ordered.items()))))
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
