"""Compares plain decoding on a CPU with llama.cpp, on the same weights in float32: whole answers, prefill included, in turns.

    pip install llama-cpp-python --no-binary llama-cpp-python
    taskset -c 0 python scripts/peers/bench_llama_cpp.py --model MODEL.gguf --questions F.jsonl --batch 1 8 --output R.json

The GGUF is written anew with all tensors in float32, so that both multiply the same numbers. Both decode greedily, in one
process that is best pinned to one core; llama.cpp is given one thread.
"""

import argparse
import ctypes
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.measuring.timed_batch import TimedBatches
from jax_probe_mtp.model.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Times both on every batch of questions; prints a line a batch size and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL.gguf")
    parser.add_argument("--questions", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument(
        "--per-category", type=positive, metavar="N", help="the first N of each category (default: all)"
    )
    parser.add_argument("--no-chat-template", action="store_true", help="take prompts as plain text")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="B")
    parser.add_argument("--longest", type=positive, default=400, metavar="N", help="leave out prompts of more tokens")
    parser.add_argument("--max-new-tokens", type=positive, default=100, metavar="N")
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args(argv)
    whole_files.check_files({"--output": args.output}, [args.model, args.questions])
    if args.model.suffix != ".gguf":
        raise ValueError(f"--model must be a .gguf file, which llama.cpp reads too, got {args.model}.")
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError:
        raise ValueError("llama_cpp is missing: pip install llama-cpp-python --no-binary llama-cpp-python.") from None
    checkpoint = load_checkpoint(str(args.model), dtype="float32")
    asked = read_questions(args.questions, args.per_category)
    prompts, _ = read_prompts(checkpoint, asked, args.max_new_tokens, use_chat_template=not args.no_chat_template)
    prompts = [prompt for prompt in prompts if len(prompt.token_ids) <= args.longest]
    if len(prompts) < max(args.batch):
        raise ValueError(
            f"--batch {max(args.batch)} needs as many questions of at most {args.longest} tokens, there are {len(prompts)}; "
            "lower it, or raise --longest."
        )
    slots, rows = args.longest + args.max_new_tokens, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.gguf"
        write_float32(args.model, path)
        for size in args.batch:
            settings = Settings(max_new_tokens=args.max_new_tokens, batch_size=size, capacity=slots)
            peer = LlamaCpp(llama_cpp, path, size, slots)
            rows.append(_compare(checkpoint, peer, prompts, settings))
            said = f"{rows[-1]['times_the_speed_of_llama_cpp']:.2f} x the speed of llama.cpp"
            print(f"batch {size}: {said}, {rows[-1]['same_answers']} answers the same", flush=True)
    if args.output:
        record = {"environment": environment("float32") | {"llama_cpp_python": llama_cpp.__version__}, "runs": rows}
        whole_files.write_json(args.output, record | {"model": args.model.name, "max_new_tokens": args.max_new_tokens})
    return 0


def _compare(checkpoint: Checkpoint, peer: "LlamaCpp", prompts: Sequence[Prompt], settings: Settings) -> dict[str, Any]:
    """Decodes whole batches with both, who begins in turns; the questions that fill no batch are left out."""
    ours, size, new = TimedBatches(checkpoint, parse_draft(PLAIN)), settings.batch_size, settings.max_new_tokens
    ends = set(checkpoint.eos_token_ids)
    batches = [prompts[i : i + size] for i in range(0, len(prompts) - size + 1, size)]
    ours.run(batches[0], settings)  # compiles
    peer.decode(batches[0], new, ends)
    seconds: list[tuple[float, float]] = []
    same = 0

    def run_ours(batch: Sequence[Prompt]) -> tuple[list[list[int]], float]:
        before = ours.stats.seconds
        answers = [list(answer.generation.token_ids) for answer in ours.run(batch, settings)]
        return answers, ours.stats.seconds - before

    def run_peer(batch: Sequence[Prompt]) -> tuple[list[list[int]], float]:
        start = time.perf_counter()
        return peer.decode(batch, new, ends), time.perf_counter() - start

    for number, batch in enumerate(batches):
        if number % 2:
            mine, theirs = run_ours(batch), run_peer(batch)
        else:
            theirs, mine = run_peer(batch), run_ours(batch)
        seconds.append((mine[1], theirs[1]))
        same += sum(a == b for a, b in zip(mine[0], theirs[0], strict=True))
    return {
        "batch_size": size,
        "questions": size * len(batches),
        "same_answers": same,
        "times_the_speed_of_llama_cpp": round(float(np.median([b / a for a, b in seconds])), 3),
        "seconds": [[round(a, 4), round(b, 4)] for a, b in seconds],
    }


def write_float32(source: Path, target: Path) -> None:
    """Writes a GGUF with the same keys and all tensors in float32."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, sub_type=inner[-1] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A model of llama.cpp on one thread, with room for a batch of texts."""

    def __init__(self, api: Any, path: Path, rows: int, slots: int) -> None:
        """Args: the module, the GGUF, texts at a time, and tokens of each."""
        self._api = api
        self._hush = api.llama_log_callback(lambda *_: None)  # kept: llama.cpp calls it as long as it runs
        api.llama_log_set(self._hush, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        made = api.llama_context_default_params()
        made.n_ctx, made.n_seq_max, made.n_batch, made.n_ubatch = slots * rows, rows, slots * rows, 512
        made.n_threads = made.n_threads_batch = 1
        made.type_k = made.type_v = int(gguf.GGMLQuantizationType.F32)  # else the cache is float16
        self._context = api.llama_init_from_model(self._model, made)
        self._size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(slots * rows, 0, rows)

    def decode(self, prompts: Sequence[Prompt], max_new_tokens: int, ends: set[int]) -> list[list[int]]:
        """Answers; gives the new tokens, an end included."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        news: list[list[int]] = [[] for _ in prompts]
        feed = [(row, list(prompt.token_ids), 0) for row, prompt in enumerate(prompts)]
        while feed:
            reads = self._run(feed)
            after = []
            for (row, tokens, start), read in zip(feed, reads, strict=True):
                token = self._choose(read)
                news[row].append(token)
                if len(news[row]) < max_new_tokens and token not in ends:
                    after.append((row, [token], start + len(tokens)))
            feed = after
        return news

    def _choose(self, read: int) -> int:
        """Chooses the token behind a place of the batch: the best one."""
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, read), (self._size,))
        return int(np.argmax(logits))

    def _run(self, feed: list[tuple[int, list[int], int]]) -> list[int]:
        """Runs tokens of several texts at once; says where each one's last is in the batch."""
        batch, n, reads = self._batch, 0, []
        for row, tokens, start in feed:
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, start + i, 1
                batch.seq_id[n][0], batch.logits[n] = row, i == len(tokens) - 1
                n += 1
            reads.append(n - 1)
        batch.n_tokens = n
        if status := self._api.llama_decode(self._context, batch):
            raise ValueError(f"llama.cpp could not decode {n} tokens (status {status}); lower --batch or --longest.")
        return reads


if __name__ == "__main__":
    sys.exit(exit_status(main))
