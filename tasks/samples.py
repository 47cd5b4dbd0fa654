"""What a model says of a few held-out examples, as it learns: predictions at masks, texts that it writes, or which
tokens it takes for replaced ones.

The same examples each time: the first of the validation split, with the masks that validation has. Predictions are the
most probable ones, so nothing is drawn, and training goes on as if nobody had looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.example_reader import ExampleReader

EXAMPLES = 4
SHOWN_TOKENS = 72
"""Of a row with masks."""
PROMPT_TOKENS, NEW_TOKENS = 40, 24
CANDIDATES = 3
_BEGINS = ("Ġ", "▁")
FILE = "samples.json"


class Sampler:
    """Asks a model (in evaluation mode) about the examples; a list of dicts, JSON values.

    A masked row is {"pieces": [token, …]}, with {"truth": token, "top": [[token, probability], …]} at labelled places.
    A row with replaced tokens (ELECTRA) is {"pieces": [{"token", "replaced": the discriminator's probability that it is
    no original, "truth": the original, where it is none}, …]}: what the generator puts at validation's masks.
    A written text is {"prompt", "truth", "written"}: of a decoder the row's continuation, otherwise the targets.
    A model whose head gives no probabilities of tokens has no samples: [].
    """

    def __init__(self, reader: ExampleReader, tokenizer_json: Path) -> None:
        import numpy as np
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self.tokens = reader.vocabulary.tokens
        self.eos = reader.vocabulary.special_tokens.get("eos")
        self.architecture, self.paired = reader.architecture, reader.settings.paired
        count = min(len(reader), EXAMPLES)
        self.batch = reader.batch(np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1))

    def __call__(self, model: Any) -> list[dict[str, Any]]:
        from modeling.heads.language import LanguageModel

        if isinstance(model, LanguageModel) and self.architecture != "encoder":
            return [self._written(model, row) for row in range(len(self.batch["input_ids"]))]
        if hasattr(model, "discriminator"):
            return self._detected(model)
        return self._masked(model) if hasattr(model, "labelled_logits") else []

    def _tensors(self, model: Any) -> dict[str, Any]:
        import torch

        device = next(model.parameters()).device
        return {name: torch.from_numpy(array).to(device) for name, array in self.batch.items()}

    def _detected(self, model: Any) -> list[dict[str, Any]]:
        batch = self._tensors(model)
        _, filled_BL = model.generate(batch)
        seen = {name: batch[name] for name in ("attention_mask", "segment_ids", "position_ids") if name in batch}
        shares_BL = model.discriminator.replaced_logits({**seen, "input_ids": filled_BL}).sigmoid()
        rows = []
        for ids, truths, shares, mask in zip(
            filled_BL.tolist(), batch["original_ids"].tolist(), shares_BL.tolist(), self._seen(), strict=True
        ):
            pieces = [
                {"token": self.tokens[i], "replaced": round(p, 4)} | ({"truth": self.tokens[t]} if i != t else {})
                for i, t, p, visible in zip(ids, truths, shares, mask, strict=True)
                if visible
            ]
            rows.append({"pieces": pieces[:SHOWN_TOKENS]})
        return rows

    def _seen(self) -> Any:
        """[B, L]: False at padding."""
        import numpy as np

        return self.batch.get("attention_mask", np.ones_like(self.batch["labels"]))

    def _masked(self, model: Any) -> list[dict[str, Any]]:
        batch = self._tensors(model)
        logits_NV, _ = model.labelled_logits(batch)
        best = logits_NV[:, : model.config.vocab_size].float().softmax(-1).topk(CANDIDATES)
        found = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        rows = []
        for ids, labels, seen in zip(
            self.batch["input_ids"].tolist(), self.batch["labels"].tolist(), self._seen(), strict=True
        ):
            pieces: list[Any] = []
            for token, label, visible in zip(ids, labels, seen, strict=True):
                if label >= 0:
                    top = [[self.tokens[i], round(p, 4)] for i, p in zip(*next(found), strict=True)]
                    pieces.append({"truth": self.tokens[label], "top": top})
                elif visible:
                    pieces.append(self.tokens[token])
            rows.append({"pieces": pieces[:SHOWN_TOKENS]})
        return rows

    def _written(self, model: Any, row: int) -> dict[str, Any]:
        from modeling.generation import Generation, generate

        ids = self.batch["input_ids"][row]
        if "attention_mask" in self.batch:
            ids = ids[self.batch["attention_mask"][row].astype(bool)]
        labels = self.batch["labels"][row]
        truth, start = labels[labels >= 0], ()
        if "decoder_input_ids" in self.batch:
            start = (int(self.batch["decoder_input_ids"][row][0]),)
        elif self.paired:  # inputs and targets in one row: the first label is said after the last input
            ids = ids[: int((labels >= 0).argmax()) + 1]
        else:
            cut = max(1, min(PROMPT_TOKENS, len(ids) // 2))
            ids, truth = ids[:cut], ids[cut:]
        settings = Generation(
            temperature=0.0,
            max_new_tokens=NEW_TOKENS,
            start=start,
            stop=(self.eos,) if self.eos is not None and (start or self.paired) else (),
        )
        written = generate(model, [ids.tolist()], settings=settings)[0]
        shown = ids if start or self.paired else ids[-PROMPT_TOKENS:]
        return {
            "prompt": self._text(shown[:SHOWN_TOKENS].tolist()),
            "truth": self._text(truth[:NEW_TOKENS].tolist()),
            "written": self._text(written),
        }

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def spaced(pieces: list[Any]) -> list[tuple[str, Any]]:
    """(space before it or none, piece): tokens of a text read without the `##`, `Ġ` and `▁` that say where words begin.

    A piece is a token, a place with a "truth", or a "token" with the probability that it is "replaced".
    """
    shown = [piece if isinstance(piece, str) else piece.get("token", "") for piece in pieces]
    marks_begin = any(token.startswith(_BEGINS) for token in shown)
    found = []
    for piece, token in zip(pieces, shown, strict=True):
        whole = token or piece["truth"]
        begins = whole.startswith(_BEGINS) if marks_begin else not whole.startswith("##")
        if token and marks_begin == begins:
            token = token[1:] if marks_begin else token.removeprefix("##")
            piece = token if isinstance(piece, str) else {**piece, "token": token}
        found.append((" " if begins else "", piece))
    return found


def as_html(step: int, samples: list[Mapping[str, Any]]) -> str:
    """A page of its own for the tracker: what the model says after so many steps."""
    from html import escape

    parts = []
    for sample in samples:
        if "pieces" in sample:
            words = (
                space + (_place(piece) if isinstance(piece, Mapping) else escape(piece))
                for space, piece in spaced(sample["pieces"])
            )
            parts.append(f"<p>{''.join(words)}</p>")
        else:
            cells = (("prompt", "soft"), ("written", "said"), ("truth", "truth"))
            rows = (f'<tr><th>{name}</th><td class="{kind}">{escape(sample[name])}</td></tr>' for name, kind in cells)
            parts.append(f"<table>{''.join(rows)}</table>")
    title = f"Samples after {step:,} steps"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p class=note>Held-out examples. At a masked place: the model's first choice and its "
        f"probability, then the true token where it is another. A token that a generator put in: the model's "
        f"probability that it is no original, then the original; without one it is an original that the model takes "
        f"for replaced.</p>{''.join(parts)}</html>\n"
    )


def _place(place: Mapping[str, Any]) -> str:
    from html import escape

    if "token" in place:
        return _judged(place)
    token, probability = place["top"][0]
    right = token == place["truth"]
    rest = ", ".join(f"{t} {p:.0%}" for t, p in place["top"][1:])
    truth = "" if right else f' <i class="truth">{escape(place["truth"])}</i>'
    kind = "right" if right else "wrong"
    return f'<b class="{kind}" title="{escape(rest)}">{escape(token)} <small>{probability:.0%}</small></b>{truth}'


def _judged(place: Mapping[str, Any]) -> str:
    from html import escape

    token, share, truth = escape(place["token"]), place["replaced"], place.get("truth")
    if share < 0.5 and truth is None:
        return f'<span title="{share:.0%}">{token}</span>'
    kind = "right" if (share >= 0.5) == (truth is not None) else "wrong"
    original = f' <i class="truth">{escape(truth)}</i>' if truth is not None else ""
    return f'<b class="{kind}">{token} <small>{share:.0%}</small></b>{original}'


_STYLE = """
body { font: 15px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.2rem } .note, th { color: #59636e } p { border-top: 1px solid #d1d9e0; padding-top: .6rem }
b { padding: 0 .3em; border-radius: .3em; font-weight: 600 } 
.right { background: #d2f2dc } .wrong { background: #fde2dc }
.truth { color: #1a7f37 } small { font-weight: 400; color: #59636e }
table { border-top: 1px solid #d1d9e0; width: 100% }
th { text-align: left; width: 6rem; vertical-align: top; font-weight: 400 } .said { font-weight: 600 }
"""
