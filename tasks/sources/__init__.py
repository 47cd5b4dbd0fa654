"""Where documents come from: one reader per format, named in `SOURCES`.

A new format is one file with a subclass of `tasks.sources.base.Source`, and one line here.
"""

from __future__ import annotations

from modeling.config import Registry

SOURCES = Registry(
    "format",
    {
        "installed-docs": "tasks.sources.installed_docs:InstalledDocs",
        "text": "tasks.sources.text:TextFiles",
        "jsonl": "tasks.sources.jsonl:JsonLines",
        "csv": "tasks.sources.delimited:Csv",
        "tsv": "tasks.sources.delimited:Tsv",
        "parquet": "tasks.sources.columnar:Parquet",
        "arrow": "tasks.sources.columnar:ArrowFile",
        "warc": "tasks.sources.warc:Warc",
    },
)
