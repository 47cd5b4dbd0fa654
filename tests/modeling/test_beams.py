"""Beam search against all sequences there are, and against transformers on the same weights, copied here."""

import itertools

import pytest
import torch

from modeling.generation import generate
from modeling.heads.language import LanguageModel
from tests.modeling.test_generation import GPT2, MODELS, PROMPTS, T5, made, settings


def log_probability(model: LanguageModel, prompt: list[int], text: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *text]])
    batch = {"input_ids": ids}
    if model.config.architecture == "encoder-decoder":
        batch = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, *text[:-1]]])}
    with torch.inference_mode():
        vocab = model.config.vocab_size
        logits = model.logits(model.hidden(batch))[0, :, :vocab].double().log_softmax(-1)
    first = 0 if model.config.architecture == "encoder-decoder" else len(prompt) - 1
    return sum(float(logits[first + n, token]) for n, token in enumerate(text))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("name", ["learned", "t5"])
def test_a_wide_search_finds_the_best_of_all_sequences(name, penalty):
    model = made({**MODELS[name], "vocab_size": 5})
    limit, stop, prompt = 4, 2, [1, 3]
    texts = [
        (*body, *end)
        for length in range(limit + 1)
        for body in itertools.product((0, 1, 3, 4), repeat=length)
        for end in ((stop,), ())
        if len(body) + len(end) == limit or (end and length < limit)
    ]
    scores = {text: log_probability(model, prompt, text) / len(text) ** penalty for text in texts}
    best = sorted(scores, key=lambda text: -scores[text])[:3]
    asked = settings(model, beams=4**limit, count=3, max_new_tokens=limit, length_penalty=penalty, stop=(stop,))
    assert generate(model, [prompt], settings=asked) == [list(text) for text in best]


def test_one_beam_of_two_is_no_worse_than_greedy():
    model = made(MODELS["learned"])
    greedy, found = (generate(model, PROMPTS, settings=settings(model, **how)) for how in ({}, {"beams": 8}))
    gained = [
        log_probability(model, prompt, tuple(b)) - log_probability(model, prompt, tuple(a))
        for prompt, a, b in zip(PROMPTS, greedy, found, strict=True)
    ]
    assert max(gained) > 1e-3 and min(gained) > -1e-3


# ---------------------------------------------------------------- transformers on the same weights


def gpt2_of(model: LanguageModel):
    from transformers import GPT2Config, GPT2LMHeadModel

    c, trunk = model.config, model.transformer
    V = c.padded_vocab_size
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V, n_positions=c.max_length, n_embd=c.width, n_layer=c.layers, n_head=c.heads, n_inner=c.ff_width
        )
    ).eval()
    state = {"wte.weight": trunk.tokens.weight, "wpe.weight": trunk.decoder.positions.weight}
    for kind in ("weight", "bias"):
        state[f"ln_f.{kind}"] = getattr(trunk.decoder.final_norm, kind)
        for n, block in enumerate(trunk.decoder.blocks):
            state[f"h.{n}.ln_1.{kind}"] = getattr(block.attention_norm, kind)
            state[f"h.{n}.ln_2.{kind}"] = getattr(block.ff_norm, kind)
            linear = {"attn.c_attn": block.attention.qkv, "attn.c_proj": block.attention.output}
            linear |= {"mlp.c_fc": block.ff.input, "mlp.c_proj": block.ff.output}
            for their_name, layer in linear.items():
                value = getattr(layer, kind)
                state[f"h.{n}.{their_name}.{kind}"] = value.T if kind == "weight" else value
    theirs.transformer.load_state_dict(state)
    return theirs


def t5_of(model: LanguageModel):
    from transformers import T5Config, T5ForConditionalGeneration

    c, trunk = model.config, model.transformer
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=c.padded_vocab_size,
            d_model=c.width,
            d_kv=c.head_width,
            d_ff=c.ff_width,
            num_layers=c.layers,
            num_heads=c.heads,
            decoder_start_token_id=0,
        )
    ).eval()
    state = {"shared.weight": trunk.tokens.weight}
    for side, stack in (("encoder", trunk.encoder), ("decoder", trunk.decoder)):
        state[f"{side}.embed_tokens.weight"] = trunk.tokens.weight
        state[f"{side}.final_layer_norm.weight"] = stack.final_norm.weight
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = stack.relative.weight
        for n, block in enumerate(stack.blocks):
            at, last = f"{side}.block.{n}.layer", 1 if side == "encoder" else 2
            for letter, part in zip("qkv", block.attention.qkv.weight.chunk(3), strict=True):
                state[f"{at}.0.SelfAttention.{letter}.weight"] = part
            state[f"{at}.0.SelfAttention.o.weight"] = block.attention.output.weight
            state[f"{at}.0.layer_norm.weight"] = block.attention_norm.weight
            state[f"{at}.{last}.DenseReluDense.wi.weight"] = block.ff.input.weight
            state[f"{at}.{last}.DenseReluDense.wo.weight"] = block.ff.output.weight
            state[f"{at}.{last}.layer_norm.weight"] = block.ff_norm.weight
            if side == "decoder":
                cross = stack.cross[n]
                k, v = cross.key_value.weight.chunk(2)
                named = {"q": cross.query.weight, "k": k, "v": v, "o": cross.output.weight}
                state |= {f"{at}.1.EncDecAttention.{name}.weight": value for name, value in named.items()}
                state[f"{at}.1.layer_norm.weight"] = cross.norm.weight
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return theirs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["learned", "t5"])
def test_choices_are_those_of_transformers(name, seed):
    """Greedy and beam search, batches with padding, stop ids reached at different steps, several texts a prompt."""
    # all 128 rows of the matrix are tokens, as theirs are
    model = made({**(GPT2 if name == "learned" else T5), "vocab_size": 128}, seed)
    theirs = gpt2_of(model) if name == "learned" else t5_of(model)
    prompts = [[7, 3, 55, 20, 8], [11, 5], [40, 41, 42, 43, 44, 45, 46, 47]]
    width = max(map(len, prompts))
    left = name == "learned"
    rows = [[0] * (width - len(p)) + p if left else p + [0] * (width - len(p)) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) if left else [1] * len(p) + [0] * (width - len(p)) for p in prompts]
    ids, mask = torch.tensor(rows), torch.tensor(mask)
    free = generate(model, prompts, settings=settings(model, max_new_tokens=8))
    stop = free[seed % 3][2]
    cases = [({}, {}), ({"beams": 4, "count": 2}, {"num_beams": 4, "num_return_sequences": 2})]
    cases += [
        ({"beams": 3, "length_penalty": p}, {"num_beams": 3, "length_penalty": p, "early_stopping": "never"})
        for p in (1.0, 0.0, 2.0)
    ]
    stopped: list[bool] = []
    for ours, asked in cases:
        if ours.get("beams") == 4:
            asked["early_stopping"] = "never"
        found = generate(model, prompts, settings=settings(model, max_new_tokens=8, stop=(stop,), **ours))
        made_by_them = theirs.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=8, eos_token_id=stop, pad_token_id=127, **asked
        )
        new = made_by_them[:, width if left else 1 :].tolist()
        expected = [row[: row.index(stop) + 1] if stop in row else row for row in new]
        assert found == expected, (ours, asked)
        stopped.append(any(text[-1] == stop for text in found))
    assert any(stopped) and len(set(map(tuple, found))) > 1
