"""ELMo: two stacks of LSTMs read a text in both directions; a learned mix of their layers is a token's feature.

Peters et al. 2018 (arXiv:1802.05365). Pretraining is `BidirectionalLanguageModel`, downstream use `FeatureTrunk`.
As in the authors' code a layer is an LSTM with projection (4,096 cells, 512 outputs), with one bias that begins at 1
for the forget gate; dropout is on each layer's input, and the residual adds what the dropout left. Not as there: the
softmax is over the whole vocabulary (theirs samples 8,192 words in training), states begin at zero in every row
(theirs go on from batch to batch), and cells and projections are not cut off at ±3 (no library LSTM can).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.baseline_configs import ElmoConfig
from modeling.cross_entropy import linear_cross_entropy
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, NEVER, LossSum, Parts

# Said once per process, by the CPU's plain LSTM and by cuDNN: neither is a mistake of the caller.
warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")

LABELS = ("labels_forward", "labels_backward")
_RESET_COLUMNS = 8  # one would do; eight keep the width of matrix products aligned
_SHUT = -1e3
"""What a reset column adds to every gate's input: together −8,000, at which a sigmoid is exactly 0 in any dtype."""


class ProjectedLSTM(nn.Module):
    """One LSTM layer, one direction, with projected output (Sak et al. 2014, arXiv:1402.1128) and a reset.

    Where `reset` is set all gates are shut, so state and output are exactly zero there and the next step starts
    from nothing: padding changes no other position, and documents in one row know nothing of each other.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.weight_input = nn.Parameter(torch.empty(4 * hidden, width))
        self.weight_state = nn.Parameter(torch.empty(4 * hidden, width))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        self.projection = nn.Parameter(torch.empty(width, hidden))
        for weight, inputs in ((self.weight_input, width), (self.weight_state, width), (self.projection, hidden)):
            nn.init.uniform_(weight, -(inputs**-0.5), inputs**-0.5)
        with torch.no_grad():
            self.bias[hidden : 2 * hidden].fill_(1)  # torch's order of gates: input, forget, cell, output

    def forward(self, x_BLP: Tensor, reset_BL: Tensor | None) -> Tensor:
        """Outputs [B, L, P] of inputs [B, L, P], left to right."""
        x_BLP, weight_input = x_BLP.to(self.bias.dtype), self.weight_input
        if reset_BL is not None:
            columns_BLR = reset_BL[..., None].expand(-1, -1, _RESET_COLUMNS).to(x_BLP.dtype)
            x_BLP = torch.cat([x_BLP, columns_BLR], -1)
            shut = weight_input.new_full((4 * self.hidden, _RESET_COLUMNS), _SHUT)
            weight_input = torch.cat([weight_input, shut], 1)
        states = x_BLP.new_zeros(1, len(x_BLP), self.width), x_BLP.new_zeros(1, len(x_BLP), self.hidden)
        # torch has two biases, whose gradients would be the same: one of them stays at zero.
        weights = [weight_input, self.weight_state, self.bias, torch.zeros_like(self.bias), self.projection]
        # cuDNN's LSTM takes no mixed types: on a GPU it runs in float32 (its matrix products in TF32).
        # There is no dropout inside: "training" only says that cuDNN is to keep what its backward pass needs, which a
        # trunk that stays in evaluation mode may have as well.
        trains = torch.is_grad_enabled()
        with torch.autocast("cuda", enabled=False) if x_BLP.is_cuda else nullcontext():
            return torch.lstm(x_BLP, states, weights, True, 1, 0.0, trains, False, True)[0]


class BiLSTM(nn.Module):
    """Token embeddings and the two stacks; both directions' layers, not mixed."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.known_vocabulary(), config.projection)
        nn.init.uniform_(self.tokens.weight, -1, 1)
        self.forwards, self.backwards = (
            nn.ModuleList(ProjectedLSTM(config.projection, config.hidden) for _ in range(config.layers))
            for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """([embeddings, layer 1, …] of the forward direction, the same of the backward one), [B, L, P] each.

        Args:
            attention_mask_BL: False at padding, which stands at the end; states are zero there.
            segment_ids_BL: where the number changes another document begins. The forward states of a document's
                last token and the backward ones of its first, which predict nothing, are zero.

        Raises ConfigError for a sequence longer than max_length.
        """
        if self.config.max_length < input_ids_BL.shape[1]:
            raise ConfigError(
                f"a sequence has {input_ids_BL.shape[1]} tokens, but model.max_length is {self.config.max_length}",
                "shorten the examples or raise model.max_length",
            )
        x_BLP = self.tokens(input_ids_BL)
        ends_BL, begins_BL = _resets(attention_mask_BL, segment_ids_BL)
        forwards = self._run(self.forwards, x_BLP, ends_BL)
        turned = self._run(self.backwards, x_BLP.flip(1), None if begins_BL is None else begins_BL.flip(1))
        return forwards, [layer.flip(1) for layer in turned]

    def _run(self, stack: nn.ModuleList, x_BLP: Tensor, reset_BL: Tensor | None) -> list[Tensor]:
        layers = [x_BLP]
        for number, lstm in enumerate(stack):
            x_BLP = self.dropout(x_BLP)
            out_BLP = lstm(x_BLP, reset_BL)
            x_BLP = out_BLP + x_BLP if number and self.config.residual else out_BLP
            layers.append(x_BLP)
        return layers


def _resets(attention_mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Where states are shut off, bool [B, L], (left to right, right to left); None: nowhere.

    A document's last token closes it left to right, its first one right to left. Looking whether there is padding
    would stall a GPU's queue, so there the mask is used as given.
    """
    padding_BL = None
    if attention_mask_BL is not None and not (attention_mask_BL.device.type == "cpu" and attention_mask_BL.all()):
        padding_BL = ~attention_mask_BL.bool()
    if segment_ids_BL is None:
        return padding_BL, padding_BL
    border = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    ends_BL, begins_BL = F.pad(border, (0, 1)), F.pad(border, (1, 0))
    return (ends_BL, begins_BL) if padding_BL is None else (ends_BL | padding_BL, begins_BL | padding_BL)


class BidirectionalLanguageModel(nn.Module):
    """Both language models, with one softmax; pretraining's head.

    Batch (`tasks.objectives.bidirectional`): input_ids, labels_forward, labels_backward [B, L] (−100: no loss),
    attention_mask, and where documents are kept apart segment_ids. The loss is the mean of the two directions'.
    """

    parts: Parts = (("forward", 0.5), ("backward", 0.5))

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.bilstm = BiLSTM(config)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.projection, config.padded_vocab_size)
        nn.init.normal_(self.output.weight, std=config.projection**-0.5)
        nn.init.zeros_(self.output.bias)
        with torch.no_grad():
            self.output.bias[config.vocab_size :] = NEVER

    @classmethod
    def for_objective(cls, config: ElmoConfig, settings: Mapping[str, Any]) -> BidirectionalLanguageModel:
        return cls(config)

    def layers(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The layers of both directions, as `BiLSTM.forward`."""
        return self.bilstm(batch["input_ids"], batch.get("attention_mask"), batch.get("segment_ids"))

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The last layer's states [B, L, D], forward and backward side by side."""
        forwards, backwards = self.layers(batch)
        return torch.cat([forwards[-1], backwards[-1]], -1)

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        losses = []
        # Before the layers run: how many there are is asked of the device, which then has nothing else to do yet.
        places = [(batch[name].flatten() != IGNORE).nonzero().squeeze(1) for name in LABELS]
        for layers, name, where in zip(self.layers(batch), LABELS, places, strict=True):
            states_NP = self.dropout(layers[-1].flatten(0, 1).index_select(0, where))
            labels_N = batch[name].flatten().index_select(0, where)
            losses.append(linear_cross_entropy(states_NP, self.output.weight, self.output.bias, labels_N))
        return LossSum(torch.stack(losses), self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack([(batch[name] != IGNORE).sum() for name in LABELS])


class ElmoMix(nn.Module):
    """γ · Σ_j softmax(s)_j h_j over the layers (equation 1); s begins at 0, γ at 1, both learnt by the task."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights, self.gamma = nn.Parameter(torch.zeros(layers)), nn.Parameter(torch.ones(1))

    def forward(self, layers: list[Tensor]) -> Tensor:
        """The mix of tensors of one shape."""
        shares = self.weights.softmax(0) * self.gamma
        mixed = layers[0] * shares[0]
        for share, layer in zip(shares[1:], layers[1:], strict=True):
            mixed = mixed + layer * share
        return mixed


class FeatureTrunk(nn.Module):
    """A pretrained biLSTM in the transformer's place, for a head to stand on: frozen but for the mix of its layers.

    Called as `modeling.transformer.Transformer` is. The embedding layer counts for both directions (section 3.2).
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.bilstm = BiLSTM(config)
        self.bilstm.requires_grad_(False)
        self.mix = ElmoMix(config.layers + 1)

    def train(self, mode: bool = True) -> FeatureTrunk:
        """As `nn.Module.train`, but frozen layers have no dropout."""
        super().train(mode)
        self.bilstm.eval()
        return self

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the biLSTM out of the state dict of a `BidirectionalLanguageModel`; the mix stays as it is.

        Raises ConfigError where a weight is missing or of another shape.
        """
        prefix = "bilstm."
        found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for name, value in self.bilstm.state_dict().items():
            if name not in found or found[name].shape != value.shape:
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise ConfigError(f"{prefix}{name} is {shape}, the model expects {tuple(value.shape)}")
        self.bilstm.load_state_dict(found)

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        *,
        segment_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """The tokens' features, [B, L, D]."""
        pairs = zip(*self.bilstm(input_ids_BL, attention_mask_BL, segment_ids_BL), strict=True)
        return self.mix([torch.cat(pair, -1) for pair in pairs])
