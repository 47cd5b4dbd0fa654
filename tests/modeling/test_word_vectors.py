"""word2vec and GloVe against losses and gradients that are added up pair by pair, and what they learn."""

import pytest
import torch
import torch.nn.functional as F

from modeling.baseline_configs import WordVectorsConfig
from modeling.errors import ConfigError
from modeling.heads.base import LossSum, Trainable
from modeling.transformer import hidden_states
from modeling.word_vectors import ContinuousBagOfWords, FeatureTrunk, GloVe, SkipGram, WordVectors

VOCABULARY, WIDTH = 30, 8
CONFIG = WordVectorsConfig(vocab_size=VOCABULARY, width=WIDTH)


def batch(rows: int = 3, length: int = 21, radius: int = 3, negatives: int = 4) -> dict[str, torch.Tensor]:
    """Rows of different lengths, windows as wide as drawn, noise words that are often the centre itself."""
    torch.manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (rows, length))
    lengths = torch.tensor([length, length - 7, 1])[:rows]
    mask = torch.arange(length) < lengths[:, None]
    window = torch.zeros(rows, length, 2 * radius + 1, dtype=torch.bool)
    drawn = torch.randint(1, radius + 1, (rows, length))
    for row in range(rows):
        for centre in range(int(lengths[row])):
            for offset in range(-radius, radius + 1):
                inside = 0 <= centre + offset < lengths[row]
                window[row, centre, offset + radius] = inside and 0 < abs(offset) <= drawn[row, centre]
    noise = torch.randint(0, VOCABULARY, (rows, length, negatives))
    noise[:, ::3, 0] = ids[:, ::3]
    return {"input_ids": ids * mask, "attention_mask": mask, "window": window, "negatives": noise}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """In float64, and without the zeros that tables begin with."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.double()


def against_noise(u: torch.Tensor, v: torch.Tensor, centre: int, data: dict[str, torch.Tensor], at) -> torch.Tensor:
    loss = -F.logsigmoid(u[centre] @ v)
    for noise in data["negatives"][at].tolist():
        if noise != centre:
            loss = loss - F.logsigmoid(-(u[noise] @ v))
    return loss


def by_pairs(model: WordVectors, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    v, u = model.tokens.weight, model.contexts.weight
    loss, count = torch.zeros((), dtype=torch.float64), 0
    radius = data["window"].shape[-1] // 2
    for row, centre in data["window"].any(-1).nonzero().tolist():
        offsets = data["window"][row, centre].nonzero().squeeze(1) - radius
        around = v[data["input_ids"][row, centre + offsets]]
        around = around.mean(0, keepdim=True) if isinstance(model, ContinuousBagOfWords) else around
        word = int(data["input_ids"][row, centre])
        for vector in around:
            loss, count = loss + against_noise(u, vector, word, data, (row, centre)), count + 1
    return loss, count


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("kind", [SkipGram, ContinuousBagOfWords])
@pytest.mark.parametrize(("length", "radius"), [(21, 3), (16, 1), (40, 12), (5, 2)])
def test_word2vec_equals_the_sum_over_pairs(kind, length, radius):
    model = filled(kind(CONFIG))
    data = batch(rows=2 if length < 8 else 3, length=length, radius=radius)
    if length < 8:
        data = {name: value[:1] for name, value in data.items()}
    expected, pairs = by_pairs(model, data)
    found, count = model(data)
    assert count == pairs == model.count(data)
    # The losses are computed in float32 (2^-24) from scores of about 10 in float64; hundreds are summed.
    assert torch.allclose(found.double(), expected, rtol=1e-5)
    for ours, theirs in zip(gradients(model, found), gradients(model, expected), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_glove_equals_the_sum_over_pairs():
    model = filled(GloVe(CONFIG))
    torch.manual_seed(3)
    counts = torch.rand(2, 9, dtype=torch.float64) * 200
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    data = {
        "input_ids": torch.randint(0, VOCABULARY, (2, 9)) * mask,
        "context_ids": torch.randint(0, VOCABULARY, (2, 9)) * mask,
        "log_counts": counts.log() * mask,
        "weights": (counts / 100).clamp(max=1) ** 0.75 * mask,
        "attention_mask": mask,
    }
    expected = torch.zeros((), dtype=torch.float64)
    for row, at in mask.nonzero().tolist():
        i, j = int(data["input_ids"][row, at]), int(data["context_ids"][row, at])
        score = model.tokens.weight[i] @ model.contexts.weight[j] + model.token_bias[i] + model.context_bias[j]
        expected = expected + min(1.0, float(counts[row, at]) / 100) ** 0.75 * (score - counts[row, at].log()) ** 2
    found, count = model(data)
    assert count == 13 == model.count(data)
    assert torch.allclose(found, expected)
    for ours, theirs in zip(gradients(model, found), gradients(model, expected), strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("kind", [SkipGram, ContinuousBagOfWords])
def test_padding_and_the_split_into_micro_batches_change_nothing(kind):
    model, data = filled(kind(CONFIG)), batch()
    whole = model(data)
    longer = {
        "input_ids": F.pad(data["input_ids"], (0, 30)),
        "window": F.pad(data["window"], (0, 0, 0, 30)),
        "negatives": F.pad(data["negatives"], (0, 0, 0, 30)),
    }
    parts = [model({name: value[row : row + 1] for name, value in longer.items()}) for row in range(3)]
    assert torch.allclose(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=1e-6)
    assert sum(part.count for part in parts) == whole.count


def test_a_batch_without_pairs_has_a_zero_loss_and_finite_gradients():
    data = batch()
    data["window"][:] = False
    for kind in (SkipGram, ContinuousBagOfWords):
        model = kind(CONFIG)
        loss, count = model(data)
        assert (loss.item(), count.item()) == (0.0, 0)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model, loss))


@pytest.mark.parametrize("kind", [SkipGram, ContinuousBagOfWords])
def test_bf16_comes_close(kind):
    model, data = kind(CONFIG), batch()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    exact = model(data).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(data).loss_sum
    assert rounded.dtype == torch.float32
    # bf16 has 8 bits: scores are off by 2^-9 each, and hundreds of them are summed with either sign.
    assert torch.allclose(rounded, exact, rtol=1e-2)


def two_topics(rows: int, length: int = 24) -> dict[str, torch.Tensor]:
    """Each row is words of one topic: 2 … 15 or 16 … 29."""
    topic = torch.randint(0, 2, (rows, 1))
    ids = torch.randint(0, 14, (rows, length)) + 2 + 14 * topic
    places = torch.arange(length)[:, None] + torch.arange(-2, 3)
    window = ((places >= 0) & (places < length)).expand(rows, -1, -1).clone()
    window[..., 2] = False
    return {"input_ids": ids, "window": window, "negatives": torch.randint(2, VOCABULARY, (rows, length, 5))}


def cooccurrences() -> dict[str, torch.Tensor]:
    """Pairs within a topic stand together 50 times, those across once."""
    centre, context = (ids.flatten()[None] for ids in torch.meshgrid(*[torch.arange(2, 30)] * 2, indexing="ij"))
    counts = torch.where((centre < 16) == (context < 16), 50.0, 1.0)
    weights, everywhere = (counts / 100) ** 0.75, torch.ones_like(centre, dtype=torch.bool)
    names = ("input_ids", "context_ids", "log_counts", "weights", "attention_mask")
    return dict(zip(names, (centre, context, counts.log(), weights, everywhere), strict=True))


@pytest.mark.parametrize("kind", [SkipGram, ContinuousBagOfWords, GloVe])
def test_nearest_neighbours_are_of_the_same_topic(kind):
    torch.manual_seed(0)
    model = kind(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0)
    losses = []
    for _ in range(60):
        loss, count = model(cooccurrences() if kind is GloVe else two_topics(16))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(float(loss.detach() / count))
    assert losses[-1] < 0.8 * losses[0]
    trunk = FeatureTrunk(CONFIG)
    trunk.load_pretrained(model.state_dict())
    vectors = F.normalize(trunk(torch.arange(2, 30)[None])[0], dim=-1)
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(1)
    topic = torch.arange(28) >= 14
    assert (topic[nearest] == topic).float().mean() > 0.9


def test_features_are_the_published_ones_and_do_not_train():
    data = batch()
    for kind in (SkipGram, ContinuousBagOfWords, GloVe):
        model = kind(CONFIG)
        torch.nn.init.normal_(model.contexts.weight)
        trunk = FeatureTrunk(CONFIG)
        trunk.load_pretrained(model.state_dict())
        vectors = model.tokens.weight + (model.contexts.weight if kind is GloVe else 0)
        found = trunk(data["input_ids"], data["attention_mask"], None, None)
        assert torch.equal(found, vectors[data["input_ids"]])
        assert torch.equal(found, model.hidden(data))
        assert torch.equal(found, hidden_states(trunk, data)), "as heads call it"
        assert found.shape[-1] == trunk.config.width
        assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_weights_of_another_model_are_refused():
    with pytest.raises(ConfigError, match=r"tokens.weight is \(64, 4\), the model expects \(64, 8\)"):
        FeatureTrunk(CONFIG).load_pretrained(SkipGram(WordVectorsConfig(vocab_size=30, width=4)).state_dict())
    with pytest.raises(ConfigError, match="tokens.weight is nothing"):
        FeatureTrunk(CONFIG).load_pretrained({})
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        SkipGram(WordVectorsConfig())


def test_the_objective_names_the_model_and_counts_are_as_published():
    assert type(WordVectors.for_objective(CONFIG, {"kind": "cbow"})) is ContinuousBagOfWords
    assert type(WordVectors.for_objective(CONFIG, {"kind": "skip-gram"})) is SkipGram
    glove = GloVe.for_objective(CONFIG, {"kind": "glove"})
    with torch.device("meta"):
        google_news = SkipGram(WordVectorsConfig(vocab_size=3_000_000))  # the released vectors: 3 M × 300
    assert google_news.tokens.weight.numel() == 3_000_000 * 300
    assert sum(p.numel() for p in glove.parameters()) == 2 * 64 * (WIDTH + 1)
    for model in (SkipGram(CONFIG), glove):
        assert isinstance(model, Trainable)
    assert isinstance(SkipGram(CONFIG)(batch()), LossSum)
