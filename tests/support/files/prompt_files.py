"""Files of prompts, and how much memory it takes to read them."""

import tracemalloc

GOOD = '{"id": "a", "prompt": "first"}\n'


def write(folder, content):
    path = folder / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def peak(work):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
