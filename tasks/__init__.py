"""One module per stage: a frozen config and a `run`. Tasks know models and the cluster, never pipelines."""
