"""Files that lie elsewhere: at addresses such as `gs://bucket/f.jsonl`, or on stdin and stdout."""
