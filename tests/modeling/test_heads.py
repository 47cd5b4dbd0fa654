"""Heads: losses are sums over exactly the labelled rows, and nothing else changes them."""

import pytest
import torch
import torch.nn.functional as F

from modeling.architecture import model_config
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, Trainable, mean_pool
from modeling.heads.classification import SequenceClassifier, SpanExtractor
from modeling.heads.language import LanguageModel
from modeling.transformer import TransformerConfig, hidden_states, preset

VOCABULARY = 70
CONFIG = TransformerConfig(layers=2, width=32, heads=4, ff_width=48, max_length=16, vocab_size=VOCABULARY)


def batch(rows: int = 4, length: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (rows, length))
    return {"input_ids": ids, "labels": torch.where(torch.rand(rows, length) < 0.3, ids, IGNORE)}


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_at_masked_positions_equal_the_full_ones(transform, tied):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG.model_copy(update={"head_transform": transform, "tie_embeddings": tied}))
    data = batch()
    full_BLV = model.logits(model.hidden(data))
    where = data["labels"] != IGNORE
    found_NV, labels_N = model.labelled_logits(data)
    assert torch.equal(labels_N, data["labels"][where])
    assert torch.allclose(found_NV, full_BLV[where], atol=1e-5)
    plain = F.cross_entropy(full_BLV[..., :VOCABULARY].flatten(0, 1), data["labels"].flatten(), reduction="sum")
    loss, count = model(data)
    assert torch.allclose(loss, plain, rtol=1e-5)
    assert count == where.sum() == model.count(data)


def test_padded_vocabulary_rows_are_never_predicted_and_get_no_gradient():
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    model(batch()).loss_sum.backward()
    assert model.head.bias.shape == (128,)
    assert torch.all(model.head.bias.grad[VOCABULARY:] == 0)
    assert torch.all(model.transformer.tokens.weight.grad[VOCABULARY:] == 0)
    probabilities = model.logits(model.hidden(batch())).softmax(-1)
    assert torch.all(probabilities[..., VOCABULARY:] == 0)
    assert model.predict(batch()).max() < VOCABULARY


def test_a_batch_without_labels_has_a_zero_loss_and_finite_gradients():
    model = LanguageModel(CONFIG)
    data = batch()
    data["labels"][:] = IGNORE
    loss, count = model(data)
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_sums_over_micro_batches_equal_the_sum_over_the_batch():
    torch.manual_seed(0)
    model, data = LanguageModel(CONFIG), batch()
    parts = [model({k: v[i : i + 1] for k, v in data.items()}) for i in range(4)]
    whole = model(data)
    assert torch.allclose(sum(p.loss_sum for p in parts), whole.loss_sum, rtol=1e-5)
    assert sum(p.count for p in parts) == whole.count


def test_mean_pooling_leaves_padding_out():
    hidden = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    pooled = mean_pool(hidden, mask)
    assert torch.allclose(pooled[0], hidden[0, :2].mean(0), atol=1e-6)
    assert torch.allclose(pooled[1], hidden[1].mean(0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classifier_and_regression(pooling):
    data = batch()
    data["labels"] = torch.tensor([0, 2, IGNORE, 1])
    classifier = SequenceClassifier(CONFIG, 3, pooling)
    loss, count = classifier(data)
    logits = classifier.logits(data)
    expected = -logits.log_softmax(-1)[[0, 1, 3], [0, 2, 1]].sum()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert count == 3 == classifier.count(data)
    assert classifier.predict(data).shape == (4,)
    data["labels"] = torch.tensor([0.5, 1.0, 2.0, 4.5])
    regression = SequenceClassifier(CONFIG, 1, pooling)
    loss, count = regression(data)
    assert torch.allclose(loss, ((regression.predict(data) - data["labels"]) ** 2).sum())
    assert count == 4


def test_a_classifier_that_goes_on_as_a_language_model():
    """GPT's fine-tuning: the task's loss, and the next tokens of the whole sequence, padding left out."""
    config = CONFIG.model_copy(update={"architecture": "decoder", "head_bias": False, "head_transform": False})
    data = batch()
    data["labels"] = torch.tensor([0, 2, IGNORE, 1])
    lengths = torch.tensor([12, 3, 7, 1])
    data["attention_mask"] = torch.arange(12).expand(4, 12) < lengths[:, None]
    torch.manual_seed(1)
    alone = SequenceClassifier(config, 3, "last")
    both = SequenceClassifier(config, 3, "last", lm_weight=0.5)
    both.load_state_dict(alone.state_dict())  # it has no weights of its own
    assert both.parts == (("task", 1.0), ("lm", 0.5))
    (task, lm), counts = both(data)
    assert counts.tolist() == [3, 11 + 2 + 6 + 0] == both.count(data).tolist()
    assert torch.allclose(task, alone(data).loss_sum)
    logits = hidden_states(alone.transformer, data) @ alone.transformer.tokens.weight.T
    said = logits[..., : config.vocab_size].log_softmax(-1)
    expected = -sum(said[b, t, data["input_ids"][b, t + 1]] for b in range(4) for t in range(lengths[b] - 1))
    assert torch.allclose(lm, expected, rtol=1e-5)
    for fields, words in (
        ({"architecture": "encoder"}, "architecture encoder predicts no next token"),
        ({"tie_embeddings": False}, "output layer has weights of its own"),
        ({"head_bias": True}, "output layer has weights of its own"),
    ):
        with pytest.raises(ConfigError, match=words):
            SequenceClassifier(config.model_copy(update=fields), 3, lm_weight=0.5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pair_in_both_orders_is_the_sum_of_their_vectors(pooling):
    """Radford et al. 2018, section 3.3: which order comes first does not matter; the next tokens are of both."""
    architecture = "encoder" if pooling == "cls" else "decoder"
    shape = {"architecture": architecture, "head_bias": False, "head_transform": False, "init_std": 0.3}
    config = CONFIG.model_copy(update=shape)
    one, other = batch(), batch()
    other["input_ids"] = one["input_ids"].flip(1)
    one["labels"] = torch.tensor([0, 2, IGNORE, 1])
    for data, lengths in ((one, [12, 3, 7, 1]), (other, [11, 4, 7, 2])):
        data["attention_mask"] = torch.arange(12).expand(4, 12) < torch.tensor(lengths)[:, None]
        data.pop("token_type_ids", None)
    names = ("input_ids", "attention_mask")
    pair = {**one, **{f"turned_{name}": other[name] for name in names}}
    turned = {"labels": one["labels"], **{name: other[name] for name in names}}
    turned |= {f"turned_{name}": one[name] for name in names}
    torch.manual_seed(1)
    model = SequenceClassifier(config, 3, pooling, lm_weight=0.0 if pooling == "cls" else 0.5).eval()
    logits = model.logits(pair)
    parts = [model.logits({name: data[name] for name in names}) for data in (one, other)]
    torch.testing.assert_close(logits, parts[0] + parts[1] - model.classifier.bias)
    torch.testing.assert_close(model.logits(turned), logits)
    if pooling != "cls":
        alone = [model({**data, "labels": one["labels"]}) for data in (one, other)]
        both = model(pair)
        torch.testing.assert_close(both.loss_sum[1], alone[0].loss_sum[1] + alone[1].loss_sum[1])
        assert both.count.tolist() == model.count(pair).tolist() == [3, 19 + 20]


def test_a_prefix_lm_sees_a_text_to_be_labelled_whole():
    """As it sees the inputs in pretraining; the targets, which alone are causal, are the label here."""
    config = CONFIG.model_copy(update={"architecture": "prefix-lm", "init_std": 0.3})
    data = batch()
    data["labels"] = torch.tensor([0, 2, 1, 1])
    data["attention_mask"] = torch.arange(12).expand(4, 12) < torch.tensor([12, 5, 7, 9])[:, None]
    padded = {**data, "input_ids": data["input_ids"].masked_fill(~data["attention_mask"], 3)}
    later = {**data, "input_ids": torch.cat([data["input_ids"][:, :1], data["input_ids"][:, 1:].flip(1)], 1)}
    torch.manual_seed(0)
    classifier, spans = SequenceClassifier(config, 3, "cls").eval(), SpanExtractor(config).eval()
    assert torch.allclose(classifier.logits(data), classifier.logits(padded), atol=1e-6)
    assert not torch.allclose(classifier.logits(data)[0], classifier.logits(later)[0], atol=1e-4)
    starts = [spans.logits(each)[0][0, 0] for each in (data, later)]
    assert (starts[0] - starts[1]).abs() > 1e-4, "where an answer begins depends on what follows"
    assert torch.isfinite(classifier({**data, "attention_mask": torch.ones(4, 12)}).loss_sum)


def test_a_token_that_knows_nothing_of_the_others_stands_for_no_sequence():
    decoder = CONFIG.model_copy(update={"architecture": "decoder"})
    words = model_config({"architecture": "word-vectors", "width": 8, "vocab_size": VOCABULARY})
    for config, pooling in ((decoder, "cls"), (words, "cls"), (words, "last")):
        with pytest.raises(ConfigError, match=f"pooling: {pooling} takes the (first|last) token, which knows nothing"):
            SequenceClassifier(config, 3, pooling)
    for config, pooling in ((decoder, "last"), (decoder, "mean"), (words, "mean"), (CONFIG, "last")):
        SequenceClassifier(config, 3, pooling)


def test_spans_stay_inside_the_passage_and_in_order():
    data = batch()
    data["start_positions"], data["end_positions"] = torch.tensor([5, 6, IGNORE, 7]), torch.tensor([5, 9, IGNORE, 8])
    data["answer_mask"] = torch.arange(12).expand(4, 12) >= 4
    model = SpanExtractor(CONFIG, max_answer_tokens=3)
    loss, count = model(data)
    assert torch.isfinite(loss)
    assert count == 3
    start, end = model.predict(data).unbind(1)
    assert torch.all((start >= 4) & (end >= start) & (end < start + 3))
    start_logits, end_logits = model.logits(data)
    best = max((start_logits[0, s] + end_logits[0, e], s, e) for s in range(4, 12) for e in range(s, min(12, s + 3)))
    assert (start[0].item(), end[0].item()) == best[1:]


def test_heads_are_trainables():
    config = preset("modern-tiny", vocab_size=VOCABULARY)
    for head in (LanguageModel(config), SequenceClassifier(config, 2), SpanExtractor(config)):
        assert isinstance(head, Trainable)
