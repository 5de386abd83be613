"""scripts/measure/bench_torch.py: what it times is greedy decoding, whatever the mode, and its record says what was run."""

import dataclasses
import json
import sys

import pytest
from checkpoints import EOS, make_checkpoint, words, write_folder

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting import Plain
from jax_probe_mtp.errors import exit_status
from jax_probe_mtp.generation.decoder import Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import bench_torch  # noqa: E402
from shapes import SHAPES  # noqa: E402
from torch_step import random_model  # noqa: E402

STEP = ["step", "--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--no-compile"]
SIZES = ["--batch", "2", "--in-use", "9", "--capacity", "24", "--calls", "7", "--repeats", "3"]
TEXTS = [words(5, 9, 2, 44), words(7, 7, 3, 50, 12, 31, 7, 7, 3), words(31, 5)]
NEW_TOKENS = 40


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Torch's threads wait for each other in a loop: beside other tests, tiny models take ten times as long with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(tmp_path, *args):
    output = tmp_path / "record.json"
    assert bench_torch.main([*map(str, args), "--output", str(output)]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    return write_folder(tmp_path_factory.mktemp("torch") / "hf", make_checkpoint(tiny))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "questions.jsonl"
    lines = [{"question_id": i, "category": "any", "turns": [text]} for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", ["tiny", "qwen3-0.6b"])
def test_steps_of_all_modes_are_those_of_decoding_without_a_cache(tmp_path, monkeypatch, shape):
    small = {"width": 48, "mlp_width": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 97}
    monkeypatch.setitem(SHAPES, shape, dataclasses.replace(SHAPES[shape], **small))
    record = run(tmp_path, *STEP, *SIZES, "--shape", shape, "--layers", "3")

    model = random_model(dataclasses.replace(SHAPES[shape], num_layers=3), "float32", "cpu")
    token_BT = torch.randint(97, (2, 9))  # the same seed draws the weights, then these
    with torch.no_grad():
        for _ in range(8):
            logits_BV = model(token_BT, use_cache=False).logits[:, -1]
            assert torch.diff(logits_BV.topk(2).values).abs().min() > 1e-5, "rounding could decide this one"
            token_BT = torch.cat([token_BT, logits_BV.argmax(-1)[:, None]], dim=1)

    assert [each["mode"] for each in record["runs"]] == ["eager", "static", "model.generate"]
    for each in record["runs"]:
        assert each["token_ids"] == token_BT[:, 9:].tolist()
        assert len(each["step_ms_repeats"]) == 3
        assert sorted(each["step_ms_repeats"]) == [each["step_ms_min"], each["step_ms"], each["step_ms_max"]]
        assert each["step_ms_min"] > 0
        assert each["warm_up_seconds"] > 0
        assert each["peak_bytes"] is None
    assert len({tuple(row) for row in token_BT.tolist()}) == 2, "both rows are the same: this proves little"


def test_the_model_is_the_shape_in_the_dtype_with_rope_in_float32():
    cfg = dataclasses.replace(SHAPES["tiny"], is_tied=True)
    model = random_model(cfg, "bfloat16", "cpu")
    attention = 2 * cfg.width * cfg.head_dim * (cfg.num_heads + cfg.num_kv_heads)
    layer = attention + 3 * cfg.width * cfg.mlp_width + 2 * cfg.width
    assert model.num_parameters() == cfg.vocab_size * cfg.width + cfg.num_layers * layer + cfg.width
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.model.rotary_emb.inv_freq[-1].item() == pytest.approx(cfg.rope_theta ** (2 / cfg.head_dim - 1))
    assert model.config._attn_implementation == "sdpa"
    assert not model.training


def test_every_mode_generates_our_plain_text(tmp_path, folder, questions):
    flags = ["--max-new-tokens", NEW_TOKENS, "--dtype", "float32", "--device", "cpu"]
    record = run(tmp_path, "generate", "--model", folder, "--questions", questions, *flags)

    checkpoint = load_checkpoint(folder, dtype="float32")
    prompts = [Prompt(id=i, token_ids=checkpoint.tokenizer(_asked(text))["input_ids"]) for i, text in enumerate(TEXTS)]
    ours = list(Decoder(checkpoint, Plain()).run(prompts, Settings(max_new_tokens=NEW_TOKENS)))
    assert {answer.finish_reason for answer in ours} == {"stop", "length"}, "choose prompts that end both ways"

    expected = {str(answer.id): answer.token_ids for answer in ours}
    assert [each["mode"] for each in record["runs"]] == ["eager", "static", "prompt_lookup"]
    for each in record["runs"]:
        assert {name: result["token_ids"] for name, result in each["by_question"].items()} == expected
        assert each["num_equal_to_first"] == len(TEXTS)
        assert each["tokens"] == sum(map(len, expected.values()))
        assert each["seconds"] == pytest.approx(sum(result["seconds"] for result in each["by_question"].values()))
        assert each["tokens_per_second"] == pytest.approx(each["tokens"] / each["seconds"])
        assert all(result["seconds"] > 0 for result in each["by_question"].values())
    assert record["is_complete"] is True
    assert record["static_slots"] == max(len(prompt.token_ids) for prompt in prompts) + NEW_TOKENS
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["transformers"] == transformers.__version__
    assert record["environment"]["device"].endswith("cores")
    assert record["settings"] == {
        "model": folder.name, "questions": questions.name, "per_category": None, "max_new_tokens": NEW_TOKENS,
        "modes": ["eager", "static", "prompt_lookup"], "dtype": "float32", "device": "cpu", "no_compile": False,
    }  # fmt: skip


def test_bfloat16_is_that_of_from_pretrained(tmp_path, folder, questions):
    flags = ["--max-new-tokens", NEW_TOKENS, "--dtype", "bfloat16", "--device", "cpu", "--modes", "eager"]
    record = run(tmp_path, "generate", "--model", folder, "--questions", questions, "--per-category", 2, *flags)
    (eager,) = record["runs"]
    assert list(eager["by_question"]) == ["0", "1"]

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = load_checkpoint(folder).tokenizer
    for text, result in zip(TEXTS[:2], eager["by_question"].values(), strict=True):
        prompt_1T = torch.tensor([tokenizer(_asked(text))["input_ids"]])
        mask_1T = torch.ones_like(prompt_1T)
        limits = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": [EOS], "pad_token_id": 0}
        output_1T = theirs.generate(prompt_1T, attention_mask=mask_1T, **limits)
        assert result["token_ids"] == output_1T[0, prompt_1T.shape[1] :].tolist()


def _asked(text: str) -> str:
    return f"<s> <user> {text} <bot>"  # what the template of `checkpoints.py` makes of it


@pytest.mark.parametrize(
    ("args", "words_of_it"),
    [
        (
            [*STEP, "--capacity", "20", "--in-use", "9", "--calls", "12"],
            ["20", "9 in use + 12 calls", "21", "--capacity"],
        ),
        ([*STEP, "--capacity", "13", "--in-use", "9", "--calls", "1"], ["13", "9 in use + 5 calls", "14"]),
        ([*STEP, "--shape", "llama-9"], ["llama-9", "smollm2-135m"]),
        ([*STEP, "--calls", "0"], ["at least 1, got 0"]),
        ([*STEP, "--modes", "prompt_lookup"], ["prompt_lookup", "eager"]),
        ([*STEP, "--output", "/no/such/folder/R.json"], ["/no/such/folder/R.json", "make it first"]),
        (["generate", "--model", "m", "--questions", "/no/q.jsonl", "--device", "cpu"], ["/no/q.jsonl"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_one_line(capsys, args, words_of_it):
    assert _exit_status(args) == 2
    _check_line(capsys, words_of_it)


def test_a_checkpoint_that_is_not_there(capsys, tmp_path, questions):
    args = ["generate", "--model", str(tmp_path / "gone"), "--questions", str(questions), "--device", "cpu"]
    assert _exit_status(args) == 2
    _check_line(capsys, ["gone"])


def test_no_cuda(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _exit_status(["step", "--shape", "tiny"]) == 2
    _check_line(capsys, [torch.__version__, "--device cpu"])


def test_no_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises
    assert _exit_status(STEP) == 2
    _check_line(capsys, ["pip install '.[torch]'"])


def _exit_status(args):
    try:
        return exit_status(lambda: bench_torch.main(args))
    except SystemExit as error:  # from argparse
        return error.code


def _check_line(capsys, words_of_it):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for each in words_of_it:
        assert each in captured.err
