"""The corpus of installed documentation: cleaning, parameters, and a split that keeps modules whole."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from tasks.corpus_reader import read_batches
from tasks.ingest import Ingest
from tasks.sources import installed_docs
from tasks.sources.base import Part, ReadOptions, Tally
from tasks.sources.docstrings import clean, is_prose
from tasks.sources.installed_docs import InstalledDocs, Module, installed, modules
from tests.tasks.stage import digests, run_stage

SOURCE = '''
"""What this module is for, told in a sentence of some length."""

class Solver:
    """Solve a :class:`~pkg.System` of ``n`` equations by elimination.

    Parameters
    ----------
    tol, atol : float, default 1e-8
        How small a pivot may be.
    method : {"lu", "qr"}
        See `the book <http://example.org/book>`_.

    .. versionadded:: 1.2

    .. note:: Singular systems raise an error.

    Examples
    --------
    >>> Solver().solve()
    array([1, 2])

    +-----+-----+
    | a   | b   |
    +=====+=====+
    """

    def solve(self, matrix):
        """Return the solution of the system, one row per equation.

        Args:
            matrix (torch.Tensor, optional): the coefficients
            copy (`bool`, *optional*, defaults to `False`): whether to copy
        """

if True:
    def helper():
        """short"""

add_docstr(pkg.fast, r"""
fast(x) -> Tensor

A compiled function that is fast on every input it gets. {common}
""".format(**common))
'''


def test_docstrings_become_documents(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text(SOURCE)
    part = Part("p", [Module("pkg", "pkg.mod", str(tmp_path / "mod.py"))])
    found = {d.id: d for d in InstalledDocs().read(part, ReadOptions(), Tally("p", ReadOptions()))}
    assert list(found) == ["pkg:pkg.mod:", "pkg:pkg.mod:Solver", "pkg:pkg.mod:Solver.solve", "pkg:pkg.mod:pkg.fast"]
    solver, method = found["pkg:pkg.mod:Solver"], found["pkg:pkg.mod:Solver.solve"]
    assert solver.text == dedent(
        """\
        Solve a System of n equations by elimination.

        Parameters
        tol, atol : float, default 1e-8
            How small a pivot may be.
        method : {"lu", "qr"}
            See the book.

        Note: Singular systems raise an error.

        Examples"""
    )
    meta = json.loads(solver.meta)
    assert meta["kind"] == "class" and meta["library"] == "pkg" and meta["object"] == "Solver"
    assert meta["summary"] == "Solve a System of n equations by elimination."
    assert meta["parameters"] == [
        {"name": "tol, atol", "type": "float, default 1e-8"},
        {"name": "method", "type": '{"lu", "qr"}'},
    ]
    parameters = json.loads(method.meta)["parameters"]
    assert parameters[0] == {"name": "matrix", "type": "torch.Tensor, optional"}
    assert all(p["type"] in method.text for p in parameters)
    assert {d.group for d in found.values()} == {"pkg:pkg.mod"}
    assert "{" not in found["pkg:pkg.mod:pkg.fast"].text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Uses :func:`numpy.dot` and :py:meth:`!go`.", "Uses numpy.dot and go."),
        (".. code-block:: python\n\n    x = 1\n\nAfter.", "After."),
        ("Title\n=====\nText **bold** here::", "Title\nText bold here:"),
        ("Text.\n\n```python\ncode()\n```\n", "Text."),
        ("Text\n\n:param int n: how many\n:returns: a list", "Text\n\nint n: how many\nReturns: a list"),
        (".. [1] Knuth, 1968.", "[1] Knuth, 1968."),
    ],
)
def test_cleaning(raw: str, expected: str) -> None:
    assert clean(raw)[0] == expected


def test_prose() -> None:
    assert is_prose("This sentence has at least eight words of plain English.")
    assert not is_prose("Too short.")
    assert not is_prose("1 2 3 4 5 6 7 8 9 10 == >= <= (x) [y] {z} 11 12 13 14")


def test_the_libraries_here() -> None:
    names = [name for name, _, _ in installed()]
    assert names == sorted(names, key=str.lower) and {"numpy", "torch", "ray"} <= set(names)
    found = [module for module, _ in modules()]
    assert len({(m.library, m.name) for m in found}) == len(found)
    assert not any(".tests." in m.name for m in found)
    fingerprint = Ingest().external()
    assert set(fingerprint) == {"python", "libraries"} and fingerprint["libraries"]["numpy"]
    assert Ingest().validation_share == 0.1 and Ingest(validation_share=0.3).validation_share == 0.3


def test_no_module_is_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_docs, "LIBRARIES", {"networkx": ("networkx",), "joblib": ("joblib",)})
    monkeypatch.setattr(installed_docs, "_BUNDLE_BYTES", 300_000)
    standard = installed_docs.modules
    monkeypatch.setattr(installed_docs, "modules", lambda: (m for m in standard() if m[0].library != "python"))
    runs = [run_stage(Ingest(validation_share=0.2), tmp_path / str(i)).out for i in range(2)]
    assert digests(runs[0]) == digests(runs[1])
    sides = []
    for split in ("train", "validation"):
        rows = [r for b in read_batches(runs[0], split, ("text", "meta")) for r in b.to_pylist()]
        metas = [json.loads(r["meta"]) for r in rows]
        sides.append({m["module"] for m in metas})
        assert all(p["type"] in r["text"] for r, m in zip(rows, metas, strict=True) for p in m["parameters"])
    assert not sides[0] & sides[1]
    share = len(sides[1]) / (len(sides[0]) + len(sides[1]))
    assert 0.1 < share < 0.3
