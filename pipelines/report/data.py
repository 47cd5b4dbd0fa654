"""The report's section on data: corpora with their composition and funnel, tokenizers, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.report import composition, funnel, vocabularies

CLASSES = ("common", "variant", "misspelt", "novel")


def data_section(view: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the template shows of a view's data; parts that are missing are empty.

    corpora: every stage that made one. final: those from which no other corpus was made: what was trained on.
    """
    of = {str(stage["name"]): stage for stage in stages}
    corpora = _in_order(several(view.get("corpus")), of)
    made = {str(corpus.get("stage")) for corpus in corpora}
    used = {name for stage in made for name in of.get(stage, {}).get("inputs", ()) if name in made}
    final = [corpus for corpus in corpora if str(corpus.get("stage")) not in used]
    return {
        "corpora": corpora,
        "final": final,
        "compositions": [_composition(corpus) for corpus in final if rows_of(corpus, "components")],
        "funnels": [_funnel(corpus) for corpus in _cleaned(corpora, of)],
        "tokenizers": several(view.get("tokenizer")),
        "examples": several(view.get("examples")),
        "comparisons": [_comparison(item) for item in several(view.get("tokenizer_comparison"))],
    }


def several(value: Any) -> list[Mapping[str, Any]]:
    """A mapping, or a list of them, as a list without empty ones."""
    items = [value] if isinstance(value, Mapping) else list(value) if isinstance(value, list | tuple) else []
    return [item for item in items if isinstance(item, Mapping) and item]


def rows_of(item: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """The mappings in a field that holds a list of them."""
    return several(item.get(field)) if isinstance(item.get(field), list | tuple) else []


def _in_order(corpora: Sequence[Mapping[str, Any]], of: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each corpus after those it was made from, these as the stage lists them: a mixture's components in its order."""
    by_name = {str(corpus.get("stage")): corpus for corpus in corpora}
    used = {name for stage in by_name for name in of.get(stage, {}).get("inputs", ())}
    found: dict[str, Mapping[str, Any]] = {}
    # the last ones first, so that what they list decides; then whatever a loop of broken data hides
    stack = [(name, False) for name in reversed([*(n for n in by_name if n not in used), *by_name])]
    opened: set[str] = set()
    while stack:
        name, leaving = stack.pop()
        if leaving:
            found.setdefault(name, by_name[name])
        elif name not in opened:
            opened.add(name)
            stack.append((name, True))
            stack += [(n, False) for n in reversed(of.get(name, {}).get("inputs", ())) if n in by_name]
    return list(found.values()) if len(found) == len(corpora) else list(corpora)


def _cleaned(corpora: Sequence[Mapping[str, Any]], of: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Corpora with a funnel, but for those whose funnel is the beginning of another's, cleaned again."""
    found = [corpus for corpus in corpora if rows_of(corpus, "funnel")]
    names = {str(corpus.get("stage")) for corpus in found}
    again = {name for stage in names for name in of.get(stage, {}).get("inputs", ()) if name in names}
    return [corpus for corpus in found if str(corpus.get("stage")) not in again]


def _composition(corpus: Mapping[str, Any]) -> dict[str, Any]:
    rows = rows_of(corpus, "components")
    return {
        "stage": corpus.get("stage"),
        "picture": composition.picture(rows),
        "rows": rows,
        "tokens": any(row.get("tokens") is not None for row in rows),
        "categories": any(row.get("category") for row in rows),
    }


def _funnel(corpus: Mapping[str, Any]) -> dict[str, Any]:
    steps = []
    for row in rows_of(corpus, "funnel"):
        removed = row.get("removed")
        steps.append(
            {
                **row,
                "removed": removed if isinstance(removed, Mapping) else {},
                "reasons": _largest(row.get("reasons")),
                "counts": _largest(row.get("counts")),
                "facts": row.get("facts") if isinstance(row.get("facts"), Mapping) else {},
                "samples": [_sample(sample) for sample in rows_of(row, "samples")],
            }
        )
    return {
        "stage": corpus.get("stage"),
        "picture": funnel.picture(steps),
        "steps": [s for s in steps[1:] if s["reasons"] or s["counts"] or s["facts"] or s["samples"]],
        "idle": [str(s.get("step")) for s in steps[1:] if not (s["reasons"] or s["counts"] or s["samples"])],
    }


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    after = sample.get("after")
    return {
        "id": funnel.visible(sample.get("id")),
        "reason": sample.get("reason"),
        "before": funnel.visible(sample.get("before")),
        "after": None if after is None else funnel.visible(after),
    }


def _largest(counts: Any) -> list[tuple[str, Any]]:
    """{what: number} with the largest first."""
    if not isinstance(counts, Mapping):
        return []
    return sorted(((str(k), v) for k, v in counts.items() if isinstance(v, int | float)), key=lambda i: (-i[1], i[0]))


def _comparison(item: Mapping[str, Any]) -> dict[str, Any]:
    """Charts, rows, and the words with what each tokenizer makes of them, class by class."""
    rows = rows_of(item, "rows")
    words = [{**word, "pieces": _pieces(word.get("pieces"))} for word in rows_of(item, "examples")]
    known = [name for word in words for name in word["pieces"]]
    return {
        "stage": item.get("stage"),
        "charts": vocabularies.pictures(rows),
        "rows": rows,
        "words": sorted(words, key=lambda word: _class(word.get("class"))),
        "names": list(dict.fromkeys(known)),
    }


def _pieces(pieces: Any) -> dict[str, list[str]]:
    if not isinstance(pieces, Mapping):
        return {}
    return {str(name): [str(piece) for piece in found] for name, found in pieces.items() if isinstance(found, list)}


def _class(name: Any) -> int:
    return CLASSES.index(name) if name in CLASSES else len(CLASSES)
