"""The presets' fields: published sizes, and a modern recipe for those who want the best one today.

A config that names a preset holds its fields in full, so these tables are no part of a stage's key. What was
published of each, to count against, is in `modeling.published`.
"""

from __future__ import annotations

from typing import Any

# ---------------------------------------------------------------- encoders


def bert(layers: int, width: int) -> dict[str, Any]:
    """BERT (Devlin et al. 2018, section 3; the small ones: Turc et al. 2019): heads of 64, ff 4·width."""
    return {
        "layers": layers,
        "width": width,
        "heads": width // 64,
        "ff_width": 4 * width,
        "max_length": 512,
        "token_types": 2,
        "dropout": 0.1,
    }


def roberta(layers: int, width: int) -> dict[str, Any]:
    """RoBERTa (Liu et al. 2019, section 3): BERT without segments; positions begin after the pad id, 1."""
    return {**bert(layers, width), "token_types": 0, "position_offset": 2, "norm_eps": 1e-5}


def electra(layers: int, width: int, embedding_width: int, generator_share: float) -> dict[str, Any]:
    """ELECTRA's discriminator (Clark et al. 2020, table 6); its generator is `generator_share` as wide."""
    return {**bert(layers, width), "embedding_width": embedding_width, "generator_share": generator_share}


def albert(layers: int, width: int) -> dict[str, Any]:
    """ALBERT (Lan et al. 2020, table 1): E = 128, all layers one; no dropout, as in the second release."""
    return {
        **bert(layers, width),
        "embedding_width": 128,
        "share_layers": True,
        "activation": "gelu-tanh",
        "dropout": 0.0,
    }


def xlnet(layers: int, width: int) -> dict[str, Any]:
    """XLNet (Yang et al. 2019, appendix A.4): relative positions and segments; the output layer is a tied matrix."""
    return {
        **bert(layers, width),
        "positions": "transformer-xl",
        "token_types": 3,  # A, B and that of [CLS], which tell same from different only
        "embedding_norm": False,
        "head_transform": False,
    }


# ---------------------------------------------------------------- decoders


def gpt2(layers: int, width: int, heads: int, max_length: int = 1024, **changes: Any) -> dict[str, Any]:
    """GPT-2 (Radford et al. 2019, table 2): pre-norm, residual projections start smaller with depth."""
    return {
        "architecture": "decoder",
        "layers": layers,
        "width": width,
        "heads": heads,
        "ff_width": 4 * width,
        "max_length": max_length,
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu-tanh",
        "head_transform": False,
        "head_bias": False,
        "scaled_init_residual": True,
        "dropout": 0.1,
        **changes,
    }


def gpt3(layers: int, width: int, heads: int, head_size: int = 0) -> dict[str, Any]:
    """GPT-3 (Brown et al. 2020, table 2.1): GPT-2 at 2,048 tokens.

    Every second layer of theirs attends in a sparse band, which changes no parameter; here all are dense.
    """
    return gpt2(layers, width, heads, max_length=2048, head_size=head_size, dropout=0.0)


def gopher(heads: int) -> dict[str, Any]:
    """Gopher (Rae et al. 2021, table 1) and Chinchilla (Hoffmann et al. 2022, table 4): 80 layers, heads of 128.

    RMSNorm, no bias. Their relative positions are Transformer-XL's, here T5's: theirs have one matrix more in each
    layer, width × width, which `modeling.published` counts.
    """
    return {
        "architecture": "decoder",
        "layers": 80,
        "width": 128 * heads,
        "heads": heads,
        "ff_width": 4 * 128 * heads,
        "max_length": 2048,
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "norm_eps": 1e-6,
        "positions": "relative",
        "bias": False,
        "head_transform": False,
        "head_bias": False,
    }


# ---------------------------------------------------------------- encoder-decoders and their relatives


def t5(
    layers: int, width: int, heads: int, head_size: int, ff_width: int, architecture: str = "encoder-decoder"
) -> dict[str, Any]:
    """T5 1.0 (Raffel et al. 2020, sections 2.1 and 3.7): RMSNorm, no bias, relative positions, no scale of scores."""
    return {
        "architecture": architecture,
        "layers": layers,
        "width": width,
        "heads": heads,
        "head_size": head_size,
        "ff_width": ff_width,
        "max_length": 512,
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
        "init": "fan-in",
        "dropout": 0.1,
    }


def t5_1_1(layers: int, width: int, heads: int, ff_width: int) -> dict[str, Any]:
    """T5 1.1 (their code's release notes): GEGLU, an output matrix of its own, no dropout in pretraining."""
    changes = {"activation": "geglu-tanh", "tie_embeddings": False, "head_scale": False, "dropout": 0.0}
    return {**t5(layers, width, heads, 64, ff_width), **changes}


def bart(layers: int, width: int, heads: int, max_length: int = 1024) -> dict[str, Any]:
    """BART (Lewis et al. 2020, section 2): BERT's layers in two stacks, positions from row 2 of their table."""
    return {
        "architecture": "encoder-decoder",
        "layers": layers,
        "width": width,
        "heads": heads,
        "ff_width": 4 * width,
        "max_length": max_length,
        "position_offset": 2,
        "norm_eps": 1e-5,
        "head_transform": False,
        "head_bias": False,
        "dropout": 0.1,
    }


# ---------------------------------------------------------------- today


def modern(layers: int, width: int, activation: str = "gelu") -> dict[str, Any]:
    """Pre-RMSNorm, rotary, QK-norm, output projections from zero, no biases: learns within minutes on a CPU.

    An encoder; with `architecture` decoder, prefix-lm or encoder-decoder the same recipe for those.

    Weights start at 0.9/√width: 0.08 at width 128, where it was measured to leave the unigram plateau several
    times sooner than 0.02; at width 256 (0.056) it makes no difference (docs/log.md).

    A GLU has three matrices where GELU has two, so its ff_width is 8/3·width (Shazeer 2020), rounded up
    to a multiple of 64, for about the same parameters.
    """
    return {
        "layers": layers,
        "width": width,
        "heads": width // 64,
        "ff_width": -(-8 * width // 3 // 64) * 64 if activation.endswith("glu") else 4 * width,
        "max_length": 512,
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "norm_eps": 1e-6,
        "positions": "rotary",
        "activation": activation,
        "bias": False,
        "qk_norm": True,
        "head_transform": False,
        "zero_init_residual": True,
        "init_std": round(0.9 / width**0.5, 4),
    }


BERT_TINY = bert(2, 128)
BERT_MINI = bert(4, 256)
BERT_SMALL = bert(4, 512)
BERT_MEDIUM = bert(8, 512)
BERT_BASE = bert(12, 768)
BERT_LARGE = bert(24, 1024)
ROBERTA_BASE = roberta(12, 768)
ROBERTA_LARGE = roberta(24, 1024)
ELECTRA_SMALL = electra(12, 256, 128, 1 / 4)
ELECTRA_BASE = electra(12, 768, 768, 1 / 3)
ELECTRA_LARGE = electra(24, 1024, 1024, 1 / 4)
ALBERT_BASE = albert(12, 768)
ALBERT_LARGE = albert(24, 1024)
XLNET_BASE = xlnet(12, 768)
XLNET_LARGE = xlnet(24, 1024)

# Radford et al. 2018, section 4.1: post-norm like BERT, but no norm on the embeddings.
GPT = gpt2(12, 768, 12, 512, norm_placement="post", embedding_norm=False, scaled_init_residual=False)
GPT2_124M = gpt2(12, 768, 12)
GPT2_355M = gpt2(24, 1024, 16)
GPT2_774M = gpt2(36, 1280, 20)
GPT2_1558M = gpt2(48, 1600, 25)
GPT3_125M = gpt3(12, 768, 12)
GPT3_350M = gpt3(24, 1024, 16)
GPT3_760M = gpt3(24, 1536, 16)
# The table has 24 heads of 128, which do not make 2,048; 16 do, and give the 1.3 B parameters (24 give 1.5 B).
GPT3_1_3B = gpt3(24, 2048, 16)
GPT3_2_7B = gpt3(32, 2560, 32)
GPT3_6_7B = gpt3(32, 4096, 32)
# As the table has it: 40 heads of 128 are 5,120, not the width.
GPT3_13B = gpt3(40, 5140, 40, head_size=128)
GPT3_175B = gpt3(96, 12_288, 96)
GOPHER_280B = gopher(heads=128)
CHINCHILLA_70B = gopher(heads=64)

T5_SMALL = t5(6, 512, 8, 64, 2048)
T5_BASE = t5(12, 768, 12, 64, 3072)
T5_LARGE = t5(24, 1024, 16, 64, 4096)
T5_3B = t5(24, 1024, 32, 128, 16_384)
T5_11B = t5(24, 1024, 128, 128, 65_536)
T5_1_1_SMALL = t5_1_1(8, 512, 6, 1024)
T5_1_1_BASE = t5_1_1(12, 768, 12, 2048)
T5_1_1_LARGE = t5_1_1(24, 1024, 16, 2816)
T5_1_1_XL = t5_1_1(24, 2048, 32, 5120)
T5_1_1_XXL = t5_1_1(24, 4096, 64, 10_240)
# One of T5's stacks (Raffel et al. 2020, table 2: P parameters).
PREFIX_LM_BASE = t5(12, 768, 12, 64, 3072, architecture="prefix-lm")
BART_BASE = bart(6, 768, 12)
BART_LARGE = bart(12, 1024, 16)
# Song et al. 2019, section 4.1; 8 heads, norm of the embeddings and positions as in their code, which is BART's shape.
MASS_BASE = bart(6, 1024, 8, 512)

# Mikolov et al. 2013 and Pennington et al. 2014 released 300 dimensions; Peters et al. 2018, section 3.4.
WORD2VEC = {"architecture": "word-vectors", "width": 300}
GLOVE = {"architecture": "word-vectors", "width": 300}
ELMO = {"architecture": "bilstm", "width": 1024, "hidden": 4096, "layers": 2}

MODERN_TINY = modern(2, 128)
MODERN_MINI = modern(4, 256)
MODERN_SMALL = modern(4, 512)
MODERN_BASE = modern(12, 768, "swiglu")
