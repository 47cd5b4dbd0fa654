"""Recipes: Python functions that chain tasks into a pipeline. A new one is a file and a line here."""

from modeling.config import Registry

RECIPES = Registry(
    "recipe",
    {
        "quickstart": "pipelines.recipes.quickstart:quickstart",
        "bert": "pipelines.recipes.bert:bert",
        "roberta": "pipelines.recipes.roberta:roberta",
        "spanbert": "pipelines.recipes.spanbert:spanbert",
        "electra": "pipelines.recipes.electra:electra",
        "albert": "pipelines.recipes.albert:albert",
        "xlnet": "pipelines.recipes.xlnet:xlnet",
        "gpt": "pipelines.recipes.gpt:gpt",
        "gpt2": "pipelines.recipes.gpt2:gpt2",
        "t5": "pipelines.recipes.t5:t5",
        "prefix-lm": "pipelines.recipes.prefix_lm:prefix_lm",
        "bart": "pipelines.recipes.bart:bart",
        "mass": "pipelines.recipes.mass:mass",
        "word2vec": "pipelines.recipes.word2vec:word2vec",
        "elmo": "pipelines.recipes.elmo:elmo",
        "tokenizers": "pipelines.recipes.tokenizers:tokenizers",
        "scaling": "pipelines.recipes.scaling:scaling",
    },
)
