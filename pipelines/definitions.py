"""What a module defines, imports and does when it is loaded, from its syntax tree."""

from __future__ import annotations

import ast
import hashlib
import json
from typing import Any

Facts = dict[str, Any]
Imports = dict[str, list[list[str]]]
"""{local name: [[module, attribute or ""], …]}: several where branches import different things under one name."""


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


def checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _absolute(module: str, package: str, level: int) -> str:
    if not level:
        return module
    base = package.split(".")
    base = base[: len(base) - level + 1]
    return ".".join([*base, module] if module else base)


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


def both(first: Imports, second: Imports) -> Imports:
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
            imports = both(imports, _imports(node, package))
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
            imports = both(imports, nested)
        entry: Facts = {"parts": _parts(node), "refs": _references(node), "imports": nested}
        for name in bound:
            if name in definitions:  # bound twice: both statements count
                old: Facts = definitions[name]
                entry = {
                    "parts": {name: checksum(json.dumps([old["parts"], entry["parts"]], sort_keys=True))},
                    "refs": sorted({*old["refs"], *entry["refs"]}),
                    "imports": both(old["imports"], entry["imports"]),
                }
            definitions[name] = entry
    block = ast.Module(body=effects, type_ignores=[])
    return {
        "definitions": definitions,
        "imports": imports,
        "effects": {"digest": checksum(_canonical(effects)) if effects else "", "refs": _references(block)},
    }


def _parts(node: ast.stmt) -> dict[str, str]:
    if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
        rest = [m for m in node.body if m not in methods]
        frame = ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list)
        parts = {node.name: checksum(_canonical(frame))}
        for method in methods:
            name = f"{node.name}.{method.name}"
            parts[name] = checksum(parts.get(name, "") + _canonical(method))  # property getter and setter share a name
        return parts
    names = _bound(node)
    return {names[0] if names else "?": checksum(_canonical(node))}
