"""`verify`: are these the tokens of plain decoding? Of this method, of transformers, or of any file of outputs."""
