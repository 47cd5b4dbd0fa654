"""Heads with several losses: each is over exactly what its paper counts, and nothing leaks through the sampling."""

import pytest
import torch
import torch.nn.functional as F

from modeling.heads.base import IGNORE, last_token, parts_of
from modeling.heads.electra import ReplacedTokenDetection, generator_config
from modeling.heads.language import LanguageModel
from modeling.transformer import TransformerConfig, hidden_states

V = 70
CONFIG = TransformerConfig(
    layers=2, width=32, heads=4, ff_width=48, max_length=16, vocab_size=V, token_types=2, init_std=0.2
)


def masked_batch(rows: int = 4, length: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, V, (rows, length))
    chosen = torch.rand(rows, length) < 0.3
    mask = torch.arange(length).expand(rows, length) < torch.tensor([[12], [12], [9], [12]])
    chosen &= mask
    return {
        "input_ids": torch.where(chosen, 4, ids),
        "labels": torch.where(chosen, ids, IGNORE),
        "original_ids": ids,
        "attention_mask": mask,
        "uniforms": torch.rand(rows, length),
    }


def test_a_span_is_predicted_from_its_boundaries_and_its_places():
    torch.manual_seed(0)
    model = LanguageModel.for_objective(CONFIG, {"span_boundary": True, "span_max": 3, "pairs": "none"})
    data = masked_batch()
    del data["original_ids"], data["uniforms"], data["attention_mask"]
    data["labels"][:] = IGNORE
    left, right, place = (torch.full((4, 12), fill) for fill in (-1, -1, 0))
    for row, start, end in ((0, 3, 5), (2, 6, 7), (2, 9, 11)):
        data["labels"][row, start:end] = torch.arange(10, 10 + end - start)
        left[row, start:end], right[row, start:end] = start - 1, end
        place[row, start:end] = torch.arange(1, end - start + 1)
    data |= {"boundary_left": left, "boundary_right": right, "boundary_offset": place}
    found = model(data)
    assert [name for name, _ in parts_of(model)] == ["tokens", "span_boundary"]
    assert found.count.tolist() == [5, 5] == model.count(data).tolist()
    hidden = model.hidden(data)
    expected = torch.zeros(())
    for row, start, end in ((0, 3, 5), (2, 6, 7), (2, 9, 11)):
        for at in range(start, end):
            states = model.boundary(hidden[row, start - 1], hidden[row, end], torch.tensor(at - start + 1))
            logits = F.linear(states, model.transformer.tokens.weight, model.head.bias)
            expected = expected + F.cross_entropy(logits, data["labels"][row, at])
    # float32 sums in another order
    assert torch.allclose(found.loss_sum[1], expected, rtol=1e-5)


def test_pairs_have_a_loss_and_a_count_of_their_own():
    torch.manual_seed(0)
    model = LanguageModel.for_objective(CONFIG, {"pairs": "nsp"})
    data = {**masked_batch(), "pair_labels": torch.tensor([0, 1, 1, 0])}
    found = model(data)
    assert parts_of(model) == (("tokens", 1.0), ("pairs", 1.0)) and found.count[1] == 4
    logits = model.pair(model.hidden(data)[:, 0])
    assert torch.allclose(found.loss_sum[1], F.cross_entropy(logits, data["pair_labels"], reduction="sum"))
    (scored, correct, _) = model.evaluate(data)
    assert torch.equal(scored.loss_sum, found.loss_sum)
    assert correct == (model.predict(data) == data["labels"][data["labels"] != IGNORE]).sum()


def test_the_discriminator_is_told_of_tokens_that_changed_and_of_no_others():
    torch.manual_seed(0)
    model = ReplacedTokenDetection(CONFIG)
    data = masked_batch()
    _, filled = model.generate(data)
    masked = data["labels"] != IGNORE
    assert torch.equal(filled[~masked], data["original_ids"][~masked])
    assert filled.max() < V
    found = model(data)
    assert found.count.tolist() == [int(masked.sum()), 45]
    logits = model.discriminator.replaced_logits({**data, "input_ids": filled})
    target = (filled != data["original_ids"]).float()
    mask = data["attention_mask"]
    expected = F.binary_cross_entropy_with_logits(logits[mask], target[mask], reduction="sum")
    assert torch.allclose(found.loss_sum[1], expected, rtol=1e-5)
    # a draw that hits the original is "original": with the generator certain of it, nothing counts as replaced
    data["uniforms"][:] = 0.0
    data["original_ids"] = torch.where(masked, 0, data["original_ids"])
    with torch.no_grad():
        model.generator_head.bias[0] = 1e3
    _, filled = model.generate(data)
    assert torch.equal(filled, data["original_ids"])


def test_no_gradient_passes_through_the_sampling():
    model = ReplacedTokenDetection(CONFIG)
    model(masked_batch()).loss_sum[1].backward()
    shared = {id(p) for p in model.discriminator.parameters()}
    own = [p for n, p in model.named_parameters() if n.startswith("generator") and id(p) not in shared]
    assert own and all(p.grad is None or not p.grad.any() for p in own)


def test_generator_samples_follow_its_distribution():
    """Inverse CDF with uniforms on a grid: the shares of the draws are the probabilities."""
    torch.manual_seed(0)
    model = ReplacedTokenDetection(CONFIG).eval()
    draws = 4000
    row = masked_batch(1 + 3)
    ids = row["input_ids"][:1].repeat(draws, 1)
    labels = torch.full((draws, 12), IGNORE)
    labels[:, 5] = 7
    uniforms = torch.zeros(draws, 12)
    uniforms[:, 5] = (torch.arange(draws) + 0.5) / draws
    data = {"input_ids": ids, "labels": labels, "original_ids": ids, "uniforms": uniforms}
    with torch.no_grad():
        _, filled = model.generate(data)
        hidden = hidden_states(model.generator, {"input_ids": ids[:1]})[0, 5]
        expected = model.generator_head(hidden, model.generator.tokens).softmax(-1)
    shares = torch.bincount(filled[:, 5], minlength=128) / draws
    assert torch.allclose(shares, expected, atol=1.5 / draws)  # a grid of draws is off by one at each edge


def test_the_generator_is_small_and_shares_all_embeddings():
    config = CONFIG.model_copy(update={"width": 64, "ff_width": 256, "generator_share": 0.25})
    small = generator_config(config)
    assert (small.width, small.heads, small.ff_width, small.embedding_width) == (16, 1, 64, 64)
    model = ReplacedTokenDetection(config)
    assert model.generator.tokens is model.discriminator.transformer.tokens
    assert model.generator.encoder.positions is model.discriminator.transformer.encoder.positions
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("generator.tokens") for name in names)
    assert {n.partition(".")[0] for n in model.kept.state_dict()} == {"transformer", "dense", "classifier"}


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "prefix-lm", "encoder-decoder"])
def test_losses_are_over_the_labelled_tokens_of_any_architecture(architecture):
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"architecture": architecture, "norm_placement": "pre"})
    model = LanguageModel(config).eval()
    data = masked_batch()
    data["decoder_input_ids"] = data["original_ids"].roll(1, 1)
    data["prefix_mask"] = torch.arange(12).expand(4, 12) < 4
    loss, count = model(data)
    logits = model.logits(model.hidden(data))[..., :V]
    expected = F.cross_entropy(logits.flatten(0, 1), data["labels"].flatten(), ignore_index=IGNORE, reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-5) and count == (data["labels"] != IGNORE).sum()


def test_the_last_token_is_the_last_attended_one():
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.equal(last_token(hidden, mask), torch.stack([hidden[0, 2], hidden[1, 4]]))
    assert torch.equal(last_token(hidden, None), hidden[:, -1])
