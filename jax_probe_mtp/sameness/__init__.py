"""Whether an output is plain decoding's text, ours or anyone's."""
