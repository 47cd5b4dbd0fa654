"""What was published of the presets: the vocabulary, and how many parameters there are, to count ours against.

`exact` figures are what transformers counts of the class that is named, at the released config: every weight
once, the pretraining head included. The others are the papers' own, as rounded there.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One model as released or described."""

    vocab_size: int
    parameters: int
    source: str
    head: str = "language-model"
    """What is counted with the trunk: a name in `modeling.heads.HEADS`."""
    within: float = 0.0
    """Share by which the figure may be off, since it is rounded; 0: exact."""
    lacks: int = 0
    """Parameters that theirs has and ours has not; `why` says which."""
    why: str = ""


def _bert(parameters: int) -> Published:
    return Published(30_522, parameters, "BertForMaskedLM")


def _roberta(parameters: int, width: int) -> Published:
    return Published(50_265, parameters, "RobertaForMaskedLM", lacks=width, why="a single segment embedding")


def _electra(parameters: int) -> Published:
    return Published(30_522, parameters, "ElectraForPreTraining", head="discriminator")


def _albert(parameters: int) -> Published:
    return Published(30_000, parameters, "AlbertForMaskedLM")


def _xlnet(parameters: int) -> Published:
    return Published(32_000, parameters, "XLNetLMHeadModel", head="permutation-language-model")


def _gpt2(parameters: int) -> Published:
    return Published(50_257, parameters, "GPT2LMHeadModel")


def _gpt3(parameters: float, within: float = 0.02) -> Published:
    return Published(50_257, round(parameters), "Brown et al. 2020, table 2.1", within=within)


def _gopher(parameters: float, source: str, width: int) -> Published:
    why = "Transformer-XL's matrix of relative positions, in each of 80 layers"
    return Published(32_000, round(parameters), source, within=0.005, lacks=80 * width**2, why=why)


def _t5(parameters: int) -> Published:
    return Published(32_128, parameters, "T5ForConditionalGeneration")


def _bart(parameters: int) -> Published:
    return Published(50_265, parameters, "BartForConditionalGeneration")


PUBLISHED: dict[str, Published] = {
    "bert-tiny": _bert(4_416_698),
    "bert-mini": _bert(11_201_594),
    "bert-small": _bert(28_795_194),
    "bert-medium": _bert(41_404_730),
    "bert-base": _bert(109_514_298),
    "bert-large": _bert(335_174_458),
    "roberta-base": _roberta(124_697_433, 768),
    "roberta-large": _roberta(355_412_057, 1024),
    "electra-small": _electra(13_549_057),
    "electra-base": _electra(109_483_009),
    "electra-large": _electra(335_142_913),
    "albert-base": _albert(11_221_680),
    "albert-large": _albert(16_795_824),
    "xlnet-base": _xlnet(116_750_336),
    "xlnet-large": _xlnet(360_300_800),
    "gpt": Published(40_478, 116_534_784, "OpenAIGPTLMHeadModel"),
    "gpt2-124M": _gpt2(124_439_808),
    "gpt2-355M": _gpt2(354_823_168),
    "gpt2-774M": _gpt2(774_030_080),
    "gpt2-1558M": _gpt2(1_557_611_200),
    "gpt3-125M": _gpt3(125e6),
    "gpt3-350M": _gpt3(350e6),
    "gpt3-760M": _gpt3(760e6),
    "gpt3-1.3B": _gpt3(1.3e9),
    "gpt3-2.7B": _gpt3(2.7e9),
    "gpt3-6.7B": _gpt3(6.7e9),
    "gpt3-13B": _gpt3(13.0e9),
    "gpt3-175B": _gpt3(175.0e9, within=0.003),
    "gopher-280b": _gopher(280e9, "Rae et al. 2021, table 1", 16_384),
    "chinchilla-70b": _gopher(70e9, "Hoffmann et al. 2022, table 4", 8192),
    "t5-small": _t5(60_506_624),
    "t5-base": _t5(222_903_552),
    "t5-large": _t5(737_668_096),
    "t5-3b": _t5(2_851_598_336),
    "t5-11b": _t5(11_307_321_344),
    "t5.1.1-small": _t5(76_961_152),
    "t5.1.1-base": _t5(247_577_856),
    "t5.1.1-large": _t5(783_150_080),
    "t5.1.1-xl": _t5(2_849_757_184),
    "t5.1.1-xxl": _t5(11_135_332_352),
    # table 2 counts in P, about 110 M: half of T5-base's two stacks
    "prefix-lm-base": Published(32_128, 110_000_000, "Raffel et al. 2020, section 3.2.2", within=0.005),
    "bart-base": _bart(139_420_416),
    "bart-large": _bart(406_291_456),
    # the released vectors: one table of the two that are trained
    "word2vec": Published(3_000_000, 900_000_000, "Mikolov et al. 2013, the Google News vectors", head="word-vectors"),
    "glove": Published(400_000, 120_000_000, "Pennington et al. 2014, the 6 B token vectors", head="glove"),
    # of which the softmax over 793,471 words, which is not released, is no part
    "elmo": Published(
        793_471,
        93_600_000,
        "Peters et al. 2018, the released original",
        head="bidirectional-lm",
        within=0.005,
        # widths 1 … 7 with 32, 32, 64, 128, 256, 512, 1024 filters over 16 numbers a character, two highway layers,
        # the projection to 512, and 262 characters
        lacks=16 * (32 + 2 * 32 + 3 * 64 + 4 * 128 + 5 * 256 + 6 * 512 + 7 * 1024)
        + 2048
        + 2 * (2048 * 4096 + 4096)
        + 2048 * 512
        + 512
        + 262 * 16,
        why="the character CNN in place of a table of tokens",
    ),
}
"""By the preset's name. `mass-base` and the modern presets have no published count."""
