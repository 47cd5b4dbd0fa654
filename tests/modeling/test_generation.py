"""Generation against what it promises: cache, padding and company change no text, mistakes are named.

What is drawn and what is searched have tests of their own (test_sampling, test_beams).
"""

import math
from collections import Counter

import pytest
import torch

from modeling.architecture import TransformerConfig
from modeling.errors import ConfigError
from modeling.generation import Generation, Rows, fill, generate
from modeling.heads.electra import Discriminator
from modeling.heads.language import LanguageModel

SMALL = {"layers": 2, "width": 32, "heads": 4, "ff_width": 48, "max_length": 32, "vocab_size": 90}
GPT2 = {
    **SMALL,
    "architecture": "decoder",
    "norm_placement": "pre",
    "norm_eps": 1e-5,
    "activation": "gelu-tanh",
    "head_transform": False,
    "head_bias": False,
}
T5 = {
    **SMALL,
    "architecture": "encoder-decoder",
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "norm_eps": 1e-6,
    "positions": "relative",
    "activation": "relu",
    "bias": False,
    "attention_scale": False,
    "head_transform": False,
    "head_bias": False,
    "head_scale": True,
}
MODELS = {
    "learned": GPT2,
    "offset": {**GPT2, "position_offset": 2},
    "rotary": {**GPT2, "positions": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation": "swiglu"},
    "relative": {**GPT2, "positions": "relative"},
    "prefix-lm": {**GPT2, "architecture": "prefix-lm", "positions": "relative"},
    "prefix-lm learned": {**GPT2, "architecture": "prefix-lm"},
    "t5": T5,
    "bart": {**SMALL, "architecture": "encoder-decoder", "position_offset": 2, "head_transform": False},
    "shared stacks": {**T5, "share_stacks": True},
    "shared layers": {**T5, "share_layers": True, "decoder_layers": 3},
}
# an output matrix of their own: with a tied one random models say the same token again and again
MODELS = {name: {**fields, "tie_embeddings": False} for name, fields in MODELS.items()}
PROMPTS = [[7, 3, 55, 20, 8], [11], [40, 41, 42, 43, 44, 45, 46, 47]]
GREEDY = {"temperature": 0.0, "max_new_tokens": 10}


def made(fields: dict, seed: int = 0) -> LanguageModel:
    """A language model whose weights are all far from their defaults, so that its choices are no accident."""
    torch.manual_seed(seed)
    model = LanguageModel(TransformerConfig(**fields)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.4))
            if name in ("transformer.tokens.weight", "head.matrix.weight"):
                p[model.config.vocab_size :] = 0
        if isinstance(model.head.bias, torch.nn.Parameter):
            model.head.bias[model.config.vocab_size :] = -1e4
    return model


def settings(model: LanguageModel, **fields) -> Generation:
    start = (0,) if model.config.architecture == "encoder-decoder" else ()
    return Generation(**{"start": start, **GREEDY, **fields})


# ---------------------------------------------------------------- cache, padding, batches


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "seed": 4, "count": 2}, {"beams": 3, "count": 2}])
def test_a_cache_changes_no_text(name, how):
    model = made(MODELS[name])
    asked = settings(model, **how)
    cached = generate(model, PROMPTS, settings=asked)
    assert cached == generate(model, PROMPTS, settings=asked, use_cache=False)
    assert len({tuple(text) for text in cached}) > 1 and len({token for text in cached for token in text}) > 2


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_and_padding_change_no_logits(name):
    """Each row's logits after every token, cached and not, beside longer rows, against the row alone."""
    model = made(MODELS[name])
    more = torch.randint(0, 90, (6, len(PROMPTS)), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = []
        for use_cache in (True, False):
            rows = Rows(model, PROMPTS, (0,), use_cache)
            steps = [rows.logits()]
            for ids_B in more:
                rows.append(ids_B)
                steps.append(rows.logits())
            found.append(torch.stack(steps, 1))
        alone = []
        for b, prompt in enumerate(PROMPTS):
            batch = {"input_ids": torch.tensor([[*prompt, *more[:, b].tolist()]])}
            if model.config.architecture == "encoder-decoder":
                batch = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, *more[:, b]]])}
            elif model.config.architecture == "prefix-lm":
                batch["prefix_mask"] = torch.arange(len(prompt) + 6)[None] < len(prompt)
            alone.append(model.logits(model.hidden(batch))[0, -7:])
    for logits in found:
        # logits are of the order of 10, in float32 sums of another order
        assert torch.allclose(logits, torch.stack(alone), atol=1e-4, rtol=1e-5)


def test_padding_may_stand_at_either_end():
    model = made(MODELS["learned"])
    ids, mask = torch.zeros(2, len(PROMPTS), 10, dtype=torch.int64)
    for b, prompt in enumerate(PROMPTS):
        first = 2 if b == 1 else 0
        ids[b, first : first + len(prompt)], mask[b, first : first + len(prompt)] = torch.tensor(prompt), 1
    asked = settings(model)
    assert generate(model, ids, attention_mask=mask, settings=asked) == generate(model, PROMPTS, settings=asked)


@pytest.mark.parametrize("name", ["rotary", "prefix-lm", "t5"])
def test_a_text_does_not_depend_on_the_others_of_its_batch(name):
    model = made(MODELS[name])
    for how in ({}, {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 11}, {"beams": 2}):
        asked = settings(model, **how)
        together = generate(model, PROMPTS, settings=asked)
        assert together[0] == generate(model, PROMPTS[:1], settings=asked)[0]
        assert together[0] == generate(model, [PROMPTS[0], PROMPTS[2]], settings=asked)[0]


def test_draws_have_no_state():
    model = made(MODELS["rotary"])
    asked = settings(model, temperature=1.0, seed=3, count=3)
    texts = generate(model, PROMPTS, settings=asked)
    assert texts == generate(model, PROMPTS, settings=asked)
    assert len({tuple(text) for text in texts}) == len(texts), "samples of one prompt differ"
    fewer = generate(model, PROMPTS, settings=settings(model, temperature=1.0, seed=3, count=1))
    assert fewer == texts[::3], "the first sample does not depend on how many there are"
    shorter = generate(model, PROMPTS, settings=settings(model, temperature=1.0, seed=3, count=3, max_new_tokens=4))
    assert shorter == [text[:4] for text in texts], "nor a token on how many follow"
    assert texts != generate(model, PROMPTS, settings=settings(model, temperature=1.0, seed=4, count=3))


def test_tokens_are_told_as_they_come_and_end_with_a_stop_id():
    model = made(MODELS["learned"])
    free = generate(model, PROMPTS, settings=settings(model))
    stop = (free[0][2], free[2][5])
    seen: list[tuple[int, int]] = []
    texts = generate(model, PROMPTS, settings=settings(model, stop=stop), on_token=lambda *pair: seen.append(pair))
    for text, whole in zip(texts, free, strict=True):
        ends = [n for n, token in enumerate(whole) if token in stop]
        assert text == (whole[: ends[0] + 1] if ends else whole)
    assert [[token for r, token in seen if r == row] for row in range(3)] == texts
    assert seen[:3] == [(row, text[0]) for row, text in enumerate(texts)], "step by step, not row by row"


def test_ids_that_may_not_be_said_are_not():
    model = made(MODELS["learned"])
    never = tuple(range(45))
    for how in ({}, {"temperature": 5.0, "count": 8}, {"beams": 3}):
        texts = generate(model, PROMPTS, settings=settings(model, never=never, **how))
        assert min(map(min, texts)) >= 45
    with torch.no_grad():
        model.head.weight(model.transformer.tokens)[90:] = 50.0  # padded ids: the embedding has 128 rows
    texts = generate(model, PROMPTS, settings=settings(model, temperature=20.0, count=20, max_new_tokens=20))
    assert max(map(max, texts)) < 90 and len({t for text in texts for t in text}) == 90


def test_sampling_has_the_models_frequencies():
    model = made(MODELS["rotary"])
    count = 4000
    texts = generate(model, PROMPTS[:1], settings=settings(model, temperature=1.5, count=count, max_new_tokens=1))
    with torch.no_grad():
        logits = model.logits(model.hidden({"input_ids": torch.tensor(PROMPTS[:1])}))[0, -1, :90]
    wanted = (logits / 1.5).softmax(-1)
    counts = Counter(text[0] for text in texts)
    for token in wanted.topk(5).indices.tolist():
        p = float(wanted[token])
        # five deviations of a binomial share
        assert abs(counts[token] / count - p) < 5 * math.sqrt(p * (1 - p) / count)


# ---------------------------------------------------------------- masks


def test_fill_gives_the_probabilities_behind_each_mask(monkeypatch):
    model = made({**SMALL, "tie_embeddings": False})
    rows = [[2, 4, 17, 4, 3], [2, 30, 31, 32, 33, 4, 3]]
    found = fill(model, rows, mask_id=4, top=4)
    assert [len(masks) for masks in found] == [2, 1]
    for row, masks in zip(rows, found, strict=True):
        logits = model.logits(model.hidden({"input_ids": torch.tensor([row])}))[0, :, :90]
        places = [n for n, token in enumerate(row) if token == 4]
        for place, candidates in zip(places, masks, strict=True):
            wanted = logits[place].softmax(-1).topk(4)
            assert [c.id for c in candidates] == wanted.indices.tolist()
            # padding another row changes the order of float32 sums
            assert torch.allclose(torch.tensor([c.probability for c in candidates]), wanted.values, rtol=1e-4)
    monkeypatch.setattr("modeling.generation.FILL_ROWS", 2)
    chunked = fill(model, rows, mask_id=4, top=4)
    assert [[c.id for c in masks[0]] for masks in chunked] == [[c.id for c in masks[0]] for masks in found]
    everything = fill(model, rows, mask_id=4, top=1000)[0][0]
    assert len(everything) == 90 and abs(sum(c.probability for c in everything) - 1) < 1e-5
    never = [everything[0].id, everything[5].id]
    others = fill(model, rows, mask_id=4, top=1000, never=never)[0][0]
    assert others == [c for c in everything if c.id not in never]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"beams": 4, "temperature": 0.7}, "beams 4 searches"),
        ({"beams": 4, "top_k": 5}, "choose one"),
        ({"temperature": 0.0, "count": 2}, "count 2 asks for different texts"),
        ({"beams": 2, "count": 3}, "no more than 2"),
        ({"stop": (1,), "never": (1, 2)}, r"share the ids \[1\]"),
        ({"top": 3}, "top"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields, said):
    with pytest.raises(ValueError, match=said):
        Generation(**fields)


def test_wrong_calls_are_refused_by_name():
    decoder, t5, encoder = made(GPT2), made(T5), made(SMALL)
    electra = Discriminator(TransformerConfig(**SMALL)).eval()
    for call, said in [
        (lambda: generate(encoder, [[1]]), "use fill"),
        (lambda: generate(electra, [[1]]), "a Discriminator does not write text"),
        (lambda: generate(decoder, [[]]), "the prompt is empty"),
        (lambda: generate(t5, [[]], settings=Generation(start=(0,))), "the prompt is empty"),
        (lambda: generate(t5, [[1]]), "settings.start is empty"),
        (lambda: generate(decoder, [[1, 90]]), "holds the id 90, and the vocabulary has 90 tokens"),
        (lambda: generate(decoder, [[1]], settings=Generation(never=(99,))), "never holds the id 99"),
        (lambda: generate(decoder, [[1] * 32]), "the prompt has 32 tokens, and model.max_length is 32; shorten it to"),
        (lambda: generate(t5, [[1] * 33], settings=Generation(start=(0,))), "the prompt has 33 tokens"),
        (lambda: generate(made(GPT2).train(), [[1]]), "training mode"),
        (lambda: fill(decoder, [[4]], mask_id=4), "use generate"),
        (lambda: fill(electra, [[4]], mask_id=4), "ELECTRA's discriminator"),
        (lambda: fill(encoder, [[4, 5], [5]], mask_id=4), "text 1 has no mask"),
        (lambda: fill(encoder, [[4] * 33], mask_id=4), "33 tokens, and model.max_length is 32"),
    ]:
        with pytest.raises(ConfigError, match=said):
            call()
    assert generate(decoder, []) == [] == fill(encoder, [], mask_id=4)


def test_an_empty_prompt_begins_with_start():
    model = made(GPT2)
    assert generate(model, [[]], settings=settings(model, start=(5,))) == generate(
        model, [[5]], settings=settings(model)
    )


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_the_end_of_the_positions_is_the_end_of_the_text_and_said(name):
    model = made(MODELS[name])
    notes: list[str] = []
    for beams in (1, 2):
        (text,) = generate(
            model, [[9] * 30], settings=settings(model, max_new_tokens=100, beams=beams), on_note=notes.append
        )
        assert len(text) == (2 if name == "learned" else 31)
    assert notes[0] == notes[1] and "1 of 1 texts cut after" in notes[0] and "model.max_length is 32" in notes[0]
    generate(model, [[9] * 3], settings=settings(model, max_new_tokens=5), on_note=notes.append)
    assert len(notes) == 2
