"""Settings of the steps that compare documents: with each other, or with what is evaluated.

Plain data, as in `tasks.cleaning.settings`. What the steps do and cost: `docs/data/duplicates.md`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from modeling.errors import ConfigError
from tasks.cleaning import STEP_SETTINGS, STEPS
from tasks.cleaning.settings import StepSettings


class ExactDuplicatesSettings(StepSettings):
    """Equal texts: the first in the order of the corpus stays."""

    compares: ClassVar[bool] = True

    kind: Annotated[Literal["exact-duplicates"], STEPS, STEP_SETTINGS] = "exact-duplicates"
    fold_white_space: bool = Field(True, description="any run of white space counts as one space, none at the ends")
    fold_case: bool = Field(False, description="upper and lower case count as equal")
    fold_punctuation: bool = Field(False, description="only letters, digits and white space count")


class DuplicateParagraphsSettings(StepSettings):
    """Paragraphs that an earlier document has go; white space apart."""

    compares: ClassVar[bool] = True

    kind: Annotated[Literal["duplicate-paragraphs"], STEPS, STEP_SETTINGS] = "duplicate-paragraphs"
    separator: Literal["blank-line", "line"] = Field(
        "line", description="what ends a paragraph; in web pages a line often is one"
    )
    min_chars: int = Field(100, ge=1, description="shorter paragraphs stay, however often they occur; our own default")
    max_removed_share: float = Field(
        0.5, ge=0, le=1, description="a document that would lose more of its characters is dropped; our own default"
    )


class NearDuplicatesSettings(StepSettings):
    """Documents that share most of their shingles (Broder 1997), found by MinHash and locality-sensitive hashing."""

    compares: ClassVar[bool] = True

    kind: Annotated[Literal["near-duplicates"], STEPS, STEP_SETTINGS] = "near-duplicates"
    shingle_words: int = Field(5, ge=1, le=50, description="consecutive words in a shingle (Lee et al. 2022: 5)")
    threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of the shingle sets from which on two are near duplicates"
    )
    action: Literal["drop", "group"] = Field(
        "drop", description="keep one of a cluster; or keep all, and put them into the same split"
    )
    verify: Literal["shingles", "signatures"] = Field(
        "shingles",
        description="compare the sets of shingles where signatures leave doubt; or trust the signatures' estimate, "
        "which needs 4 bytes a word less of scratch",
    )
    values: int = Field(
        128,
        ge=16,
        le=1024,
        description="MinHash values of a document, of 2 bytes; the estimate is off by sqrt(J(1-J)/values)",
    )
    bands: int = Field(0, ge=0, le=1024, description="groups of values of which one must agree; 0: chosen")
    rows: int = Field(0, ge=0, le=1024, description="values in a band; 0: chosen")
    miss_weight: float = Field(
        0.98,
        gt=0,
        lt=1,
        description="what missing a near duplicate counts against comparing a pair in vain, in the choice of bands",
    )

    @model_validator(mode="after")
    def _possible(self) -> NearDuplicatesSettings:
        if bool(self.bands) != bool(self.rows):
            raise ConfigError(
                f"bands is {self.bands} and rows is {self.rows}: one is given without the other",
                "give both, or neither and they are chosen for the threshold",
            )
        if self.bands * self.rows > self.values:
            raise ConfigError(
                f"{self.bands} bands of {self.rows} rows need {self.bands * self.rows} values, found {self.values}",
                f"set values to {self.bands * self.rows}, or take fewer bands or rows",
            )
        return self


class DecontaminateSettings(StepSettings):
    """Texts of the evaluation sets, or long parts of them, go (Brown et al. 2020, appendix C)."""

    needs_evaluation: ClassVar[bool] = True

    kind: Annotated[Literal["decontaminate"], STEPS, STEP_SETTINGS] = "decontaminate"
    words: int = Field(13, ge=2, le=100, description="consecutive words that must not be shared (published: 13)")
    min_words: int = Field(
        8,
        ge=1,
        description="evaluation texts of fewer than `words` words count whole, down to this many (published: 8)",
    )
    min_hits: int = Field(1, ge=1, description="shared runs of words from which on a document counts as contaminated")
    action: Literal["remove", "drop"] = Field(
        "remove", description="take the shared words out, with a window around them; or drop the document"
    )
    window_chars: int = Field(200, ge=0, description="taken out on each side of shared words (published: 200)")
    min_piece_chars: int = Field(200, ge=0, description="shorter pieces between windows go, too (published: 200)")
    max_pieces: int = Field(10, ge=1, description="a document that falls into more pieces is dropped (published: 10)")

    @model_validator(mode="after")
    def _possible(self) -> DecontaminateSettings:
        if self.min_words > self.words:
            raise ConfigError(
                f"min_words {self.min_words} is more than words {self.words}",
                f"set min_words to at most {self.words}",
            )
        return self
