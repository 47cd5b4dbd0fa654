"""Activation checkpointing: less is kept, and nothing else changes."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from modeling.architecture import TransformerConfig
from modeling.baseline_configs import ElmoConfig
from modeling.elmo import BidirectionalLanguageModel
from modeling.heads.language import LanguageModel
from modeling.heads.permutation import PermutationLanguageModel
from modeling.recompute import recomputing

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

V, B, L = 40, 4, 12
SMALL = {"layers": 4, "width": 16, "heads": 2, "ff_width": 64, "max_length": L, "vocab_size": V, "dropout": 0.2}
XLNET = {"positions": "transformer-xl", "embedding_norm": False, "head_transform": False}


def batch_of() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, V, (B, L), generator=draw)
    ranks = torch.where(torch.rand(B, L, generator=draw) < 0.4, torch.arange(L).expand(B, L), -1)
    labels = ids.masked_fill(ranks < 0, -100)
    return {
        "input_ids": ids,
        "labels": labels,
        "ranks": ranks,
        "attention_mask": torch.arange(L).expand(B, L) < torch.tensor([[L], [7], [L], [9]]),
        "decoder_input_ids": ids.roll(1, 1),
        "prefix_mask": torch.arange(L).expand(B, L) < 4,
        "labels_forward": labels,
        "labels_backward": labels,
    }


MODELS = {
    "encoder": lambda: LanguageModel(TransformerConfig(**SMALL)),
    "shared": lambda: LanguageModel(TransformerConfig(**SMALL, share_layers=True)),
    "decoder": lambda: LanguageModel(
        TransformerConfig(**SMALL, architecture="decoder", norm_placement="pre", positions="rotary", qk_norm=True)
    ),
    "prefix-lm": lambda: LanguageModel(TransformerConfig(**SMALL, architecture="prefix-lm")),
    "encoder-decoder": lambda: LanguageModel(
        TransformerConfig(**SMALL, architecture="encoder-decoder", norm_placement="pre", positions="relative")
    ),
    "transformer-xl": lambda: PermutationLanguageModel(TransformerConfig(**SMALL, **XLNET)),
    "bilstm": lambda: BidirectionalLanguageModel(ElmoConfig(vocab_size=V, width=16, hidden=64, dropout=0.2)),
}


def gradients(name: str, enabled: bool, dtype: torch.dtype | None) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one batch, and the bytes that its forward pass keeps for them."""
    torch.manual_seed(0)
    model, data, kept = MODELS[name](), batch_of(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    with recomputing(model, enabled):
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(data).loss_sum.sum()
        loss.backward()
    assert all("forward" not in vars(module) for module in model.modules())
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_have_the_same_bytes_and_less_is_kept(name, dtype):
    (plain, much), (again, little) = (gradients(name, enabled, dtype) for enabled in (False, True))
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    assert little < (0.9 if name == "bilstm" else 0.7) * much  # its dropout and inputs are outside the layers
