"""`python -m tests.modeling.on_pretended_gpu LIBRARY`: models' paths on a GPU, and what was seen on them, as JSON.

A process of its own, since torch takes the pretended GPU only while it is imported (`tests.modeling.pretended_gpu`).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.modeling.pretended_gpu import load

gpu = load(sys.argv[1])

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from modeling import cross_entropy, loop, step  # noqa: E402
from modeling.architecture import TransformerConfig, preset  # noqa: E402
from modeling.baseline_configs import ElmoConfig, WordVectorsConfig  # noqa: E402
from modeling.elmo import BidirectionalLanguageModel  # noqa: E402
from modeling.engine import ScaledLoss  # noqa: E402
from modeling.heads.base import IGNORE  # noqa: E402
from modeling.heads.classification import SequenceClassifier, SpanExtractor  # noqa: E402
from modeling.heads.electra import ReplacedTokenDetection  # noqa: E402
from modeling.heads.language import LanguageModel  # noqa: E402
from modeling.heads.permutation import PermutationLanguageModel  # noqa: E402
from modeling.kernels import rms_norm  # noqa: E402
from modeling.precision import autocast  # noqa: E402
from modeling.schedule import LoopConfig  # noqa: E402
from modeling.word_vectors import ContinuousBagOfWords, GloVe, SkipGram  # noqa: E402
from tasks.downstream.encode import Feature  # noqa: E402
from tasks.downstream.spec import Row  # noqa: E402
from tasks.evaluate import predict  # noqa: E402

B, L, T, V = 3, 32, 16, 200
SMALL: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "ff_width": 48, "vocab_size": V, "dropout": 0.0}
Batch = dict[str, Tensor]


def small(name: str, **more: Any) -> TransformerConfig:
    whole = preset(name)
    sizes = {"embedding_width": 16} if whole.embedding_width not in (0, whole.width) else {}
    return preset(name, **{**SMALL, **sizes, **({"decoder_layers": 2} if whole.decoder_layers else {}), **more})


def cases() -> dict[str, tuple[Callable[[], nn.Module], Batch]]:
    """{name: (what makes the model, batch)}."""
    torch.manual_seed(0)
    ids, mask = torch.randint(5, V, (B, L)), torch.arange(L) < torch.tensor([[32], [13], [20]])
    masked = torch.where((torch.rand(B, L) < 0.3) & mask, ids, IGNORE)
    place = torch.arange(L).expand(B, L)
    seen = {"input_ids": ids, "attention_mask": mask}
    encoder, decoder = {**seen, "labels": masked}, {"input_ids": ids, "labels": torch.where(mask, ids, IGNORE)}
    targets, shown = torch.randint(5, V, (B, T)), torch.arange(T) < torch.tensor([[16], [5], [9]])
    two = {**seen, "decoder_input_ids": targets, "labels": torch.where(shown, targets, IGNORE)}
    two["decoder_attention_mask"] = shown
    packed = {"segment_ids": place // 12, "position_ids": place % 12}
    two_packed = {"segment_ids": place // 12, "decoder_segment_ids": (torch.arange(T) // 6).expand(B, T)}
    prefix = {**decoder, "attention_mask": mask, "prefix_mask": (place < 9) & mask}
    spans = {"boundary_left": (place - 1).clamp(min=0), "boundary_right": (place + 1).clamp(max=L - 1)}
    spans["boundary_offset"] = (masked != IGNORE).long()
    segments = {"token_type_ids": (place > 10).long()}
    ranks = torch.where(masked != IGNORE, torch.rand(B, L).argsort(1), -1)
    labelled = {**seen, "labels": torch.tensor([0, 2, 1])}
    answers = {"start_positions": torch.tensor([0, 2, 1]), "end_positions": torch.tensor([1, 4, 3])}
    window = {"input_ids": ids, "window": torch.rand(B, L, 7) < 0.5, "negatives": torch.randint(5, V, (B, L, 4))}
    pairs = {**seen, "context_ids": ids.flip(1), "log_counts": torch.rand(B, L), "weights": torch.rand(B, L)}
    words, elmo = WordVectorsConfig(width=16, vocab_size=V), ElmoConfig(width=16, hidden=24, vocab_size=V, dropout=0.0)
    both = {**seen, "labels_forward": masked, "labels_backward": masked, "segment_ids": place // 12}

    def from_random() -> nn.Module:
        model = SequenceClassifier(elmo, 3, "mean")
        model.transformer.requires_grad_(True)
        return model

    electra = {**encoder, "original_ids": ids, "uniforms": torch.rand(B, L)}
    return {
        "bert": (lambda: LanguageModel(small("bert-tiny")), encoder),
        "bert, packed": (lambda: LanguageModel(small("bert-tiny")), encoder | packed),
        "bert, pairs": (
            lambda: LanguageModel(small("bert-tiny"), pairs=True),
            encoder | segments | {"pair_labels": labelled["labels"] % 2},
        ),
        "spanbert": (lambda: LanguageModel(small("bert-tiny"), longest_span=8), encoder | spans),
        "albert": (lambda: LanguageModel(small("albert-base")), encoder),
        "modern": (lambda: LanguageModel(small("modern-base")), encoder | packed),
        "gpt2": (lambda: LanguageModel(small("gpt2-124M")), decoder),
        "gpt2, packed": (lambda: LanguageModel(small("gpt2-124M")), decoder | packed),
        "prefix lm": (lambda: LanguageModel(small("prefix-lm-base")), prefix),
        "t5": (lambda: LanguageModel(small("t5.1.1-small")), two),
        "t5, packed": (lambda: LanguageModel(small("t5-small")), two | two_packed),
        "bart": (lambda: LanguageModel(small("bart-base")), two),
        "electra": (lambda: ReplacedTokenDetection(small("electra-small", generator_share=0.5)), electra),
        "xlnet": (lambda: PermutationLanguageModel(small("xlnet-base")), encoder | segments | {"ranks": ranks}),
        "skip-gram": (lambda: SkipGram(words), window),
        "cbow": (lambda: ContinuousBagOfWords(words), window),
        "glove": (lambda: GloVe(words), pairs),
        "elmo": (lambda: BidirectionalLanguageModel(elmo), both),
        "elmo's classifier from random weights": (from_random, labelled),
        "classifier": (lambda: SequenceClassifier(small("bert-tiny"), 3, "cls"), labelled),
        "classifier, last token": (lambda: SequenceClassifier(small("gpt2-124M"), 3, "last"), labelled),
        "spans": (lambda: SpanExtractor(small("bert-tiny")), seen | answers),
    }


def on_gpu(batch: Batch) -> Batch:
    return {name: value.to("cuda") for name, value in batch.items()}


def passed(model: nn.Module, batch: Batch, device: str, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients by name."""
    with autocast(device, precision):
        loss = model(batch).loss_sum.reshape(-1).sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compared(make: Callable[[], nn.Module], batch: Batch, precision: str) -> dict[str, Any]:
    """A forward and backward pass on the pretended GPU: how far from the CPU's, and what it asked for."""
    torch.manual_seed(0)
    model = make().train()
    other = copy.deepcopy(model)
    loss, gradients = passed(model, batch, "cpu", precision)
    with gpu:
        other.to("cuda")
        there = on_gpu(batch)
        gpu.restart()
        try:
            found, its = passed(other, there, "cuda", precision)
        except RuntimeError as error:
            return {"error": str(error).splitlines()[0]}
    off = sum(float((g - its[name].inner).square().sum()) for name, g in gradients.items()) ** 0.5
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    return {"loss": float((found.inner - loss).abs() / loss.abs()), "gradient": off / norm, "late": gpu.late}


def chunks() -> dict[str, Any]:
    """The cross-entropy of more logits than the plain formula is for, some labels without any probability."""
    cross_entropy.PLAIN_BYTES_CUDA, cross_entropy.CHUNK_ROWS = 4 * V * 16, 16
    states, weight, labels = torch.randn(50, 24), torch.randn(V, 24), torch.randint(0, V - 8, (50,))
    states[:3] *= 200

    def both(*tensors: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[:2]]
        loss = cross_entropy.linear_cross_entropy(*leaves, None, tensors[2], V - 8)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    here = both(states, weight, labels)
    with gpu:
        there = [tensor.to("cuda") for tensor in (states, weight, labels)]
        gpu.restart()
        found = both(*there)
    off = [float((a - b.inner).abs().max() / a.abs().max()) for a, b in zip(here, found, strict=True)]
    return {"off": max(off), "asked": gpu.asked}


def norms() -> float:
    """How far an RMS norm of bf16 values, asked for in fp32, is from the CPU's."""
    x, weight = torch.randn(64, 32).bfloat16(), 1 + 1e-3 * torch.randn(32)
    here = rms_norm(x, weight, 1e-6, torch.float32)
    with gpu:
        found = rms_norm(x.to("cuda"), weight.to("cuda"), 1e-6, torch.float32)
    return float((here - found.inner).abs().max())


class Plain:
    """As little of an engine as a step on one GPU at ZeRO stage 0 needs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), 0.1, foreach=False)
        self.optimizer.param_groups[0]["lr_scale"] = 1.0

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def set_gradient_accumulation_boundary(self, last: bool) -> None: ...

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


def stepped() -> list[str]:
    """What a step on one GPU asks of it."""
    make, batch = cases()["bert"]
    model = make()
    with gpu:
        module = ScaledLoss(model, "bf16", "cuda").to("cuda")
        settings = {
            "gradient_accumulation_steps": 1,
            "train_micro_batch_size_per_gpu": B,
            "zero_optimization": {"stage": 0},
        }
        config = LoopConfig(steps=1, batch_size=B, peak_lr=0.1)
        stepper = step.Stepper(Plain(module), model, config, settings, 0, 1, torch.device("cuda", 0))
        gpu.restart()
        rows = {name: value.numpy() for name, value in batch.items()}
        done = stepper.step(0, 0, rows, 0.1, [False], lambda loss, norm: True)
    assert done.applied and done.counts == [int((batch["labels"] != IGNORE).sum())]
    return list(gpu.asked)


def settings() -> dict[str, Any]:
    """Deterministic kernels while a loop runs, and ELECTRA in it; and afterwards."""
    torch.cuda.is_available = lambda: True
    make, batch = cases()["electra"]
    model = make()
    with loop._torch_settings(SimpleNamespace(cpus=1)), gpu:
        during = torch.get_deterministic_debug_mode()
        model.to("cuda")
        loss = float(model(on_gpu(batch)).loss_sum.detach().sum())
        kept = torch.get_deterministic_debug_mode()
    return {"modes": [during, kept, torch.get_deterministic_debug_mode()], "finite": loss == loss}


def predictions() -> dict[str, bool]:
    """Whether a fine-tuned model says the same of its rows on a GPU: labels, of pairs in both orders, and spans."""
    span = tuple((i, i + 1) for i in range(4))
    ids = [list(range(5 + 30 * n, 15 + 31 * n)) for n in range(5)]
    features = [Feature(n, ids[n], 6, first=7, spans=span, turned=tuple(reversed(ids[n]))) for n in range(5)]
    encoder: Any = SimpleNamespace(texts=lambda rows, both: features, spans=lambda rows, training: features, pad=0)
    rows = [Row(str(n), "question", "a text of its own", label=0.0) for n in range(5)]
    torch.inference_mode = torch.no_grad  # the pretended GPU's tensors are of a kind that cannot be without a version
    torch.manual_seed(0)
    config = small("gpt2-124M", init_std=0.3, max_length=L)
    found = {}
    for kind, network in (("classification", SequenceClassifier(config, 3, "last")), ("span", SpanExtractor(config))):
        head = {"kind": kind, "most_answer_tokens": 3, "both_orders": True}
        expected = predict(network, head, encoder, rows, 2)
        with gpu:
            on_device = predict(network.to("cuda"), head, encoder, rows, 2)
        found[kind] = on_device == expected and len(set(expected)) > 1
    return found


found = {
    f"{name}, {precision}": compared(make, batch, precision)
    for name, (make, batch) in cases().items()
    for precision in ("fp32", "bf16")
}
seen = {"cases": found, "chunks": chunks(), "norms": norms(), "step": stepped(), "predictions": predictions()}
print(json.dumps({**seen, "settings": settings()}))
