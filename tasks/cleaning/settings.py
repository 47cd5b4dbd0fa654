"""Settings of the cleaning steps: plain data, since planning imports no numpy.

Each class has `kind` (its name in `tasks.cleaning.STEPS`) and its thresholds, with the published value as the default
and its source in the description. Those of the steps that compare documents are in `settings_corpus`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from modeling.config import Config, section
from modeling.errors import ConfigError
from tasks.cleaning import STEP_SETTINGS, STEPS


class StepSettings(Config):
    """Base of the steps' settings. `kind` names both registries, so that a stage's key covers the step's code."""

    needs_evaluation: ClassVar[bool] = False
    """Whether the step must see the downstream tasks' rows."""
    compares: ClassVar[bool] = False
    """Whether it is a `CorpusStep`."""

    kind: Annotated[str, STEPS, STEP_SETTINGS] = ""

    def files(self) -> tuple[str, ...]:
        """Files that the step reads: their content is part of the stage's key."""
        return ()


def parse(value: Any) -> Any:
    """A name, or a mapping with `kind`, as the settings of that step."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict):
        if "kind" not in value:
            raise ConfigError("a cleaning step has no kind", f"set kind to one of {', '.join(STEPS)}")
        return section(STEP_SETTINGS.load(value["kind"]), value)
    if type(value) is StepSettings or not isinstance(value, StepSettings):
        raise ConfigError(f"expected a cleaning step, found {value!r}", f"give the name of one: {', '.join(STEPS)}")
    return value


AnyStep = Annotated[SerializeAsAny[StepSettings], BeforeValidator(parse)]
"""A field that holds any step's settings; a bare name (`gopher`) stands for a step with its defaults."""

STANDARD = ("unicode", "control-characters", "near-duplicates")
"""For text that people wrote and edited: repaired, and no text twice."""

WEB = (
    "unicode",
    "control-characters",
    "language",
    "boilerplate",
    "c4",
    "gopher",
    "gopher-repetition",
    "pii",
    "exact-duplicates",
    "duplicate-paragraphs",
    "length",
    "near-duplicates",
    "decontaminate",
)
"""For pages of the web. Repairs come first, since rules look at characters; then what drops most at the least cost;
the comparisons come last, on what is left, and after PII is masked, so that texts that differ in it alone are one."""

LISTS = {"standard": STANDARD, "web": WEB}
"""Lists of steps that have a name."""


class UnicodeSettings(StepSettings):
    """Mojibake, HTML escapes and other encoding accidents, by ftfy; one normal form."""

    kind: Annotated[Literal["unicode"], STEPS, STEP_SETTINGS] = "unicode"
    fix_encoding: bool = Field(True, description="repair text that was decoded with the wrong charset (mojibake)")
    unescape_html: Literal["auto", "always", "never"] = Field(
        "auto", description="decode &eacute; and the like; auto: where the document has no '<', so is not HTML"
    )
    split_ligatures: bool = Field(True, description="typographic ligatures of Latin letters become letters: ﬁ → fi")
    fold_width: bool = Field(
        False, description="fullwidth Latin and halfwidth katakana in standard width; changes Chinese punctuation"
    )
    straight_quotes: bool = Field(False, description="curly quotation marks become straight ones")
    normalization: Literal["NFC", "NFKC", "NFD", "NFKD", "none"] = Field("NFC", description="Unicode normal form")


class ControlCharactersSettings(StepSettings):
    """Characters that nobody sees, and many spellings of a line's end or a space made one."""

    kind: Annotated[Literal["control-characters"], STEPS, STEP_SETTINGS] = "control-characters"
    unify_spaces: bool = Field(True, description="no-break, thin, ideographic and other spaces become a plain one")
    keep_joiners: bool = Field(
        True, description="keep zero-width (non-)joiners after a letter beyond ASCII: Persian, Indic scripts, emoji"
    )


class LanguageSettings(StepSettings):
    """Documents in other languages go; by py3langid, whose model comes with the library."""

    kind: Annotated[Literal["language"], STEPS, STEP_SETTINGS] = "language"
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="wanted: ISO 639 codes, as en or de")
    min_probability: float = Field(
        0.65, ge=0, le=1, description="of the likeliest language; below it the document goes (FineWeb: 0.65)"
    )
    candidates: tuple[str, ...] = Field(
        (), description="the only languages that can occur, which makes telling them apart surer; empty: all it knows"
    )
    sample_chars: int = Field(
        600, ge=50, description="of a document's text that are looked at: half at its start, half in its middle"
    )

    @model_validator(mode="after")
    def _possible(self) -> LanguageSettings:
        missing = [name for name in self.languages if self.candidates and name not in self.candidates]
        if missing:
            raise ConfigError(
                f"languages has {', '.join(missing)}, which candidates lacks",
                "name every wanted language among candidates too, or leave candidates out",
            )
        return self


class BoilerplateSettings(StepSettings):
    """Lines that belong to a page and not to its text."""

    kind: Annotated[Literal["boilerplate"], STEPS, STEP_SETTINGS] = "boilerplate"
    max_line_words: int = Field(
        30, ge=1, description="a longer line is text, whatever it speaks of: an article on cookies stays"
    )
    navigation_lines: int = Field(
        4, ge=0, description="so many short lines in a row, half of them menu words, are a menu; 0: menus stay"
    )
    trim_ends: bool = Field(True, description="lines without a word go where a document begins or ends")
    phrases: tuple[str, ...] = Field(
        (), description="further phrases whose short lines go, in any case; besides those of boilerplate.py"
    )


class C4Settings(StepSettings):
    """The rules of C4 (Raffel et al. 2020, section 2.2, and the authors' code where it says more)."""

    kind: Annotated[Literal["c4"], STEPS, STEP_SETTINGS] = "c4"
    terminal_marks: str = Field(
        '.!?"”', description="a line must end in one of these, and not in an ellipsis; empty: any end will do"
    )
    min_line_words: int = Field(5, ge=0, description="shorter lines go (published: 5)")
    max_word_chars: int = Field(1000, ge=0, description="lines with a longer word go (authors' code: 1000); 0: stay")
    min_sentences: int = Field(3, ge=0, description="documents with fewer go (published: 3)")
    javascript_lines: bool = Field(True, description="drop lines that name JavaScript")
    policy_lines: bool = Field(True, description="drop lines on cookies, terms of use, privacy policy")
    citation_marks: bool = Field(True, description="take out [1], [edit], [citation needed]")
    lorem_ipsum: bool = Field(True, description="drop documents with placeholder text")
    curly_brackets: bool = Field(True, description="drop documents with '{', since they hold code")
    bad_words_file: str = Field(
        "",
        description="a file with a word or phrase per line; documents that have one go. None comes with Triptych",
        json_schema_extra={"identity": False},
    )

    def files(self) -> tuple[str, ...]:
        return (self.bad_words_file,) if self.bad_words_file else ()


class GopherSettings(StepSettings):
    """The quality rules of Gopher (Rae et al. 2021, appendix A.1.1), for languages that put spaces between words."""

    kind: Annotated[Literal["gopher"], STEPS, STEP_SETTINGS] = "gopher"
    min_words: int = Field(50, ge=0, description="fewer: dropped (published: 50)")
    max_words: int = Field(100_000, ge=1, description="more: dropped (published: 100,000)")
    min_mean_word_chars: float = Field(3, ge=0, description="shorter words on average: dropped (published: 3)")
    max_mean_word_chars: float = Field(10, gt=0, description="longer words on average: dropped (published: 10)")
    max_symbols_per_word: float = Field(
        0.1, ge=0, description="of '#', and of ellipses; more: dropped (published: 0.1)"
    )
    max_bullet_lines: float = Field(
        0.9, ge=0, le=1, description="share of lines that begin with a bullet; more: dropped (published: 0.9)"
    )
    max_ellipsis_lines: float = Field(
        0.3, ge=0, le=1, description="share of lines that end in an ellipsis; more: dropped (published: 0.3)"
    )
    min_alphabetic_words: float = Field(
        0.8, ge=0, le=1, description="share of words with a letter; fewer: dropped (published: 0.8)"
    )
    min_stop_words: int = Field(2, ge=0, description="different ones of stop_words; fewer: dropped (published: 2)")
    stop_words: tuple[str, ...] = Field(
        ("the", "be", "to", "of", "and", "that", "have", "with"), description="in lower case (published: these)"
    )


class GopherRepetitionSettings(StepSettings):
    """The repetition rules of Gopher (Rae et al. 2021, table A1): more than a threshold, and the document goes."""

    kind: Annotated[Literal["gopher-repetition"], STEPS, STEP_SETTINGS] = "gopher-repetition"
    duplicate_lines: float = Field(0.3, ge=0, le=1, description="share of lines seen before (published: 0.30)")
    duplicate_paragraphs: float = Field(0.3, ge=0, le=1, description="share of paragraphs seen before (0.30)")
    duplicate_line_chars: float = Field(0.2, ge=0, le=1, description="share of characters in such lines (0.20)")
    duplicate_paragraph_chars: float = Field(0.2, ge=0, le=1, description="share of characters in those (0.20)")
    top_ngram_chars: tuple[float, float, float] = Field(
        (0.20, 0.18, 0.16), description="share of characters in the most frequent 2-, 3- and 4-gram (published)"
    )
    duplicate_ngram_chars: tuple[float, float, float, float, float, float] = Field(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
        description="share of characters in 5- … 10-grams seen before (published)",
    )


class LengthSettings(StepSettings):
    """Documents of the wrong size go."""

    kind: Annotated[Literal["length"], STEPS, STEP_SETTINGS] = "length"
    min_chars: int = Field(200, ge=0, description="shorter: dropped; the default is our own")
    max_chars: int = Field(0, ge=0, description="longer: dropped; 0: no limit")
    min_words: int = Field(0, ge=0, description="fewer words between spaces: dropped")
    max_words: int = Field(0, ge=0, description="more: dropped; 0: no limit")

    @model_validator(mode="after")
    def _possible(self) -> LengthSettings:
        for unit in ("chars", "words"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if most and least > most:
                raise ConfigError(f"min_{unit} {least} is more than max_{unit} {most}", "no document can fit")
        return self


PiiKind = Literal["email", "ip", "phone", "key", "card", "iban"]


class PiiSettings(StepSettings):
    """Data of persons and secrets, found by their shape: masked, or the document goes."""

    kind: Annotated[Literal["pii"], STEPS, STEP_SETTINGS] = "pii"
    find: tuple[PiiKind, ...] = Field(
        ("email", "ip", "phone", "key", "card", "iban"),
        min_length=1,
        description="addresses, public IPv4/IPv6, phone numbers, API keys and tokens, payment cards, bank accounts",
    )
    action: Literal["mask", "drop"] = Field("mask", description="a tag as <EMAIL> in its place, or no document")
