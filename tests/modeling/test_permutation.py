"""The permutation language model: what a prediction may depend on, and its loss against a plain computation."""

import pytest
import torch
import torch.nn.functional as F

from modeling.architecture import TransformerConfig
from modeling.checkpoint import load_model, save_model
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, Trainable
from modeling.heads.permutation import PermutationLanguageModel, visibilities
from modeling.masks import Visibility
from modeling.transformer_xl import QueryStream

VOCAB = 40
XLNET = {"positions": "transformer-xl", "embedding_norm": False, "head_transform": False}
SMALL = {"layers": 3, "width": 16, "heads": 2, "ff_width": 24, "max_length": 16, "vocab_size": VOCAB}


def model_of(**changes) -> PermutationLanguageModel:
    torch.manual_seed(0)
    model = PermutationLanguageModel(TransformerConfig(**{**SMALL, **XLNET, **changes})).eval()
    with torch.no_grad():  # large enough for every dependence to show
        for name, p in model.named_parameters():
            if "norm" not in name and name != "head.bias":
                p.add_(torch.randn_like(p) * 0.4)
        model.transformer.tokens.weight[VOCAB:] = 0
    return model


def batch_of(ranks: list[list[int]], functional: tuple[tuple[int, int], ...] = (), **more) -> dict[str, torch.Tensor]:
    """Random tokens; a target is what has a rank, but for the (row, place)s of `functional`."""
    order = torch.tensor(ranks)
    ids = torch.randint(VOCAB, order.shape, generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(order < 0, IGNORE)
    for b, i in functional:
        labels[b, i] = IGNORE
    return {"input_ids": ids, "labels": labels, "ranks": order, **more}


def by_target(model: PermutationLanguageModel, batch: dict[str, torch.Tensor]) -> dict[tuple[int, int], torch.Tensor]:
    """{(row, place): logits}."""
    logits, _ = model.labelled_logits(batch)
    return dict(zip(map(tuple, (batch["labels"] != IGNORE).nonzero().tolist()), logits, strict=True))


def test_the_worked_example_of_the_module():
    batch = batch_of([[-1, 1, -1, 0, -1]])
    content, query = (seen[0, 0].int().tolist() for seen in visibilities(batch))
    assert query[3] == [1, 0, 1, 0, 1]  # "on" from the, sat, mats
    assert query[1] == [1, 0, 1, 1, 1]  # "cat" from these and "on"
    assert content[0] == content[2] == content[4] == [1, 0, 1, 0, 1]
    assert content[3] == [1, 0, 1, 1, 1] and content[1] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "ranks",
    [
        [[-1, 2, -1, 0, 1, -1, 4, 3]],
        [[3, 1, 0, 2, 5, 4, 7, 6]],  # no token outside the order: the first target sees nothing
        [[0, 1, 2, 3, 4, 5, 6, 7]],
        [[7, 6, 5, 4, 3, 2, 1, 0]],
    ],
)
def test_a_prediction_depends_on_the_tokens_before_it_in_the_order_and_on_no_other(ranks):
    """Every target by every token, through three layers; the last token has a place in the order, but no label."""
    model, batch = model_of(), batch_of(ranks, functional=((0, 7),))
    order = ranks[0]
    with torch.no_grad():
        before = by_target(model, batch)
        for j in range(8):
            ids = batch["input_ids"].clone()
            ids[0, j] = (ids[0, j] + 1) % VOCAB
            after = by_target(model, {**batch, "input_ids": ids})
            for (_, i), logits in after.items():
                moved = (logits - before[0, i]).abs().max().item()
                if order[j] < order[i]:
                    assert moved > 1e-4, (i, j)
                else:
                    assert moved == 0, (i, j)


def test_padding_and_other_documents_are_out_of_sight():
    model = model_of()
    ranks = [[-1, 0, -1, 1, 2, -1, 3, -1]]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]).bool()
    batch = batch_of(ranks, attention_mask=mask, segment_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]))
    with torch.no_grad():
        before = by_target(model, batch)
        for j in range(8):
            ids = batch["input_ids"].clone()
            ids[0, j] = (ids[0, j] + 1) % VOCAB
            for (_, i), logits in by_target(model, {**batch, "input_ids": ids}).items():
                seen = ranks[0][j] < ranks[0][i] and (i < 4) == (j < 4) and j != 7
                assert ((logits - before[0, i]).abs().max().item() > 0) == seen, (i, j)


def test_the_loss_is_that_of_each_target_alone_over_a_full_query_stream():
    """Rows with 3, 0 and 5 targets; here g is computed at every place and each target's loss taken by itself."""
    model = model_of(token_types=2)
    ranks = [[-1, 2, -1, 0, 1, -1, -1], [-1] * 7, [4, 3, -1, -1, 2, 1, 0]]
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 5:] = False
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 3)
    batch = batch_of(ranks, attention_mask=mask, token_type_ids=types)
    content, query = visibilities(batch)
    trunk = model.transformer
    everywhere = QueryStream(torch.arange(7).expand(3, -1), Visibility(query))
    g = trunk.encoder(
        trunk.tokens(batch["input_ids"]), Visibility(content), token_type_ids_BL=types, query_stream=everywhere
    )
    expected = torch.zeros(())
    for b, i in (batch["labels"] != IGNORE).nonzero().tolist():
        logits = F.linear(g[b, i], trunk.tokens.weight, model.head.bias)[:VOCAB]
        expected = expected - logits.log_softmax(0)[batch["labels"][b, i]]
    loss = model(batch)
    assert loss.count == model.count(batch) == 8
    assert torch.allclose(loss.loss_sum, expected, rtol=1e-5)  # float32 sums in another order
    wanted = list(model.parameters())
    found, right = (torch.autograd.grad(total, wanted) for total in (loss.loss_sum, expected))
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_a_row_is_the_same_in_any_batch():
    model = model_of()
    ranks = [[-1, 2, -1, 0, 1, -1], [-1, -1, 0, -1, -1, -1]]
    both = batch_of(ranks)
    alone = {name: value[1:] for name, value in both.items()}
    assert torch.allclose(model.labelled_logits(both)[0][3:], model.labelled_logits(alone)[0], atol=1e-5)
    assert model.predict(both).shape == (4,) and model.predict(both).max() < VOCAB


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model = model_of()
    loss = model(batch_of([[-1, -1, -1]]))
    assert loss.count == 0 and loss.loss_sum == 0
    loss.loss_sum.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_row_that_sees_nothing_gives_finite_losses_and_gradients():
    model = model_of()
    batch = batch_of([[0, 1, 2], [-1, -1, 0]], attention_mask=torch.tensor([[True] * 3, [False] * 3]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch).loss_sum
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_it_learns_an_order_of_tokens():
    """Rows count up from a random token, so one visible token tells all others."""
    torch.manual_seed(0)
    config = TransformerConfig(**{**SMALL, **XLNET, "layers": 1, "width": 32, "ff_width": 64, "vocab_size": 12})
    model = PermutationLanguageModel(config).train()
    assert isinstance(model, Trainable)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def batch() -> dict[str, torch.Tensor]:
        ids = (torch.randint(12, (32, 1)) + torch.arange(8)) % 12
        ranks = torch.rand(32, 8).argsort(1).argsort(1) - 4  # four targets
        ranks = ranks.clamp(min=-1)
        return {"input_ids": ids, "labels": ids.masked_fill(ranks < 0, IGNORE), "ranks": ranks}

    losses = []
    for _ in range(80):
        loss = model(batch())
        optimizer.zero_grad()
        (loss.loss_sum / loss.count).backward()
        optimizer.step()
        losses.append((loss.loss_sum / loss.count).item())
    assert losses[0] > 2.2  # near ln 12 = 2.5
    assert sum(losses[-10:]) / 10 < 1.4  # 0.6 to 0.9, whatever the seed


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = model_of()
    head = {"name": "permutation-language-model", "settings": {}}
    save_model(tmp_path, model, model.config, head)
    batch = batch_of([[-1, 1, 0, -1]])
    assert torch.equal(load_model(tmp_path).labelled_logits(batch)[0], model.labelled_logits(batch)[0])


def test_a_trunk_without_a_query_stream_is_refused():
    with pytest.raises(ConfigError, match="transformer-xl, found learned"):
        PermutationLanguageModel(TransformerConfig(**SMALL))


def test_evaluation_counts_the_right_ones():
    model, batch = model_of(), batch_of([[-1, 2, -1, 0, 1, -1, 4, 3]])
    with torch.no_grad():
        found, correct, _ = model.evaluate(batch)
        logits, labels = model.labelled_logits(batch)
        assert torch.equal(found.loss_sum, model(batch).loss_sum)
        right = logits.argmax(-1)
        assert correct == (right == labels).sum()
        batch["labels"][batch["labels"] != IGNORE] = right[torch.arange(len(right))]
        assert model.evaluate(batch)[1] == len(right)
