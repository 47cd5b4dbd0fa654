"""Recipes: Python functions that chain tasks into a pipeline. A new one is a file and a line here."""

from modeling.config import Registry

RECIPES = Registry(
    "recipe",
    {
        "quickstart": "pipelines.recipes.quickstart:quickstart",
        "bert": "pipelines.recipes.bert:bert",
    },
)
