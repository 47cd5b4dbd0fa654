"""The nine tasks of GLUE (Wang et al., 2018): folders, columns, labels, metrics, BERT's published figures.

Class numbers are those of the Hub's Parquet files, so both layouts give the same labels. Published
figures are those of the hidden test sets (Devlin et al., 2019, table 1), printed beside ours as a
landmark: ours are measured on the validation split.
"""

from __future__ import annotations

from tasks.downstream.glue_files import GlueTask, TsvLayout

ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("index", "sentence1", "sentence2", "label")

COLA = GlueTask(
    name="cola",
    kind="classification",
    labels=("unacceptable", "acceptable"),
    metrics=("matthews", "accuracy"),
    primary="matthews",
    description="is a sentence of the linguistics literature acceptable English (Warstadt et al., 2018)",
    published={"BERT-base (test)": 0.521, "OpenAI GPT (test)": 0.454},
    published_metric="matthews",
    folders=("CoLA",),
    text_a="sentence",
    layouts=(
        TsvLayout(
            "GLUE's TSV",
            {"train": ("train.tsv",), "validation": ("dev.tsv",)},
            ("source", "label", "mark", "sentence"),
        ),
        TsvLayout(
            "the raw corpus",
            {"train": ("in_domain_train.tsv",), "validation": ("in_domain_dev.tsv", "out_of_domain_dev.tsv")},
            ("source", "label", "mark", "sentence"),
        ),
    ),
)

SST2 = GlueTask(
    name="sst2",
    kind="classification",
    labels=("negative", "positive"),
    metrics=("accuracy",),
    primary="accuracy",
    description="the sentiment of a phrase from a film review (Socher et al., 2013)",
    published={"BERT-base (test)": 0.935, "OpenAI GPT (test)": 0.913},
    published_metric="accuracy",
    folders=("SST-2",),
    text_a="sentence",
    layouts=(TsvLayout("GLUE's TSV", {"train": ("train.tsv",), "validation": ("dev.tsv",)}, ("sentence", "label")),),
)

_MRPC = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
MRPC = GlueTask(
    name="mrpc",
    symmetric=True,
    kind="classification",
    labels=("not_equivalent", "equivalent"),
    metrics=("f1", "accuracy"),
    primary="f1",
    description="do two sentences of the news mean the same (Dolan and Brockett, 2005)",
    published={"BERT-base (test)": 0.889, "OpenAI GPT (test)": 0.823},
    published_metric="f1",
    folders=("MRPC",),
    text_a="sentence1",
    text_b="sentence2",
    aliases={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    layouts=(
        TsvLayout("GLUE's TSV", {"train": ("train.tsv",), "validation": ("dev.tsv",)}, _MRPC),
        TsvLayout(
            "Microsoft's files, the validation split cut from train",
            {"train": ("msr_paraphrase_train.txt",), "test": ("msr_paraphrase_test.txt",)},
            _MRPC,
            held_out={"validation": ("train", 0.1)},
            optional=("test",),
        ),
    ),
)

QQP = GlueTask(
    name="qqp",
    symmetric=True,
    kind="classification",
    labels=("not_duplicate", "duplicate"),
    metrics=("f1", "accuracy"),
    primary="f1",
    description="do two questions asked on Quora mean the same",
    published={"BERT-base (test)": 0.712, "OpenAI GPT (test)": 0.703},
    published_metric="f1",
    folders=("QQP",),
    text_a="question1",
    text_b="question2",
    aliases={"label": "is_duplicate"},
    skip_short=True,  # the published train.tsv has a few broken lines, which everyone drops
    layouts=(
        TsvLayout(
            "GLUE's TSV",
            {"train": ("train.tsv",), "validation": ("dev.tsv",)},
            ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        ),
    ),
)

STSB = GlueTask(
    name="stsb",
    symmetric=True,
    kind="regression",
    metrics=("pearson_spearman", "pearson", "spearman"),
    primary="pearson_spearman",
    description="how similar two sentences are, from 0 to 5 (Cer et al., 2017)",
    published={"BERT-base (test)": 0.858, "OpenAI GPT (test)": 0.800},
    published_metric="spearman",
    folders=("STS-B",),
    text_a="sentence1",
    text_b="sentence2",
    aliases={"label": "score"},
    layouts=(
        TsvLayout(
            "GLUE's TSV",
            {"train": ("train.tsv",), "validation": ("dev.tsv",)},
            (
                *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
                *("sentence1", "sentence2", "score"),
            ),
        ),
        TsvLayout(
            "the STS benchmark's files",
            {"train": ("sts-train.csv",), "validation": ("sts-dev.csv",), "test": ("sts-test.csv",)},
            ("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
            optional=("test",),
        ),
    ),
)

MNLI = GlueTask(
    name="mnli",
    kind="classification",
    labels=("entailment", "neutral", "contradiction"),
    metrics=("accuracy",),
    primary="accuracy",
    description="does a premise entail, contradict or leave open a hypothesis; matched and mismatched genres "
    "(Williams et al., 2018)",
    published={"BERT-base (test)": 0.846, "OpenAI GPT (test)": 0.821},
    published_metric="accuracy",
    folders=("MNLI", "MNLI-sample"),
    text_a="premise",
    text_b="hypothesis",
    aliases={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    layouts=(
        TsvLayout(
            "GLUE's TSV",
            {
                "train": ("train.tsv",),
                "validation": ("dev_matched.tsv",),
                "validation_mismatched": ("dev_mismatched.tsv",),
            },
            (
                *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
                *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
            ),
            needs_header=True,  # train and dev have different numbers of columns
        ),
        TsvLayout(
            "samples of the dev sets, the validation split cut from the matched one",
            {"train": ("mnli_matched.tsv",), "validation_mismatched": ("mnli_mismatched.tsv",)},
            ("gold_label", "premise", "hypothesis"),
            held_out={"validation": ("train", 0.2)},
        ),
    ),
)

QNLI = GlueTask(
    name="qnli",
    kind="classification",
    labels=ENTAILMENT,
    metrics=("accuracy",),
    primary="accuracy",
    description="does a sentence of Wikipedia answer a question (from SQuAD)",
    published={"BERT-base (test)": 0.905, "OpenAI GPT (test)": 0.874},
    published_metric="accuracy",
    folders=("QNLI",),
    text_a="question",
    text_b="sentence",
    layouts=(
        TsvLayout(
            "GLUE's TSV",
            {"train": ("train.tsv",), "validation": ("dev.tsv",)},
            ("index", "question", "sentence", "label"),
        ),
        TsvLayout(
            "GLUE's dev.tsv alone, a fifth of it kept for validation",
            {"train": ("dev.tsv",)},
            ("index", "question", "sentence", "label"),
            held_out={"validation": ("train", 0.2)},
            group="text_b",
        ),
    ),
)

RTE = GlueTask(
    name="rte",
    kind="classification",
    labels=ENTAILMENT,
    metrics=("accuracy",),
    primary="accuracy",
    description="does a passage of the news entail a sentence (the PASCAL challenges)",
    published={"BERT-base (test)": 0.664, "OpenAI GPT (test)": 0.560},
    published_metric="accuracy",
    folders=("RTE",),
    text_a="sentence1",
    text_b="sentence2",
    layouts=(TsvLayout("GLUE's TSV", {"train": ("train.tsv",), "validation": ("dev.tsv",)}, PAIR),),
)

WNLI = GlueTask(
    name="wnli",
    kind="classification",
    labels=("not_entailment", "entailment"),
    metrics=("accuracy",),
    primary="accuracy",
    description="what a pronoun stands for, as entailment (Levesque et al., 2011); its splits are adversarial, and "
    "the majority class is the figure to beat",
    folders=("WNLI",),
    text_a="sentence1",
    text_b="sentence2",
    layouts=(
        TsvLayout(
            "GLUE's TSV, train in two parts", {"train": ("train.tsv", "val.tsv"), "validation": ("dev.tsv",)}, PAIR
        ),
        TsvLayout("GLUE's TSV", {"train": ("train.tsv",), "validation": ("dev.tsv",)}, PAIR),
    ),
)
