"""Text from a language model: `generate` continues or answers, `fill` says what stands behind masks.

A decoder continues the prompt; a prefix LM too, which sees the prompt whole; an encoder-decoder reads the prompt with
its encoder and writes with its decoder. Prompts of different lengths go in one batch, padded at their beginning, so
that all rows say their next token at the same place; padding is out of sight and counts for no position. With the cache
a new token costs one token's work; without it everything is computed again, to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from modeling.beams import beam_search
from modeling.config import Config
from modeling.errors import ConfigError
from modeling.heads.language import LanguageModel
from modeling.sampling import NO, draw, shaped, uniform

FILL_ROWS = 256
"""Masks whose distributions are computed at once: their float32 logits are all the memory that `fill` needs."""


class Generation(Config):
    """How to choose tokens: by chance, the most probable (temperature 0), or a search (beams)."""

    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, ge=0, description="1: the model's own distribution; 0: always the most probable")
    top_k: int = Field(0, ge=0, description="draw from the k most probable tokens; 0: from all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the fewest tokens of this probability together")
    beams: int = Field(1, ge=1, description="2 or more: beam search")
    length_penalty: float = Field(1.0, description="beam search: a score is log-probability / length^this")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of the draws")
    count: int = Field(1, ge=1, description="texts for each prompt: samples, or the best of the beams")
    start: tuple[int, ...] = Field((), description="ids that a decoder begins with; others: an empty prompt's")
    stop: tuple[int, ...] = Field((), description="ids that end a text")
    never: tuple[int, ...] = Field((), description="ids that no text may hold: special tokens")

    @model_validator(mode="after")
    def _possible(self) -> Generation:
        if self.beams > 1 and (self.temperature not in (0.0, 1.0) or self.top_k or self.top_p < 1):
            raise ConfigError(
                f"beams {self.beams} searches, and temperature {self.temperature}, top_k {self.top_k}, top_p "
                f"{self.top_p} are for drawing",
                "choose one of the two",
            )
        if self.count > 1 and self.count > self.beams and not self.samples:
            raise ConfigError(
                f"count {self.count} asks for different texts, and there are no more than {self.beams}",
                "set a temperature above 0, or beams to at least count",
            )
        if both := sorted(set(self.stop) & set(self.never)):
            raise ConfigError(f"stop and never share the ids {both}", "a stop id must be sayable")
        return self

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.beams == 1 and self.temperature > 0


def room(model: LanguageModel, prompt_tokens: int) -> int:
    """New tokens that fit into the model's positions behind a prompt.

    Raises ConfigError where there is none.
    """
    config = model.config
    two_stacks = config.architecture == "encoder-decoder"
    longest = config.max_length if two_stacks else config.max_length - 1
    if prompt_tokens > longest:
        raise ConfigError(
            f"the prompt has {prompt_tokens} tokens, and model.max_length is {config.max_length}",
            f"shorten it to {longest}",
        )
    return config.max_length - (1 if two_stacks else prompt_tokens)


@torch.inference_mode()
def generate(
    model: LanguageModel,
    input_ids: Tensor | Sequence[Sequence[int]],
    *,
    attention_mask: Tensor | None = None,
    settings: Generation | None = None,
    on_token: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The new ids of `settings.count` texts for each prompt, prompt by prompt; a stop id that ended a text is its last.

    Args:
        model: decoder, prefix LM or encoder-decoder with a language model's head, in evaluation mode.
        input_ids: the prompts: rows of ids of any lengths, or int64 [B, L] with padding at either end.
        attention_mask: [B, L], 1 or True at the tokens of a tensor of prompts; None: everywhere.
        on_token: called with (row of the result, id) as soon as each token is certain: while drawing after every
            step, with beams at the end.
        on_note: called with one sentence where texts were cut because the model has no more positions. The longest
            prompt of a batch decides how many there are.
        use_cache: False computes every token again at each step, to check the cache by.

    Raises:
        ConfigError: a model that does not write, a prompt that is empty, too long or not of the vocabulary.
    """
    settings = settings or Generation()
    check_writes(model)
    vocab_size = model.config.vocab_size
    prompts = [list(row) or _beginning(model, settings) for row in _rows_of(input_ids, attention_mask)]
    if not prompts:
        return []
    for name, ids in (("a prompt", [i for row in prompts for i in row]), ("start", settings.start)):
        _check_ids(name, ids, vocab_size)
    if model.config.architecture == "encoder-decoder" and not settings.start:
        raise ConfigError("settings.start is empty: a decoder's text begins somewhere", "give the pad id (T5)")
    left = room(model, max(len(row) for row in prompts)) - max(0, len(settings.start) - 1) * _two_stacks(model)
    limit = min(settings.max_new_tokens, left)
    rows = Rows(model, prompts, settings.start, use_cache)
    allowed = _Allowed(vocab_size, settings.never)
    if settings.beams > 1:
        found = beam_search(
            rows,
            allowed,
            beams=settings.beams,
            limit=limit,
            length_penalty=settings.length_penalty,
            stop=frozenset(settings.stop),
        )
        texts = [h.ids for best in found for h in best[: settings.count]]
        for row, ids in enumerate(texts):
            for token in ids if on_token else ():
                on_token(row, token)
    else:
        texts = [[] for _ in range(len(prompts) * settings.count)]
        for row, token in _drawn(rows, allowed, settings, limit):
            texts[row].append(token)
            if on_token is not None:
                on_token(row, token)
    if on_note is not None and limit < settings.max_new_tokens:
        cut = sum(len(text) == limit and text[-1] not in settings.stop for text in texts)
        if cut:
            on_note(
                f"{cut} of {len(texts)} texts cut after {limit} new tokens, not {settings.max_new_tokens}: "
                f"model.max_length is {model.config.max_length}"
            )
    return texts


def _drawn(rows: Rows, allowed: _Allowed, settings: Generation, limit: int) -> Iterator[tuple[int, int]]:
    """(row, id) of each new token, step by step; rows that have stopped say no more."""
    logits_BV = allowed(rows.logits()).repeat_interleave(settings.count, 0)
    rows.repeat(settings.count)
    live = [True] * len(logits_BV)
    for step in range(limit):
        if settings.samples:
            shaped_BV = shaped(logits_BV, settings.temperature, settings.top_k, settings.top_p)
            numbers = [uniform(settings.seed, *divmod(row, settings.count), step) for row in range(len(live))]
            ids_B = draw(shaped_BV, torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device))
        else:
            ids_B = logits_BV.argmax(-1)
        for row, token in enumerate(ids_B.tolist()):
            if live[row]:
                live[row] = token not in settings.stop
                yield row, token
        if step + 1 == limit or not any(live):
            return
        rows.append(ids_B)
        logits_BV = allowed(rows.logits())


class _Allowed:
    """Float32 logits of the vocabulary, −inf at ids that no text may hold; padded ids are cut off."""

    def __init__(self, vocab_size: int, never: Sequence[int]) -> None:
        self.vocab_size, self.never = vocab_size, sorted(set(never))
        _check_ids("never", self.never, vocab_size)
        if len(self.never) == vocab_size:
            raise ConfigError("never holds the whole vocabulary", "leave something to say")

    def __call__(self, logits_BV: Tensor) -> Tensor:
        logits_BV = logits_BV[:, : self.vocab_size].float()
        if self.never:
            index = torch.tensor(self.never, device=logits_BV.device)
            logits_BV = logits_BV.index_fill(1, index, NO)
        return logits_BV


class Rows:
    """A batch of texts that grow by a token at a time, and the model's logits for what comes next."""

    def __init__(self, model: LanguageModel, prompts: list[list[int]], start: Sequence[int], use_cache: bool) -> None:
        self.model, self.trunk = model, model.transformer
        device = next(model.parameters()).device
        self.memory: Tensor | None = None
        self.memory_mask: Tensor | None = None
        if _two_stacks(model):
            ids_BL, self.memory_mask = _padded(prompts, device, at_start=False)
            self.memory = self.trunk(ids_BL, self.memory_mask)
            prompts = [list(start)] * len(prompts)
        self.ids_BT, self.mask_BT = _padded(prompts, device, at_start=True)
        self.prompt_tokens = self.ids_BT.shape[1]
        self.cache = self.trunk.new_cache() if use_cache else None

    def logits(self) -> Tensor:
        """[B, padded_vocab_size]: after the last token of each row; what the cache lacks is computed."""
        past = self.cache.length if self.cache is not None else 0
        ids_BT = self.ids_BT[:, past:]
        if self.memory is not None:
            hidden_BLD = self.trunk.decode(ids_BT, self.memory, self.memory_mask, cache=self.cache)
        else:
            hidden_BLD = self.trunk(ids_BT, cache=self.cache, **self._sight(past))
        return self.model.logits(hidden_BLD[:, -1])

    def _sight(self, past: int) -> dict[str, Any]:
        """Masks and positions of the tokens behind `past`."""
        sight: dict[str, Any] = {}
        if self.mask_BT is not None:
            positions_BT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
            sight["position_ids_BL"] = positions_BT[:, past:]
            # Padding as a document of its own sees itself: a query that sees nothing would be NaN.
            sight |= {"attention_mask_BL": self.mask_BT} if past else {"segment_ids_BL": self.mask_BT.long()}
        if self.model.config.architecture == "prefix-lm" and not past:
            in_prompt_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device) < self.prompt_tokens
            sight["prefix_mask_BL"] = in_prompt_T.expand_as(self.ids_BT)
        return sight

    def append(self, ids_B: Tensor) -> None:
        """Each row's next token."""
        self.ids_BT = torch.cat([self.ids_BT, ids_B[:, None]], 1)
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(ids_B), 1)], 1)

    def repeat(self, times: int) -> None:
        """Each row becomes `times` equal rows, next to each other."""
        if times == 1:
            return
        rows_B = torch.arange(len(self.ids_BT), device=self.ids_BT.device).repeat_interleave(times)
        if self.cache is not None:
            self.cache.reorder(rows_B)
        for name in ("ids_BT", "mask_BT", "memory", "memory_mask"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.index_select(0, rows_B))

    def reorder(self, rows_B: Tensor) -> None:
        """Row b becomes what row rows_B[b] was, of the same prompt: what belongs to prompts stays where it is."""
        self.ids_BT = self.ids_BT.index_select(0, rows_B)
        for layer in self.cache.own if self.cache is not None else ():
            layer.reorder(rows_B)


# ---------------------------------------------------------------- masks


class Candidate(NamedTuple):
    """A token that may stand behind a mask."""

    id: int
    probability: float


@torch.inference_mode()
def fill(
    model: LanguageModel,
    input_ids: Tensor | Sequence[Sequence[int]],
    *,
    mask_id: int,
    attention_mask: Tensor | None = None,
    top: int = 5,
    never: Sequence[int] = (),
) -> list[list[list[Candidate]]]:
    """The `top` most probable tokens at each mask of each row, best first.

    Args:
        model: an encoder with a language model's head, in evaluation mode.
        input_ids: rows of ids of any lengths with special tokens, or int64 [B, L].
        mask_id: the id that stands for a hidden token.
        attention_mask: [B, L], 1 or True at the tokens of a tensor of rows; None: everywhere.
        never: ids that are no candidates; the others' probabilities stay the model's.

    Raises:
        ConfigError: a model that does not fill, a row without a mask, too long or not of the vocabulary.
    """
    check_fills(model)
    if top < 1:
        raise ConfigError(f"top is {top}: expected at least 1")
    rows = _rows_of(input_ids, attention_mask)
    if not rows:
        return []
    config = model.config
    _check_ids("the text", [i for row in rows for i in row], config.vocab_size)
    if lacking := [n for n, row in enumerate(rows) if mask_id not in row]:
        raise ConfigError(
            f"text {lacking[0]} has no mask (id {mask_id}): there is nothing to fill", "write [MASK] into it"
        )
    if (longest := max(map(len, rows))) > config.max_length:
        raise ConfigError(
            f"the text has {longest} tokens, and model.max_length is {config.max_length}",
            f"shorten it to {config.max_length}",
        )
    ids_BL, mask_BL = _padded(rows, next(model.parameters()).device, at_start=False)
    hidden_BLD = model.transformer(ids_BL, mask_BL)
    is_mask_BL = ids_BL == mask_id
    if mask_BL is not None:
        is_mask_BL &= mask_BL
    states_ND, allowed = hidden_BLD[is_mask_BL], _Allowed(config.vocab_size, never)
    found: list[list[Candidate]] = []
    for chunk_ND in states_ND.split(FILL_ROWS):
        probability_NV = model.logits(chunk_ND)[:, : config.vocab_size].float().softmax(-1)
        best = allowed(probability_NV).topk(min(top, config.vocab_size - len(allowed.never)))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            found.append([Candidate(*pair) for pair in zip(ids, values, strict=True)])
    each = iter(found)
    return [[next(each) for _ in range(count)] for count in is_mask_BL.sum(1).tolist()]


# ---------------------------------------------------------------- arguments


def _two_stacks(model: LanguageModel) -> bool:
    return model.config.architecture == "encoder-decoder"


def _rows_of(input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None) -> list[list[int]]:
    """The rows without their padding."""
    if not isinstance(input_ids, Tensor):
        if attention_mask is not None:
            raise ConfigError("attention_mask is for a tensor of ids", "rows of different lengths need none")
        return [list(row) for row in input_ids]
    if attention_mask is None:
        return input_ids.tolist()
    rows = zip(input_ids, attention_mask.bool(), strict=True)
    return [ids_L[mask_L].tolist() for ids_L, mask_L in rows]


def _padded(rows: list[list[int]], device: torch.device, *, at_start: bool) -> tuple[Tensor, Tensor | None]:
    """int64 [B, L] with id 0 as padding, and bool [B, L]: True at tokens; None where there is no padding."""
    longest = max(map(len, rows))
    fill_up = [[0] * (longest - len(row)) for row in rows]
    padded = [pad + row if at_start else row + pad for row, pad in zip(rows, fill_up, strict=True)]
    ids_BL = torch.tensor(padded, dtype=torch.int64, device=device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
    if bool((lengths_B1 == longest).all()):
        return ids_BL, None
    places_L = torch.arange(longest, device=device)
    return ids_BL, places_L >= longest - lengths_B1 if at_start else places_L < lengths_B1


def _beginning(model: LanguageModel, settings: Generation) -> list[int]:
    """What stands for an empty prompt."""
    if _two_stacks(model):
        raise ConfigError("the prompt is empty: an encoder reads at least one token", "give it the id that ends a text")
    if not settings.start:
        raise ConfigError("the prompt is empty, and settings.start too", "give the id that begins a text as start")
    return list(settings.start)


def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise ConfigError(f"{name} holds the id {wrong[0]}, and the vocabulary has {vocab_size} tokens")


def check_writes(model: Any) -> None:
    """Raise ConfigError unless the model writes text, saying what it does instead."""
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"a {type(model).__name__} does not write text", "use a model with a language model's head")
    if model.config.architecture == "encoder":
        raise ConfigError("an encoder does not write text: it fills masks", "use fill")
    _check_evaluating(model)


def check_fills(model: Any) -> None:
    """Raise ConfigError unless the model fills masks, saying what it does instead."""
    if not isinstance(model, LanguageModel):
        why = f"a {type(model).__name__} gives no probabilities of tokens"
        if type(model).__name__ == "Discriminator":
            why = "ELECTRA's discriminator gives no probabilities of tokens: its generator, which did, is not kept"
        raise ConfigError(why, "use an encoder trained on masked tokens")
    if model.config.architecture != "encoder":
        raise ConfigError(f"architecture {model.config.architecture} does not fill masks: it writes", "use generate")
    _check_evaluating(model)


def _check_evaluating(model: Any) -> None:
    if model.training:
        raise ConfigError("the model is in training mode, where dropout is at work", "call model.eval() first")
