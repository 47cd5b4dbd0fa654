"""Torch only: the transformer, heads and losses, the training loop, generation. Imports no other package here."""
