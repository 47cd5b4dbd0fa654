"""Commands that use a model: generate, fill, export."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from pipelines.cli_options import JsonOption, StoreOption, show_json

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's folder (ours or the Hub's), an artifact's key, RUN/STAGE, a run, or latest.",
    ),
]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads it from standard input.")]


def generate(
    model: ModelArgument,
    prompt: TextArgument,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Tokens at most.")] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            help="0: the most probable token each time. [default: 0; 1 with --top-k, --top-p, --seed or --count]",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Draw from the K most probable tokens.")] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="P", help="Draw from the fewest tokens of probability P together.")
    ] = 1.0,
    beams: Annotated[int, typer.Option("--beams", metavar="N", help="2 or more: beam search.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="Same seed, same text. [default: 0]")] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Texts to write.")] = 1,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Continue a text (decoder, prefix LM) or answer it (encoder-decoder)."""
    import time

    from pipelines.models import find_model
    from pipelines.prompts import Stream, encode_prompt, generation_ids, load_text_model

    folder = find_model(model, store)
    text = _text(prompt)
    from modeling.generation import Generation, check_writes
    from modeling.generation import generate as write

    asked = {"max_new_tokens": max_new_tokens, "top_k": top_k, "top_p": top_p, "beams": beams, "seed": seed or 0}
    if temperature is None:  # chance only where it is asked for, as `generate` of the Hub's library has it
        by_chance = top_k or top_p < 1 or seed is not None or count > 1
        temperature = 1.0 if by_chance or beams > 1 else 0.0
    asked |= {"count": count, "temperature": temperature}
    _settings(Generation, asked)  # before the model is read
    loaded = load_text_model(folder, model)
    check_writes(loaded.model)
    settings = _settings(Generation, {**asked, **generation_ids(loaded)})
    ids = encode_prompt(loaded, text)
    context, before = (ids, text) if loaded.continues else ([], "")
    streams = not json and count == 1 and beams == 1
    told, untold = Stream(loaded, context), [before]

    def on_token(row: int, token: int) -> None:
        _say((untold.pop() if untold else "") + told.add(token))

    notes: list[str] = []
    began = time.perf_counter()
    answers = write(
        loaded.model, [ids], settings=settings, on_token=on_token if streams else None, on_note=notes.append
    )
    seconds = time.perf_counter() - began
    texts = [_after(loaded, context, answer) for answer in answers]
    if json:
        show_json(
            {
                "model": str(folder),
                "prompt": text,
                "prompt_ids": ids,
                "text": texts[0],
                "ids": answers[0],
                "texts": [{"text": t, "ids": a} for t, a in zip(texts, answers, strict=True)],
                "tokens_per_second": round(sum(map(len, answers)) / seconds, 2),
                "notes": notes,
            }
        )
        return
    if streams:
        _say(told.end() + "\n")
    else:
        _say("---\n".join(f"{before}{answer}\n" for answer in texts))
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def fill(
    model: ModelArgument,
    text: TextArgument,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Candidates for each mask.")] = 5,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say what may stand at each [MASK] of a text (encoder)."""
    from pipelines.models import find_model
    from pipelines.prompts import decode, encode_masked, ids_of_nothing, load_text_model

    folder = find_model(model, store)
    text = _text(text)
    loaded = load_text_model(folder, model)
    from modeling.generation import check_fills
    from modeling.generation import fill as candidates_of

    check_fills(loaded.model)
    ids = encode_masked(loaded, text)
    mask = loaded.roles["mask"]
    (masks,) = candidates_of(loaded.model, [ids], mask_id=mask, top=top, never=ids_of_nothing(loaded))
    best = iter(masks)
    filled = decode(loaded, [next(best)[0].id if i == mask else i for i in ids])
    rows = [
        [{"token": _word(loaded, c.id), "id": c.id, "probability": round(c.probability, 6)} for c in candidates]
        for candidates in masks
    ]
    if json:
        show_json({"model": str(folder), "text": text, "filled": filled, "masks": rows})
        return
    typer.echo(filled)
    for n, candidates in enumerate(rows, 1):
        typer.echo(f"mask {n}" if len(rows) > 1 else "mask")
        for row in candidates:
            typer.echo(f"  {row['probability']:.4f}  {row['token']}")


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A new folder.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model in the Hugging Face Hub's layout."""
    from pathlib import Path

    from pipelines.models import find_model

    folder = find_model(model, store)
    from modeling.hub import export_model

    found = export_model(folder, Path(to).expanduser())
    load = f"transformers.{found['architecture']}.from_pretrained({to!r})"
    if json:
        show_json({"model": str(folder), "to": to, "load": load, **found})
        return
    typer.echo(f"{found['architecture']} ({found['model_type']}, {found['parameters']:,} parameters) in {to}")
    for name in found["files"]:
        typer.echo(f"  {name}")
    for name in found["left_out"]:
        typer.echo(f"note: left out, the Hub's {found['model_type']} has no place for it: {name}", err=True)
    typer.echo(f"load it: {load}")


# ---------------------------------------------------------------- helpers


def _settings(kind: Any, asked: dict[str, Any]) -> Any:
    """A config of the options, whose mistakes are named as the options are."""
    from pydantic import ValidationError

    from cluster.errors import BadConfig
    from modeling.errors import ConfigError

    try:
        return kind(**asked)
    except ConfigError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        cause = (first.get("ctx") or {}).get("error")
        if isinstance(cause, ConfigError):
            raise cause from None
        name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        raise BadConfig(f"--{name} is {first['input']!r}: {first['msg'].lower()}") from None


def _text(argument: str) -> str:
    """The argument, or standard input where it is `-`, without its last line end."""
    if argument != "-":
        return argument
    from cluster.errors import BadData

    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadData(f"standard input is not UTF-8 text (byte {error.start})", "convert it first") from None


def _say(text: str) -> None:
    """On standard output, at once."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _after(loaded: Any, context: list[int], ids: list[int]) -> str:
    """The text of new ids behind their context, as streaming tells it."""
    from pipelines.prompts import Stream

    stream = Stream(loaded, context)
    return "".join(stream.add(token) for token in ids) + stream.end()


def _word(loaded: Any, token: int) -> str:
    """A candidate as a person reads it; a special token, or bytes that are no text, by its name."""
    from pipelines.prompts import BROKEN, decode

    text = decode(loaded, [token]).strip()
    return text if text and BROKEN not in text else str(loaded.tokenizer.id_to_token(token))


def add(app: typer.Typer) -> None:
    """Put the commands of this module into the application."""
    for command in (generate, fill, export):
        app.command()(command)
