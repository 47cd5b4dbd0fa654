"""Kinds of tokenizer, a file for each algorithm: a function from a sample of texts to a `tokenizers.Tokenizer`.

A new kind is a function `(sample, TokenizerSettings) -> Tokenizer`, a line in `tasks.tokenizer.TOKENIZERS` and a
line in `tasks.tokenizer.ROLES_OF`.
"""
