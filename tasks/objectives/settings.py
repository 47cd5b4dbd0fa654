"""What each objective can be told, and what it asks of the tokenizer, the packing and the model: plain data.

Apart from the objectives themselves, so that planning a run imports no numpy, and refuses what does not fit
together before anything runs.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from modeling.config import Config, section
from modeling.errors import ConfigError
from tasks.objectives import OBJECTIVES, SETTINGS


class Layout(NamedTuple):
    """How documents become the raw rows that an objective draws from."""

    tokens: int
    """Tokens of a raw row, its special tokens included."""
    begin: tuple[str, ...] = ()
    """Roles of the special tokens that every row begins with."""
    end: tuple[str, ...] = ()
    """Roles of those that it ends with."""
    separator: str = "eos"
    """Role of the token that stands between documents."""
    separator_first: bool = False
    """The separator stands before each document (it belongs to the one that follows), not after it."""
    overlap: int = 0
    """Tokens that a row shares with the one before: 1 where the last is a label only."""
    pairs: Literal["none", "nsp", "sop"] = "none"
    """Rows are two segments with a label, made of sentences (`tasks.objectives.nsp`, `sop`)."""


class ObjectiveSettings(Config):
    """Base of the settings; a bare name (`mlm`) stands for an objective with its defaults."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "eos")
    """Roles of special tokens without which it cannot work; `sentinels` for T5's."""
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    """Model architectures that it can train."""
    head: ClassVar[str] = "language-model"
    """What stands on the model: a name in `modeling.heads.HEADS`."""
    paired: ClassVar[bool] = False
    """It draws inputs and targets, which `tasks.objectives.convert` arranges for the architecture."""
    covers_text: ClassVar[bool] = False
    """Its labels are a text as it stands, each token given what came before: a loss of them has bits per byte."""

    kind: Annotated[str, OBJECTIVES, SETTINGS] = ""
    documents_apart: bool = Field(
        False, description="documents packed into one row do not see each other, and positions restart"
    )

    def layout(self, length_tokens: int) -> Layout:
        """The raw rows for model inputs of `length_tokens`."""
        raise NotImplementedError

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        """(longest input, longest target) of the examples; a target of 0: labels stand at the inputs."""
        return length_tokens, 0

    def joint_length(self, length_tokens: int) -> int:
        """Tokens of inputs and targets together, where one stack reads both."""
        return sum(self.lengths(length_tokens))


def parse(value: Any) -> Any:
    """A name, or a mapping with `kind`, as the settings of that objective."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict) and "kind" in value:
        return section(SETTINGS.load(value["kind"]), value)
    return value


AnyObjective = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(parse)]
"""A field that holds any objective's settings."""


class Masked(ObjectiveSettings):
    """Masked language modelling, by tokens, words, n-grams, spans or salient spans; with sentence pairs or not."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "cls", "sep", "mask")

    kind: Annotated[Literal["mlm"], OBJECTIVES, SETTINGS] = "mlm"
    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of a row's tokens to predict")
    max_predictions: int = Field(0, ge=0, description="most tokens to predict in a row; 0: no limit")
    unit: Literal["token", "word", "ngram", "span", "salient"] = Field("token", description="what is masked at once")
    ngram_max: int = Field(3, ge=1, le=10, description="unit=ngram: words of the longest; p(n) ∝ 1/n (ALBERT)")
    span_p: float = Field(0.2, gt=0, lt=1, description="unit=span: of the geometric length (SpanBERT)")
    span_max: int = Field(10, ge=1, le=50, description="unit=span: longest, in whole words")
    mask_share: float = Field(0.8, ge=0, le=1, description="of the chosen tokens, those that become [MASK]")
    random_share: float = Field(0.1, ge=0, le=1, description="those that become a random token; the rest stay")
    random_token: Literal["ordinary", "any"] = Field("ordinary", description="what a random token is drawn from")
    span_boundary: bool = Field(False, description="unit=span: also predict a span from the tokens around it (SBO)")
    pairs: Literal["none", "nsp", "sop"] = Field("none", description="rows are sentence pairs with a label")
    short_share: float = Field(0.1, ge=0, le=1, description="pairs: share of rows with a random shorter length")

    @model_validator(mode="after")
    def _possible(self) -> Masked:
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ConfigError(
                f"mask_share {self.mask_share} and random_share {self.random_share} are more than 1 together",
                "what is left of 1 stays as it is",
            )
        if self.span_boundary and self.unit != "span":
            raise ConfigError(f"span_boundary needs unit span, found {self.unit}", "set unit=span")
        if self.pairs != "none" and self.documents_apart:
            raise ConfigError(
                f"pairs {self.pairs} with documents_apart: the segments of a pair must see each other",
                "set documents_apart=false or pairs=none",
            )
        return self

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens, ("cls",), ("sep",), "sep", pairs=self.pairs)


class ReplacedTokens(ObjectiveSettings):
    """ELECTRA: a generator fills masked places, the model tells which tokens were replaced."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "cls", "sep", "mask")
    head: ClassVar[str] = "replaced-token-detection"

    kind: Annotated[Literal["rtd"], OBJECTIVES, SETTINGS] = "rtd"
    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of a row's tokens to replace")
    max_predictions: int = Field(0, ge=0, description="most tokens to replace in a row; 0: no limit")
    mask_share: float = Field(0.85, ge=0, le=1, description="of these, those that become [MASK]; the rest stay")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens, ("cls",), ("sep",), "sep")


class Permutation(ObjectiveSettings):
    """XLNet: tokens predicted in a random order, each from those before it in that order."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "cls", "sep")
    head: ClassVar[str] = "permutation-language-model"

    kind: Annotated[Literal["permutation"], OBJECTIVES, SETTINGS] = "permutation"
    target_share: float = Field(85 / 512, gt=0, lt=1, description="share of a row's tokens to predict: 1 in 6")
    span_max: int = Field(5, ge=1, le=20, description="targets come in spans of 1 … span_max tokens, p(n) ∝ 1/n")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens, (), ("sep", "cls"), "sep")


class Causal(ObjectiveSettings):
    """The next token from those before it."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    covers_text: ClassVar[bool] = True

    kind: Annotated[Literal["causal"], OBJECTIVES, SETTINGS] = "causal"
    documents_apart: bool = Field(
        True, description="documents packed into one row do not see each other, and positions restart"
    )

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens + 1, separator_first=True, overlap=1)


class Prefix(ObjectiveSettings):
    """A row cut at a random place: the first part is seen whole, the second is predicted."""

    architectures: ClassVar[tuple[str, ...]] = ("prefix-lm", "encoder-decoder")
    paired: ClassVar[bool] = True
    covers_text: ClassVar[bool] = True

    kind: Annotated[Literal["prefix"], OBJECTIVES, SETTINGS] = "prefix"
    least_share: float = Field(0.0, ge=0, lt=1, description="shortest prefix, of the row")
    most_share: float = Field(1.0, gt=0, le=1, description="longest prefix, of the row")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens)

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, length_tokens

    def joint_length(self, length_tokens: int) -> int:
        return length_tokens  # a row cut in two is as long as a row


class SpanCorruption(ObjectiveSettings):
    """T5: spans of the input become sentinels, the target spells them out."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "eos", "sentinels")
    architectures: ClassVar[tuple[str, ...]] = ("encoder-decoder", "prefix-lm", "decoder")
    paired: ClassVar[bool] = True

    kind: Annotated[Literal["span-corruption"], OBJECTIVES, SETTINGS] = "span-corruption"
    noise_density: float = Field(0.15, gt=0, lt=1, description="share of the raw tokens to drop")
    mean_span: float = Field(3.0, ge=1, description="mean length of a dropped span, in tokens")
    rolled: bool = Field(False, description="turn the noise pattern by a random offset, so that any token may begin it")

    @model_validator(mode="after")
    def _possible(self) -> SpanCorruption:
        if self.noise_density / self.mean_span > 1 - self.noise_density:
            raise ConfigError(
                f"noise_density {self.noise_density} with mean_span {self.mean_span} has more spans than tokens to "
                "stand between them",
                "lower noise_density or raise mean_span",
            )
        return self

    def raw_and_targets(self, length_tokens: int) -> tuple[int, int]:
        """Raw tokens whose corrupted form fills `length_tokens` inputs, and the targets' length; both with EOS.

        512 inputs: 568 raw tokens and 114 targets (Raffel et al. 2020, and their code).
        """

        def sizes(raw: int) -> tuple[int, int]:
            noise = min(max(round(raw * self.noise_density), 1), raw - 1)
            spans = max(1, round(noise / self.mean_span))
            return raw - noise + spans + 1, noise + spans + 1

        raw = max(2, length_tokens - 1)
        while sizes(raw + 1)[0] <= length_tokens:
            raw += 1
        inputs, targets = sizes(raw)
        # The authors' code: at density 0.5 equal lengths would leave one target more than inputs.
        if self.noise_density == 0.5 and targets > inputs:
            raw, targets = raw - 1, targets - 1
        return raw, targets

    def layout(self, length_tokens: int) -> Layout:
        return Layout(self.raw_and_targets(length_tokens)[0])

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, self.raw_and_targets(length_tokens)[1]


class IidDenoising(ObjectiveSettings):
    """T5's other denoising objectives (Raffel et al. 2020, tables 3 and 5): tokens are corrupted one by one."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder-decoder", "prefix-lm", "decoder")
    paired: ClassVar[bool] = True

    kind: Annotated[Literal["iid-denoising"], OBJECTIVES, SETTINGS] = "iid-denoising"
    noise_density: float = Field(0.15, gt=0, lt=1, description="share of the tokens to corrupt")
    style: Literal["bert", "mass", "replace-spans", "drop-tokens"] = Field(
        "bert",
        description="bert: masks and random tokens, target the whole text; mass: masks only, target the whole text; "
        "replace-spans: sentinels; drop-tokens: dropped, target the dropped ones",
    )

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens - 1)

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, length_tokens

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """A mask may be the first sentinel; spans need one each."""
        return ("pad", "eos", "sentinels") if self.style == "replace-spans" else ("pad", "eos")


class Infilling(ObjectiveSettings):
    """BART: spans of Poisson length become one mask each, sentences are shuffled; the target is the text."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "bos", "eos", "mask")
    architectures: ClassVar[tuple[str, ...]] = ("encoder-decoder",)
    paired: ClassVar[bool] = True

    kind: Annotated[Literal["infilling"], OBJECTIVES, SETTINGS] = "infilling"
    mask_rate: float = Field(0.3, gt=0, lt=1, description="share of the tokens that spans cover")
    poisson_lambda: float = Field(3.0, gt=0, le=20, description="mean length of a span, in tokens; 0 inserts a mask")
    permute_sentences: bool = Field(True, description="shuffle the sentences of the input")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens, ("bos",), ("eos",), "eos")

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, length_tokens


class Mass(ObjectiveSettings):
    """MASS: one stretch of the input is masked, the decoder predicts it from the encoder and its own left part."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "eos", "mask")
    architectures: ClassVar[tuple[str, ...]] = ("encoder-decoder",)
    paired: ClassVar[bool] = True

    kind: Annotated[Literal["mass"], OBJECTIVES, SETTINGS] = "mass"
    mask_rate: float = Field(0.5, gt=0, lt=1, description="length of the stretch, of the row")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens, (), ("eos",), "eos")

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, max(1, round(self.mask_rate * length_tokens))


class SalientSpans(ObjectiveSettings):
    """Salient spans (dates, numbers, names) become sentinels, the target spells them out (REALM; T5 + SSM)."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "eos", "sentinels")
    architectures: ClassVar[tuple[str, ...]] = ("encoder-decoder", "prefix-lm", "decoder")
    paired: ClassVar[bool] = True

    kind: Annotated[Literal["salient-spans"], OBJECTIVES, SETTINGS] = "salient-spans"
    spans: int = Field(1, ge=1, le=20, description="spans to mask in a row; one, as published")
    target_tokens: int = Field(32, ge=4, description="longest target")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens - 1)

    def lengths(self, length_tokens: int) -> tuple[int, int]:
        return length_tokens, self.target_tokens


class SkipGram(ObjectiveSettings):
    """word2vec: the words around from the word, with negative sampling (Mikolov et al. 2013)."""

    architectures: ClassVar[tuple[str, ...]] = ("word-vectors",)
    head: ClassVar[str] = "word-vectors"

    kind: Annotated[Literal["skip-gram"], OBJECTIVES, SETTINGS] = "skip-gram"
    window: int = Field(5, ge=1, le=50, description="words on each side, at most; drawn from 1 … window")
    negatives: int = Field(5, ge=1, le=50, description="sampled words for each context word")
    subsample: float = Field(1e-3, ge=0, lt=1, description="threshold t: frequent words are dropped at 1 − √(t/f)")
    power: float = Field(0.75, gt=0, le=1, description="negatives are drawn by frequency to this power")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens)


class ContinuousBagOfWords(SkipGram):
    """word2vec: the word from the mean of the words around it, with negative sampling."""

    kind: Annotated[Literal["cbow"], OBJECTIVES, SETTINGS] = "cbow"  # type: ignore[assignment]


class Cooccurrence(ObjectiveSettings):
    """GloVe: log co-occurrence counts, weighted least squares (Pennington et al. 2014)."""

    architectures: ClassVar[tuple[str, ...]] = ("word-vectors",)
    head: ClassVar[str] = "glove"

    kind: Annotated[Literal["glove"], OBJECTIVES, SETTINGS] = "glove"
    window: int = Field(10, ge=1, le=50, description="words on each side; a pair at distance d counts 1/d")
    x_max: float = Field(100.0, gt=0, description="count from which a pair has full weight")
    alpha: float = Field(0.75, gt=0, le=1, description="exponent of the weight below it")

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens)


class Bidirectional(ObjectiveSettings):
    """ELMo: the next token from those before it, and the one before from those after it (Peters et al. 2018)."""

    needs: ClassVar[tuple[str, ...]] = ("pad", "eos")
    architectures: ClassVar[tuple[str, ...]] = ("bilstm",)
    head: ClassVar[str] = "bidirectional-lm"

    kind: Annotated[Literal["bidirectional"], OBJECTIVES, SETTINGS] = "bidirectional"

    def layout(self, length_tokens: int) -> Layout:
        return Layout(length_tokens)
