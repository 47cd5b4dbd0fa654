"""Downstream tasks: one name each in DOWNSTREAM; a family's declarations in one file, its reader beside it.

To add a task: declare a `Downstream` (see spec.py) and add its line here.
"""

from __future__ import annotations

from modeling.config import Registry

DOWNSTREAM = Registry(
    "downstream task",
    {
        "cola": "tasks.downstream.glue:COLA",
        "sst2": "tasks.downstream.glue:SST2",
        "mrpc": "tasks.downstream.glue:MRPC",
        "qqp": "tasks.downstream.glue:QQP",
        "stsb": "tasks.downstream.glue:STSB",
        "mnli": "tasks.downstream.glue:MNLI",
        "qnli": "tasks.downstream.glue:QNLI",
        "rte": "tasks.downstream.glue:RTE",
        "wnli": "tasks.downstream.glue:WNLI",
        "docs-library": "tasks.downstream.docs_library:DOCS_LIBRARY",
        "docs-parameter-type": "tasks.downstream.docs_types:DOCS_PARAMETER_TYPE",
        "docs-acceptability": "tasks.downstream.docs_order:DOCS_ACCEPTABILITY",
    },
)
