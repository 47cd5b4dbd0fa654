"""ELMo: its LSTM is torch's, neither direction sees what it predicts, and documents and padding do not leak."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeling.baseline_configs import ElmoConfig
from modeling.elmo import BidirectionalLanguageModel, BiLSTM, ElmoMix, FeatureTrunk, ProjectedLSTM
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, Trainable
from modeling.transformer import hidden_states

# pytest puts the module's own filter aside.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

VOCABULARY = 40
CONFIG = ElmoConfig(vocab_size=VOCABULARY, width=16, hidden=24, dropout=0.0)


def model(config: ElmoConfig = CONFIG, seed: int = 0) -> BidirectionalLanguageModel:
    torch.manual_seed(seed)
    return BidirectionalLanguageModel(config)


def batch(rows: list[list[int]], length: int, segments: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Rows padded to `length`; labels as the objective sets them. Padding has the last document's number."""
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    data = {"input_ids": ids, "attention_mask": mask}
    labels = torch.where(mask, ids, IGNORE)
    forward, backward = F.pad(labels[:, 1:], (0, 1), value=IGNORE), F.pad(labels[:, :-1], (1, 0), value=IGNORE)
    backward = torch.where(mask, backward, IGNORE)
    if segments is not None:
        data["segment_ids"] = torch.tensor([row + row[-1:] * (length - len(row)) for row in segments])
        border = data["segment_ids"][:, 1:] != data["segment_ids"][:, :-1]
        forward[:, :-1][border], backward[:, 1:][border] = IGNORE, IGNORE
    return {**data, "labels_forward": forward, "labels_backward": backward}


def words(seed: int, count: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_layer_is_torchs_lstm_with_projection():
    torch.manual_seed(0)
    ours, theirs = ProjectedLSTM(8, 24).double(), nn.LSTM(8, 24, proj_size=8, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.weight_input)
        theirs.weight_hh_l0.copy_(ours.weight_state)
        theirs.bias_ih_l0.copy_(ours.bias)
        theirs.bias_hh_l0.zero_()
        theirs.weight_hr_l0.copy_(ours.projection)
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    assert torch.allclose(ours(x, None), theirs(x)[0])
    assert torch.all(ours.bias[24:48] == 1) and ours.bias.sum() == 24


def test_a_reset_is_exact_also_for_gradients():
    """After a reset the outputs and gradients are bit for bit those of a sequence that begins there."""
    torch.manual_seed(0)
    lstm, x = ProjectedLSTM(8, 24), torch.randn(2, 9, 8, requires_grad=True)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, 3] = True
    whole, alone = lstm(x, reset), lstm(x[:, 4:], torch.zeros(2, 5, dtype=torch.bool))
    assert torch.equal(whole[:, 3], torch.zeros(2, 8))
    assert torch.equal(whole[:, 4:], alone)
    (gradient,) = torch.autograd.grad(whole[:, 4:].square().sum(), x)
    assert torch.all(gradient[:, :4] == 0) and torch.all(gradient[:, 4:] != 0)


def test_neither_direction_sees_what_it_predicts():
    net, row = model(), words(1, 12)
    changed = [*row]
    changed[5] = row[5] % (VOCABULARY - 1) + 1
    (a_forward, a_backward), (b_forward, b_backward) = (net.layers(batch([r], 12)) for r in (row, changed))
    for layer in (1, 2):
        assert torch.equal(a_forward[layer][:, :5], b_forward[layer][:, :5])
        assert torch.equal(a_backward[layer][:, 6:], b_backward[layer][:, 6:])
        assert torch.all((a_forward[layer] != b_forward[layer])[:, 5:].any(-1))
        assert torch.all((a_backward[layer] != b_backward[layer])[:, :6].any(-1))


def test_the_loss_is_the_sum_over_labels_of_each_direction():
    net, data = model(), batch([words(1, 9), words(2, 5)], 9)
    forwards, backwards = net.layers(data)
    found, count = net(data)
    assert found.shape == count.shape == (2,) and [name for name, _ in net.parts] == ["forward", "backward"]
    for loss, labels, states in zip(
        found, (data["labels_forward"], data["labels_backward"]), (forwards[-1], backwards[-1]), strict=True
    ):
        logits = net.output(states)[..., :VOCABULARY]
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        assert torch.allclose(loss, expected, rtol=1e-5)
    assert count.tolist() == [12, 12] == net.count(data).tolist()
    found.sum().backward()
    assert torch.all(net.output.weight.grad[VOCABULARY:] == 0) and torch.all(net.output.bias.grad[VOCABULARY:] == 0)


def test_padding_changes_nothing():
    net, rows = model(), [words(1, 9), words(2, 5)]
    short, long = net(batch(rows, 9)), net(batch(rows, 17))
    single = [net(batch([row], len(row))) for row in rows]
    # The reset's columns change how a matrix product is cut up: the last bits of sums of float32.
    assert torch.allclose(short.loss_sum, long.loss_sum, rtol=1e-6)
    assert torch.allclose(short.loss_sum, single[0].loss_sum + single[1].loss_sum, rtol=1e-6)
    assert torch.equal(short.count, long.count)
    hidden = net.hidden(batch(rows, 17))
    assert torch.all(hidden[0, 9:] == 0) and torch.all(hidden[1, 5:] == 0)


def test_documents_in_one_row_know_nothing_of_each_other():
    """The packed row's losses and gradients are the sums of its documents', of any length."""
    net, documents = model(), [words(1, 4), words(2, 1), words(3, 6)]
    packed = batch([sum(documents, [])], 13, [[0] * 4 + [1] + [2] * 6])
    together = net(packed)
    apart = [net(batch([document], len(document))) for document in documents]
    assert together.count.tolist() == [8, 8]
    assert torch.allclose(together.loss_sum, sum(a.loss_sum for a in apart), rtol=1e-6)
    parameters = list(net.parameters())
    ours = torch.autograd.grad(together.loss_sum.sum(), parameters)
    theirs = torch.autograd.grad(sum(a.loss_sum.sum() for a in apart), parameters)
    for a, b in zip(ours, theirs, strict=True):
        # Sums of float32 gradients in another order.
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    running_on = net({name: value for name, value in packed.items() if name != "segment_ids"})
    assert not torch.allclose(together.loss_sum, running_on.loss_sum, rtol=1e-6)


def test_the_second_layer_has_a_residual():
    with_, without = model(), model(CONFIG.model_copy(update={"residual": False}))
    data = batch([words(1, 6)], 6)
    (a, _), (b, _) = with_.layers(data), without.layers(data)
    assert torch.equal(a[1], b[1])
    assert torch.allclose(a[2], b[2] + b[1])


def test_bf16_comes_close_with_padding_and_documents():
    net, data = model(), batch([words(1, 9), words(2, 5)], 9, [[0] * 4 + [1] * 5, [0] * 5])
    exact = net(data).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(data).loss_sum
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=1e-2)  # bf16 has 8 bits, and the losses are averages of a dozen


def test_both_directions_learn_a_language_of_their_own():
    """Each word has one successor: the loss falls to what the unpredictable borders leave."""
    torch.manual_seed(0)
    net = model(ElmoConfig(vocab_size=VOCABULARY, width=32, hidden=48, dropout=0.1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    start = torch.arange(1, VOCABULARY)
    rows = [[int((s + 7 * n - 1) % (VOCABULARY - 1)) + 1 for n in range(8)] for s in start]
    losses = []
    for _ in range(40):
        found, count = net(batch(rows, 8))
        loss = (found / count).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((found / count).tolist())
    assert min(losses[0]) > 3
    assert max(losses[-1]) < 0.5


def test_the_mix_is_equation_1_and_all_that_trains():
    layers = [torch.randn(2, 3, 4) for _ in range(3)]
    mix = ElmoMix(3)
    assert torch.allclose(mix(layers), sum(layers) / 3)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([1.0, -2.0, 0.5]))
        mix.gamma.fill_(3)
    share = torch.tensor([1.0, -2.0, 0.5]).softmax(0)
    assert torch.allclose(mix(layers), 3 * sum(s * layer for s, layer in zip(share, layers, strict=True)))

    net = model(CONFIG.model_copy(update={"dropout": 0.5}))
    trunk = FeatureTrunk(net.config)
    trunk.load_pretrained(net.state_dict())
    trunk.train()
    data = batch([words(1, 9), words(2, 5)], 9)
    hidden = trunk(data["input_ids"], data["attention_mask"], None, None)
    assert hidden.shape == (2, 9, trunk.config.width)
    forwards, backwards = net.eval().layers(data)
    expected = sum(torch.cat(pair, -1) for pair in zip(forwards, backwards, strict=True)) / 3
    assert torch.allclose(hidden, expected, atol=1e-6), "frozen layers have no dropout"
    assert torch.equal(hidden, hidden_states(trunk, data)), "as heads call it"
    hidden.sum().backward()
    assert {name for name, p in trunk.named_parameters() if p.grad is not None} == {"mix.weights", "mix.gamma"}
    assert {name for name, p in trunk.named_parameters() if p.requires_grad} == {"mix.weights", "mix.gamma"}


def test_the_published_size():
    """93.6 M parameters, 75,563,008 of them in the LSTMs; the rest was the character CNN."""
    with torch.device("meta"):
        published = BiLSTM(ElmoConfig(vocab_size=64))
    lstms = [p.numel() for stack in (published.forwards, published.backwards) for p in stack.parameters()]
    filters = sum(
        16 * width * count + count for width, count in zip(range(1, 8), (32, 32, 64, 128, 256, 512, 1024), strict=True)
    )
    highway = 2 * 2 * (2048 * 2048 + 2048)
    characters = 262 * 16 + filters + highway + 2048 * 512 + 512
    assert sum(lstms) == 75_563_008
    assert round((sum(lstms) + characters) / 1e6, 1) == 93.6
    config = ElmoConfig(vocab_size=VOCABULARY, width=16, hidden=24)
    macs = sum(p.numel() for p in BiLSTM(config).parameters() if p.dim() == 2) - 64 * 8
    assert config.forward_flops_per_token(128, 1.0) == 2 * (macs + 2 * 64 * 8)


def test_bad_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match="width is 15"):
        ElmoConfig(width=15)
    with pytest.raises(ValueError, match="hidden is 8, not more than the projection of 8"):
        ElmoConfig(width=16, hidden=8)
    with pytest.raises(ConfigError, match="max_length is 4"):
        model(CONFIG.model_copy(update={"max_length": 4}))(batch([words(1, 5)], 5))
    with pytest.raises(ConfigError, match="bilstm.tokens.weight is nothing"):
        FeatureTrunk(CONFIG).load_pretrained({})
    with pytest.raises(ConfigError, match="tokenizer has 41 tokens"):
        CONFIG.with_vocabulary(41)
    assert isinstance(model(), Trainable)
