"""XLNet against Hugging Face's, both ways: logits of both streams, and every byte of the weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling.architecture import TransformerConfig
from modeling.checkpoint import build_model, load_model, save_model
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE
from modeling.hub import export_model, import_into, import_model

XLNET = {
    "positions": "transformer-xl",
    "embedding_norm": False,
    "head_transform": False,
    "token_types": 3,
    "max_length": 40,
}
SHAPES = [
    {"vocab_size": 70, "width": 32, "layers": 2, "heads": 4, "ff_width": 48},
    {"vocab_size": 128, "width": 24, "layers": 3, "heads": 2, "ff_width": 100, "norm_eps": 1e-5},
    {
        "vocab_size": 33,
        "width": 30,
        "layers": 1,
        "heads": 3,
        "ff_width": 16,
        "activation": "gelu-tanh",
        "norm_eps": 1e-5,
    },
]
CLOSE = 1e-5  # the parity that is asked for; logits here have a deviation near 1
PERMUTATION = {"name": "permutation-language-model", "settings": {}}


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """All weights, biases and norms away from their first values, which would hide a mix-up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def theirs_of(shape: dict, seed: int = 0):
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(seed)
    names = {"gelu-tanh": "gelu_new"}
    activation = shape.get("activation", "gelu")
    config = XLNetConfig(
        vocab_size=shape["vocab_size"],
        d_model=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        d_inner=shape["ff_width"],
        ff_activation=names.get(activation, activation),
        layer_norm_eps=shape.get("norm_eps", 1e-12),
    )
    return randomised(XLNetLMHeadModel(config), seed + 1)


def batch_of(shape: dict, padding: str, typed: bool, B: int = 3, L: int = 17, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows with targets in a random order; from row 1 on with padding. A first target sees what is no target."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(shape["vocab_size"], (B, L), generator=generator)
    mask, ranks = torch.ones(B, L, dtype=torch.bool), torch.full((B, L), -1)
    for b in range(B):
        if padding == "right":
            mask[b, L - 3 * b :] = b == 0
        if padding == "left":
            mask[b, : 3 * b] = False
        real = mask[b].nonzero().squeeze(1)
        targets = real[torch.randperm(len(real), generator=generator)[: 4 + b]]
        ranks[b, targets] = torch.arange(len(targets))
    batch = {
        "input_ids": ids,
        "labels": ids.masked_fill(ranks < 0, IGNORE),
        "attention_mask": mask,
        "ranks": ranks,
    }
    if typed:
        batch["token_type_ids"] = torch.randint(3, (B, L), generator=generator)
    return batch


def their_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """perm_mask[b, i, j] = 1: i does not see j; target_mapping [B, T, L]: one place for each target.

    What fills a row up has no place: theirs adds up the queries of one place.
    """
    ranks, labels = batch["ranks"], batch["labels"]
    B, L = labels.shape
    most = int((labels != IGNORE).sum(1).max())
    mapping = torch.zeros(B, most, L)
    for b in range(B):
        places = (labels[b] != IGNORE).nonzero().squeeze(1)
        mapping[b, torch.arange(len(places)), places] = 1
    # one mask for both streams, by the authors' rule; "a token sees itself" in the content stream they put in later
    sees = (ranks[:, None, :] < ranks[:, :, None]) | (ranks[:, None, :] == -1)
    return {
        "input_ids": batch["input_ids"],
        "input_mask": (~batch["attention_mask"]).float(),
        "perm_mask": (~sees).float(),
        "target_mapping": mapping,
        "token_type_ids": batch.get("token_type_ids"),
    }


def assert_same(ours, theirs, shape: dict) -> None:
    """Logits at the targets, with padding on either side and segments; and the plain stream's hidden states."""
    with torch.no_grad():
        for n, (padding, typed) in enumerate([("none", False), ("none", True), ("right", True), ("left", True)]):
            batch = batch_of(shape, padding, typed, seed=n)
            logits, labels = ours.labelled_logits(batch)
            expected = theirs(**their_inputs(batch)).logits
            count = (batch["labels"] != IGNORE).sum(1)
            expected = torch.cat([expected[b, : count[b]] for b in range(len(count))])
            assert expected.std() > 0.3
            assert torch.equal(labels, batch["labels"][batch["labels"] != IGNORE])
            assert (logits[:, : shape["vocab_size"]] - expected).abs().max() < CLOSE
            assert (logits[:, shape["vocab_size"] :] <= -9e3).all()

            mask, types = batch["attention_mask"], batch.get("token_type_ids")
            hidden = ours.transformer(batch["input_ids"], mask, types)
            plain = theirs.transformer(batch["input_ids"], attention_mask=mask.float(), token_type_ids=types)
            assert (hidden - plain.last_hidden_state)[mask].abs().max() < CLOSE


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s["width"]))
def test_their_model_gives_the_same_logits_here_and_every_byte_back(shape, tmp_path: Path):
    theirs = theirs_of(shape)
    theirs.save_pretrained(tmp_path / "theirs")
    import_into(tmp_path / "theirs", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert_same(ours, theirs, shape)
    export_model(tmp_path / "ours", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s["width"]))
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"token_types": 0}], ids=str)
def test_our_model_gives_the_same_logits_there_and_every_byte_back(shape, changes, tmp_path: Path):
    from transformers import AutoModel, AutoModelForCausalLM, XLNetLMHeadModel

    config = TransformerConfig(**{**XLNET, **shape, **changes})
    ours = build_model(config, PERMUTATION)
    vocab = shape["vocab_size"]
    randomised(ours, 5)
    with torch.no_grad():  # padded rows are zeros and never predicted, whatever training did
        ours.transformer.tokens.weight[vocab:] = 0
        ours.head.bias[vocab:] = -1e4
        if ours.head.matrix is not None:
            ours.head.matrix.weight[vocab:] = 0
    save_model(tmp_path / "ours", ours, config, PERMUTATION)
    told = export_model(tmp_path / "ours", tmp_path / "theirs")
    assert told["model_type"] == "xlnet" and told["left_out"] == []
    theirs, loading = XLNetLMHeadModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")).__name__ == "XLNetLMHeadModel"
    assert_same(ours, theirs.eval(), shape)

    trunk = AutoModel.from_pretrained(tmp_path / "theirs").eval()
    ids = torch.randint(vocab, (2, 9))
    with torch.no_grad():
        assert (trunk(ids).last_hidden_state - ours.transformer(ids)).abs().max() < CLOSE

    back = import_model(tmp_path / "theirs")
    assert back.config.model_dump() == config.model_dump() and back.head == PERMUTATION
    assert back.state.keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(back.state[name].view(torch.int32), value.view(torch.int32)), name


@pytest.mark.parametrize("head", [{"name": "language-model", "settings": {}}, {"name": "", "settings": {}}])
def test_a_masked_lm_and_a_bare_trunk_are_written_too(head, tmp_path: Path):
    from transformers import AutoModel, AutoModelForCausalLM

    config = TransformerConfig(**{**XLNET, **SHAPES[0]})
    ours = build_model(config, {"name": "language-model", "settings": {}}).eval()
    save_model(tmp_path / "ours", ours, config, head)
    export_model(tmp_path / "ours", tmp_path / "theirs")
    ids = torch.randint(70, (2, 9))
    with torch.no_grad():
        if head["name"]:
            theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
            found, expected = ours.logits(ours.transformer(ids))[..., :70], theirs(ids).logits
        else:
            theirs = AutoModel.from_pretrained(tmp_path / "theirs").eval()
            found, expected = ours.transformer(ids), theirs(ids).last_hidden_state
    assert (found - expected).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head_transform": True}, "head_transform is true"),
        ({"embedding_norm": True}, "embedding_norm is true"),
        ({"activation": "geglu"}, "activation is geglu"),
        ({"head_size": 16}, "head_size is 16"),
    ],
)
def test_what_theirs_cannot_be_is_refused_by_name(changes, named, tmp_path: Path):
    config = TransformerConfig(**{**XLNET, **SHAPES[0], **changes})
    save_model(tmp_path / "ours", build_model(config, PERMUTATION), config, PERMUTATION)
    with pytest.raises(ConfigError, match=f"nearest is xlnet.*{named}"):
        export_model(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize(("field", "value"), [("attn_type", "uni"), ("clamp_len", 9), ("bi_data", True)])
def test_options_we_do_not_build_are_refused_by_name(field, value, tmp_path: Path):
    theirs = theirs_of(SHAPES[0])
    setattr(theirs.config, field, value)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=f"{field} is {value!r}"):
        import_model(tmp_path / "theirs")
