"""Training state on disk: written in the background, whole or absent, checked before use, fit for any placement.

`policy.py` when and which; `snapshot.py`, `shards.py`, `writer.py` onto the disk; `checkpointer.py` what the loop
calls; `layout.py`, `reader.py` back from it; `universal.py` on another number of workers or ZeRO stage.
"""
