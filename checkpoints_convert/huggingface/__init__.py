"""Reads Hugging Face folders and hub ids: configuration, tensors and tokenizer."""
