"""A view such as a quickstart run gives, with numbers of its size; used by the report's tests."""

from __future__ import annotations

import math
import random
from typing import Any


def sample_view() -> dict[str, Any]:
    draw = random.Random(0)
    stages: list[dict[str, Any]] = []

    def add(name: str, task: str, inputs: list[str], seconds: float, offset: float | None, **more: Any) -> str:
        state = "done" if offset is not None else "cached"
        stage = {"name": name, "task": task, "key": f"{draw.getrandbits(128):032x}", "state": state, "reason": "new"}
        stage |= {"seconds": seconds, "started_offset_seconds": offset, "inputs": inputs, "metrics": {}, "attempts": 1}
        stages.append(stage | {"decisions": []} | more)
        return name

    add("ingest", "Ingest", [], 58.2, None, reason="same key", made_by_run="calm-heron", metrics={"documents": 36_512})
    add("tokenizer", "TrainTokenizer", ["ingest"], 9.4, 0.4, metrics={"fertility": 1.31})
    add("examples", "MakeExamples", ["ingest", "tokenizer"], 13.1, 9.9, metrics={"tokens": 7_040_000})
    again = ["attempt 1: a worker was lost, started again from step 180"]
    add("pretrain", "Pretrain", ["examples"], 151, 23.2, attempts=2, decisions=again, metrics={"loss": 3.35})
    offset = 175.0
    for task, seconds in (("library", 6.1), ("types", 21.0), ("acceptability", 29.5)):
        data = add(f"{task}-data", "LabelledData", ["ingest"], 2.2, 10.0)
        for init in ("pretrained", "random"):
            for seed in range(3):
                inputs = ["pretrain", data] if init == "pretrained" else ["tokenizer", data]
                tuned = add(f"finetune-{task}-{init}-{seed}", "Finetune", inputs, seconds, offset)
                add(f"evaluate-{task}-{init}-{seed}", "Evaluate", [tuned, data], 1.1, offset + seconds)
                offset += seconds / 2
    add("report", "Report", [s["name"] for s in stages if s["task"] == "Evaluate"], 0.3, offset + 20)

    records = []
    for step in range(0, 1500, 10):
        loss = 3.3 + 5 * math.exp(-step / 120) + 0.06 * draw.random()
        rate = 4e-3 * min(step / 100, 1) * (1 - step / 1600)
        records.append({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 0.6 + draw.random() / 3})
        records[-1]["tokens"] = step * 2048
    tuning = [{"step": s, "loss": 2.3 * math.exp(-s / 50) + 0.1 * draw.random()} for s in range(0, 200, 5)]

    def row(task: str, metric: str, pretrained: list[float], chance: list[float]) -> dict[str, Any]:
        sides = {}
        for side, values in (("pretrained", pretrained), ("random", chance)):
            sides[side] = {"values": values, "median": sorted(values)[1], "spread": max(values) - min(values)}
        difference = sides["pretrained"]["median"] - sides["random"]["median"]
        return {"task": task, "metric": metric, **sides, "difference": difference, "pays": difference > 0}

    published = {"OpenAI GPT": 45.4, "BERT-base": 52.1}
    return {
        "run": {
            "name": "brisk-otter",
            "recipe": "quickstart",
            "state": "done",
            "started": "2030-01-31 10:20:30",
            "seconds": 362.0,
            "command": "triptych run quickstart pretrain.steps=1500",
            "config": {
                "corpus": "docs",
                "seeds": [1, 2, 3],
                "pretrain": {"steps": 1500, "loop": {"peak_lr": 4e-3, "precision": "bf16", "betas": [0.9, 0.98]}},
                "model": {"layers": 2, "width": 128, "heads": 4, "norm": "rmsnorm", "qk_norm": True},
            },
            "store": "./runs",
            "tracking": {"uri": "sqlite:///runs/mlflow.db", "run_id": "04a523aad66f4eb481e390ddacb4fd23"},
        },
        "stages": stages,
        "corpus": {
            "documents": 36_512,
            "bytes": 32_140_000,
            "characters": 32_010_000,
            "words": 4_512_000,
            "splits": {"train": {"documents": 34_700, "shards": 4}, "validation": {"documents": 1_812, "shards": 1}},
            "sources": {f"library {n}": {"documents": 100 * n, "bytes": 90_000 * n * n} for n in range(1, 18)},
            "skipped": {"too short": 1_204},
            "duplicates": 2_310,
        },
        "tokenizer": {
            "kind": "wordpiece",
            "vocab_size": 4096,
            "special_tokens": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
            "fertility_tokens_per_word": 1.612,
            "bytes_per_token": 3.62,
            "unk_rate": 0.00021,
            "whole_word_share": 0.713,
        },
        "examples": {
            "objective": "mlm",
            "masking": "dynamic",
            "length_tokens": 64,
            "sequences": {"train": 110_000, "validation": 5_800},
            "tokens": {"train": 7_040_000, "validation": 371_200},
            "unigram_entropy_nats": 5.97,
            "duplication": 1,
        },
        "training": [
            {
                "stage": "pretrain",
                "records": records,
                "baselines": {"unigram": 5.97},
                "figures": {"steps": 1500, "parameters": 1_180_000, "final": {"loss": 3.35, "tokens": 3_072_000}},
                "throughput": {"tokens_per_second": 20_345.0, "mfu": 0.214},
            },
            *({"stage": f"finetune-library-{n}", "records": tuning} for n in range(6)),
        ],
        "pretraining": [
            {
                "objective": "mlm",
                "architecture": "encoder",
                "parameters": 920_000,
                "tokens": 5_120_000,
                "loss": 3.3512,
                "measure": "validation_loss",
                "unigram": 5.97,
                "ngram": 4.1,
                "order": 3,
                "measured_at": "labels",
            }
        ],
        "results": [
            row("library of a passage", "accuracy", [0.58, 0.59, 0.61], [0.44, 0.45, 0.46]),
            row("type of a parameter", "F1", [0.71, 0.7, 0.74], [0.31, 0.35, 0.36]),
            row("order of words", "Matthews", [0.21, 0.25, 0.3], [0.27, 0.26, 0.28]) | {"published": published},
        ],
        "environment": {
            "python": "3.11.7",
            "host": "workstation",
            "cpu": "2 cores",
            "git": {"commit": "0123abcd", "dirty": False},
            "packages": {"torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8", "mlflow": "3.17.2"},
        },
        "provenance": [
            {
                "stage": stage["name"],
                "key": stage["key"],
                "code": {"tasks.pretrain": "9c1185a5c5e9fc54", "modeling.loop": "4fdb3ab9cb8fe1f6"},
                "inputs": {"examples": "aa11", "models": ["bb22", "cc33"]},
            }
            for stage in stages[:5]
        ],
    }


def mixture_view() -> dict[str, Any]:
    """A run with a mixture of four components, two of them cleaned in full, and a comparison of tokenizers."""
    view = sample_view()
    parts = {
        "wikipedia": ("encyclopedia", 42_300_000, 2.0),
        "wikitext": ("encyclopedia", 11_100_000, 1.0),
        "books": ("books", 51_900_000, 0.75),
        "shakespeare": ("books", 1_120_000, 4.0),
    }
    stages, corpora = [], []

    def corpus(name: str, task: str, inputs: list[str], documents: int, size: int, **more: Any) -> None:
        stages.append({"name": name, "task": task, "inputs": inputs, "state": "done", "seconds": 3.0})
        splits = {"train": {"documents": documents * 19 // 20}, "validation": {"documents": documents // 20}}
        corpora.append({"stage": name, "documents": documents, "bytes": size, "words": size // 6, "splits": splits})
        corpora[-1].update(more)

    for name, (_, size, _) in parts.items():
        corpus(f"ingest-{name}", "Ingest", [], size // 4000, size, duplicates=12, skipped={"empty": 3})
        corpus(f"clean-{name}", "Clean", [f"ingest-{name}"], size // 4400, size * 9 // 10, funnel=_funnel(size))
    total = sum(size * epochs for _, size, epochs in parts.values())
    rows = [
        {
            "name": name,
            "category": category,
            "documents": size // 4400,
            "bytes": size,
            "tokens": None,
            "weight": size * epochs / total,
            "epochs": epochs,
            "effective_bytes": round(size * epochs),
            "effective_tokens": None,
        }
        for name, (category, size, epochs) in parts.items()
    ]
    corpus("mix", "Mix", [f"clean-{name}" for name in parts], 31_000, round(total), components=rows)
    view["tokenizer"]["examples"] = [
        {"class": "common", "word": "hat", "pieces": ["hat"]},
        {"class": "variant", "word": "taaaaasty", "pieces": ["ta", "##aa", "##aa", "##st", "##y"]},
        {"class": "misspelt", "word": "laern", "pieces": ["la", "##ern"]},
        {"class": "novel", "word": "Transformerify", "pieces": ["transform", "##er", "##ify"]},
    ]
    return {
        **view,
        "stages": [*stages, *view["stages"][1:]],
        "corpus": corpora,
        "tokenizer_comparison": [{"stage": "compare-tokenizers", **_comparison()}],
    }


def _funnel(size: int) -> list[dict[str, Any]]:
    documents = size // 4000
    samples = [
        {"id": "a.jsonl:17", "reason": "mojibake repaired", "before": "cafÃ© \x00 <b>&amp;</b>", "after": "café <b>"},
        {"id": "a.jsonl:90", "reason": "fewer than 50 words", "before": "Click here.", "after": None},
    ]
    steps = [
        ("input", 0.0, 0.0, {}, {}, []),
        ("unicode", 0.0, 0.001, {"mojibake repaired": 812}, {"HTML escapes": 3120}, samples[:1]),
        ("gopher", 0.06, 0.02, {"fewer than 50 words": 540, "too many symbols": 21}, {}, samples[1:]),
        ("pii", 0.0, 0.0, {}, {}, []),
        ("near-duplicates", 0.03, 0.08, {"near duplicate": 260}, {}, []),
    ]
    rows = []
    left = [float(documents), float(size)]
    for step, documents_gone, bytes_gone, reasons, counts, shown in steps:
        removed = {"documents": round(left[0] * documents_gone), "bytes": round(left[1] * bytes_gone)}
        left = [left[0] - removed["documents"], left[1] - removed["bytes"]]
        facts = {"clusters": 131, "candidate_pairs": 2204} if step == "near-duplicates" else {}
        rows.append(
            {
                "step": step,
                "documents": round(left[0]),
                "bytes": round(left[1]),
                "removed": removed,
                "changed": sum(reasons.values()) if step == "unicode" else 0,
                "reasons": reasons,
                "counts": counts,
                "facts": facts,
                "samples": shown,
            }
        )
    return rows


def _comparison() -> dict[str, Any]:
    kinds = {"wordpiece": (3.1, 1.9), "bpe": (3.0, 2.0), "unigram": (3.05, 1.95), "characters": (1.02, 5.6)}
    rows = [
        {
            "kind": kind,
            "vocab_size": size,
            "bytes_per_token": worth + (0.35 * n if kind != "characters" else 0),
            "fertility": fertility - (0.17 * n if kind != "characters" else 0),
            "unknown_rate": 0.0002 if kind == "wordpiece" else 0.0,
            "whole_words": 0.55 + 0.07 * n if kind != "characters" else 0.04,
        }
        for kind, (worth, fertility) in kinds.items()
        for n, size in enumerate((1024, 4096, 16_384))
    ]
    pieces = {f"{kind}-4096": ["lear", "n"] for kind in kinds}
    words = [{"class": "misspelt", "word": "laern"}, {"class": "common", "word": "learn"}]
    return {"rows": rows, "examples": [{**word, "pieces": pieces} for word in words]}
