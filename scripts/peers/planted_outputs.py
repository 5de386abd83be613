"""Makes files of outputs of known origin, honest and planted, to measure what `verify --outputs` tells apart.

    pip install ".[torch]" && pip install llama-cpp-python --no-binary llama-cpp-python
    python scripts/peers/planted_outputs.py --model MODEL.gguf --questions F.jsonl --per-category 24 --output FOLDER

The reference is the model that our float32 reading of the GGUF gives. Each kind of outputs becomes FOLDER/KIND.jsonl:
`prompt_ids`, `token_ids` (an end of text included where it was generated), `max_new_tokens`, `category` and, where it
was sampled, `temperature` and `top_p`. The prompts are the same ids in all files, whatever was really asked. Kinds that
are there already are kept, so that a killed run goes on, and several runs may make a kind each.

llama.cpp reads GGUFs that its own quantizer makes of the float32 one, kept in FOLDER/gguf. Its three-bit types take
rows of multiples of 256 numbers alone: Q3_K_M rounds narrower ones to four or five bits (kind `llama_q3_k_m`). For
`llama_q3` the layers' matrices are rounded as Q3_K with zeros behind each row, and kept as float32.
"""

import argparse
import ctypes
import dataclasses
import importlib
import json
import shutil
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from bench_llama_cpp import LlamaCpp, write_float32

from checkpoints_convert import load_checkpoint
from checkpoints_convert.compare import torch_model
from jax_probe_mtp import generate
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN
from jax_probe_mtp.errors import Parser, count, exit_status, one_line, positive
from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.questions import Question, read_questions
from jax_probe_mtp.generation import tokenizer

HONEST = "honest_ours_f32"  # what the changed kinds are made of
SYSTEM = "You are a careful tutor. Answer in short, plain sentences."
PADDED = "Q3_K_padded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """How a kind of outputs is made."""

    by: str | None = None  # "ours", "torch" or "llama"; None for answers of `HONEST` with one thing wrong
    weights: str = "float32"  # dtype, or the GGUF's type for llama.cpp; "int8" are our weights of eight bits
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    noise: float = 0.0  # deviation of what is added to each matrix, as a part of the matrix's own
    is_flash: bool = True  # llama.cpp's default attention, which rounds to float16 whatever the weights
    asks: str = "prompt"  # "template" for no chat template, "system" for another system message


KINDS = {
    HONEST: Kind(by="ours"),
    **dict.fromkeys(("swapped", "no_end", "truncated", "prompt_included"), Kind()),
    "honest_torch_f32": Kind(by="torch"),
    "honest_llama_f32": Kind(by="llama", weights="F32", is_flash=False),
    "llama_f32": Kind(by="llama", weights="F32"),
    **{f"llama_{name.lower()}": Kind(by="llama", weights=name) for name in ("F16", "Q8_0", "Q4_0", "Q3_K_M", "stored")},
    "llama_q5": Kind(by="llama", weights="Q5_0"),
    "llama_q3": Kind(by="llama", weights=PADDED),
    "llama_q4_0_t1.0": Kind(by="llama", weights="Q4_0", temperature=1.0),
    "ours_bf16": Kind(by="ours", weights="bfloat16"),
    "torch_bf16": Kind(by="torch", weights="bfloat16"),
    "ours_int8": Kind(by="ours", weights="int8"),
    **{f"{by}_t{degree}": Kind(by=by, temperature=degree) for by in ("ours", "torch") for degree in (0.7, 1.0)},
    "torch_t0.7_topp0.9": Kind(by="torch", temperature=0.7, top_p=0.9),
    "other_template": Kind(by="torch", asks="template"),
    "other_system": Kind(by="torch", asks="system"),
    "penalty": Kind(by="torch", repetition_penalty=1.1),
    "other_model_same_tokenizer": Kind(by="torch", noise=0.03),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the kinds that are not there yet; prints a line for each."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL.gguf")
    parser.add_argument("--questions", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument("--per-category", type=positive, metavar="N", help="first N of each (default: all)")
    parser.add_argument("--longest", type=positive, default=400, metavar="N", help="leave out prompts of more tokens")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="B")
    parser.add_argument("--seed", type=count, default=26, metavar="S", help="of all draws (default: 26)")
    parser.add_argument("--torch-device", default="cpu", metavar="NAME", help='as "cuda" (default: cpu)')
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="default: all")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    if args.model.suffix != ".gguf":
        raise ValueError(f"--model must be a .gguf file, which llama.cpp reads too, got {args.model}.")
    maker, kinds = Maker(args), dict.fromkeys([HONEST, *args.kinds])
    for name in [name for name in kinds if not (args.output / f"{name}.jsonl").exists()]:
        start = time.perf_counter()
        answers = maker.answers(name)
        maker.write(name, answers)
        same = sum(mine == honest for mine, honest in zip(answers, maker.honest(), strict=True))
        said = f"{len(answers)} answers, {sum(map(len, answers))} tokens, {same} as {HONEST}"
        print(f"{name}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
    return 0


class Maker:
    """Makes outputs of one model for one set of questions."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self._folder, self._gguf = args, args.output, args.output / "gguf"
        self._checkpoint = load_checkpoint(str(args.model), dtype="float32")
        questions = read_questions(args.questions, args.per_category)
        asked = [(question, self._prompt(question, "prompt")) for question in questions]
        self._asked = [each for each in asked if len(each[1].token_ids) <= args.longest]
        if not self._asked:
            raise ValueError(f"no question has at most {args.longest} tokens; raise --longest.")

    def answers(self, name: str) -> list[list[int]]:
        """Gives the token ids of a kind of outputs, in the order of the questions."""
        kind = KINDS[name]
        draws = np.random.default_rng([self._args.seed, *name.encode()])
        seeds = draws.integers(1, 2**32, len(self._asked)).tolist()
        if kind.by is None:
            return self._changed(name, draws)
        prompts = [self._prompt(question, kind.asks) for question, _ in self._asked]
        if kind.by == "ours":
            return self._by_ours(kind, [dataclasses.replace(p, seed=s) for p, s in zip(prompts, seeds, strict=True)])
        answer = self._torch_answer(kind, seeds[0]) if kind.by == "torch" else self._llama_answer(kind, seeds[0])
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].token_ids))
        answered: dict[int, list[int]] = {}
        for first in range(0, len(order), self._args.batch_size):
            places = order[first : first + self._args.batch_size]
            answered.update(zip(places, answer([prompts[place] for place in places]), strict=True))
        return [answered[place] for place in range(len(prompts))]

    def write(self, name: str, answers: Sequence[Sequence[int]]) -> None:
        """Writes a kind's file, whole."""
        kind, lines = KINDS[name], []
        stated: dict[str, Any] = {"max_new_tokens": self._args.max_new_tokens}
        stated |= {"temperature": kind.temperature, "top_p": kind.top_p} if kind.temperature else {}
        for (question, prompt), ids in zip(self._asked, answers, strict=True):
            record = {"id": question.id, "category": question.category, "prompt_ids": list(prompt.token_ids)}
            lines.append(json.dumps(record | {"token_ids": list(ids)} | stated) + "\n")
        whole_files.write_files(self._folder, {f"{name}.jsonl": "".join(lines)})

    def honest(self) -> list[list[int]]:
        """Reads the answers of `HONEST` to these questions, of which the file may hold more."""
        path = self._folder / f"{HONEST}.jsonl"
        records = {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}
        found = [records.get(question.id, {}) for question, _ in self._asked]
        if [record.get("prompt_ids") for record in found] != [list(prompt.token_ids) for _, prompt in self._asked]:
            raise ValueError(f"{path} does not answer these prompts; name another --output.")
        return [record["token_ids"] for record in found]

    def _changed(self, name: str, draws: np.random.Generator) -> list[list[int]]:
        """Gives the answers of `HONEST` with one thing wrong."""
        honest, ends = self.honest(), self._checkpoint.eos_token_ids
        if name == "swapped":  # each gets the answer of the next in a circle
            circle = draws.permutation(len(honest))
            follower = dict(zip(circle.tolist(), np.roll(circle, -1).tolist(), strict=True))
            return [honest[follower[place]] for place in range(len(honest))]
        if name == "no_end":
            return [ids[:-1] if ids and ids[-1] in ends else ids for ids in honest]
        if name == "truncated":
            return [ids[: max(1, len(ids) // 2)] for ids in honest]
        return [[*prompt.token_ids, *ids] for (_, prompt), ids in zip(self._asked, honest, strict=True)]

    def _prompt(self, question: Question, asks: str) -> Prompt:
        is_plain, system = asks == "template", SYSTEM if asks == "system" else None
        text = f"Question: {question.text}\nAnswer:" if is_plain else question.text
        ids = tokenizer.encode(self._checkpoint.tokenizer, text, use_chat_template=not is_plain, system=system)
        return Prompt(id=question.id, token_ids=ids)

    def _by_ours(self, kind: Kind, prompts: Sequence[Prompt]) -> list[list[int]]:
        is_int8 = kind.weights == "int8"
        how: dict[str, Any] = {"dtype": "float32", "weights": "int8"} if is_int8 else {"dtype": kind.weights}
        checkpoint = load_checkpoint(str(self._args.model), **how)
        drawn: dict[str, Any] = {"temperature": kind.temperature, "top_p": kind.top_p}
        settings = Settings(max_new_tokens=self._args.max_new_tokens, batch_size=self._args.batch_size, **drawn)
        return [list(each.token_ids) for each in generate(checkpoint, prompts, draft=PLAIN, settings=settings)]

    def _torch_answer(self, kind: Kind, seed: int) -> Callable[[Sequence[Prompt]], list[list[int]]]:
        try:
            import torch
            from transformers import GenerationConfig
        except ImportError as error:
            raise ValueError(f"{one_line(error)}; pip install '.[torch]' from a checkout installs it.") from error
        checkpoint, ends = self._checkpoint, list(self._checkpoint.eos_token_ids)
        device = torch.device(self._args.torch_device)
        model = torch_model(checkpoint.config, checkpoint.params, kind.weights).to(device)
        model.set_attn_implementation("sdpa")  # as transformers does by itself
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if kind.noise and parameter.ndim == 2:
                    parameter.add_(torch.randn_like(parameter) * kind.noise * parameter.std())
        drawn = {"temperature": kind.temperature, "top_k": 0, "top_p": kind.top_p} if kind.temperature else {}
        limits = {"max_new_tokens": self._args.max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
        chosen = {"do_sample": bool(kind.temperature), "repetition_penalty": kind.repetition_penalty}
        model.generation_config = GenerationConfig(**limits, **chosen, **drawn)

        def answer(prompts: Sequence[Prompt]) -> list[list[int]]:
            size = max(len(prompt.token_ids) for prompt in prompts)
            shorter = [size - len(prompt.token_ids) for prompt in prompts]
            ids = [[ends[0]] * n + list(prompt.token_ids) for n, prompt in zip(shorter, prompts, strict=True)]
            mask = torch.tensor([[0] * n + [1] * (size - n) for n in shorter], device=device)
            with torch.no_grad():
                news = model.generate(torch.tensor(ids, device=device), attention_mask=mask)[:, size:].tolist()
            length = [next((n for n, token in enumerate(new, 1) if token in ends), len(new)) for new in news]
            return [new[:n] for new, n in zip(news, length, strict=True)]  # what fills a row behind its end is cut

        return answer

    def _llama_answer(self, kind: Kind, seed: int) -> Callable[[Sequence[Prompt]], list[list[int]]]:
        try:
            llama_cpp = importlib.import_module("llama_cpp")
        except ImportError as error:
            raise ValueError(f"{one_line(error)}; pip install llama-cpp-python --no-binary llama-cpp-python.") from None
        path = self._args.model if kind.weights == "stored" else self._weights(llama_cpp, kind.weights)
        slots = self._args.longest + self._args.max_new_tokens
        peer = SampledLlamaCpp(llama_cpp, path, self._args.batch_size, slots, kind, seed)
        ends, new = set(self._checkpoint.eos_token_ids), self._args.max_new_tokens
        return lambda prompts: peer.decode(prompts, new, ends)

    def _weights(self, api: Any, kind: str) -> Path:
        """Gives the model's GGUF with weights of that kind, made if it is not there."""
        path: Path = self._gguf / f"{self._args.model.stem}.{kind}.gguf"
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = whole_files.partial_path(path)
        if kind == "F32":
            write_float32(self._args.model, partial)
        elif kind == PADDED:
            shutil.copy(self._weights(api, "F32"), partial)
            _round_to_q3_k(partial, api)
        else:
            how = api.llama_model_quantize_default_params()
            how.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
            source = self._weights(api, "F32")
            if status := api.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(how)):
                raise ValueError(f"llama.cpp could not make {kind} of {source} (status {status}).")
        return partial.rename(path)


class SampledLlamaCpp(LlamaCpp):
    """A model of llama.cpp whose own samplers choose: greedily at temperature 0, else from all tokens."""

    def __init__(self, api: Any, path: Path, rows: int, slots: int, kind: Kind, seed: int) -> None:
        def context() -> Any:
            made = api.llama_context_default_params()
            made.flash_attn_type = -1 if kind.is_flash else 0  # as it finds best, or off
            return made

        own = types.SimpleNamespace(**(vars(api) | {"llama_context_default_params": context}))
        super().__init__(own, path, rows, slots)
        add = api.llama_sampler_chain_add
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        add(self._chain, api.llama_sampler_init_temp(kind.temperature))  # 0 leaves the best token alone
        add(self._chain, api.llama_sampler_init_dist(seed))

    def _choose(self, read: int) -> int:
        return int(self._api.llama_sampler_sample(self._chain, self._context, read))


def _round_to_q3_k(path: Path, api: Any) -> None:
    """Rounds the layers' matrices of a float32 GGUF, in place, with ggml's own quantizer."""
    quantize = api.llama_cpp._lib.ggml_quantize_chunk  # of a library that llama.cpp's needs
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    quantize.restype = ctypes.c_size_t
    kind = gguf.GGMLQuantizationType.Q3_K
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.data.ndim < 2 or not tensor.name.startswith("blk."):
            continue
        width = tensor.data.shape[1]
        padded = np.pad(tensor.data, ((0, 0), (0, -width % gguf.QK_K)))
        packed = np.zeros(gguf.quant_shape_to_byte_shape(padded.shape, kind), np.uint8)
        if quantize(kind, padded.ctypes.data, packed.ctypes.data, 0, *padded.shape, None) != packed.size:
            raise ValueError(f"ggml could not round {tensor.name}; build another release of llama-cpp-python.")
        tensor.data[:] = gguf.dequantize(packed, kind)[:, :width]


if __name__ == "__main__":
    sys.exit(exit_status(main))
