"""`verify` on the same answers in every format: the verdicts are those of our own."""

import json
import re

import pytest
from checkpoints import EOS, words
from support.commands import NEW, PROMPTS, assert_refused, write

from jax_probe_mtp.commands import options

# What each format holds is written beside its reader's tests, tests/files/formats/.


def text_of(tokens):
    """Special tokens are shown, but for the end of the text."""
    return words(*(token for token in tokens if token != EOS))


def verdicts_of(out):
    """The verdict of each record, and their counts, without what is said of the file as a whole."""
    return re.findall(r"^(?:[abc]: |\d+ same, ).*", out, flags=re.MULTILINE)


def reason_of(tokens):
    return "stop" if tokens[-1] == EOS else "length"


def ours(name, tokens):
    return {"id": name, "prompt_ids": PROMPTS[name], "token_ids": tokens}


def vllm(name, tokens):
    output = {"index": 0, "text": text_of(tokens), "token_ids": tokens, "finish_reason": reason_of(tokens)}
    return {"request_id": name, "prompt": "?", "prompt_token_ids": PROMPTS[name], "outputs": [output]}


def chat(name, tokens, **more):
    message = {"role": "assistant", "content": text_of(tokens)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason_of(tokens)}
    return {"id": name, "object": "chat.completion", "choices": [choice | more]}


def chat_with_logprobs(name, tokens):
    content = [{"token": words(token), "logprob": -0.5, "bytes": list(words(token).encode())} for token in tokens]
    return chat(name, tokens, logprobs={"content": content})


def completion(name, tokens, **more):
    choice = {"index": 0, "text": text_of(tokens), "logprobs": None, "finish_reason": reason_of(tokens)}
    return {"id": name, "object": "text_completion", "choices": [choice | more]}


def completion_with_ids(name, tokens):
    named = [f"token_id:{token}" for token in tokens]
    return completion(name, tokens, logprobs={"tokens": named, "token_logprobs": [-0.5] * len(tokens)})


def batch(name, tokens):
    response = {"status_code": 200, "request_id": "r", "body": chat(f"chatcmpl-{name}", tokens)}
    return {"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None}


def sample(name, tokens):
    settings = {"until": [], "do_sample": False, "max_gen_toks": NEW}
    arguments = {"gen_args_0": {"arg_0": words(*PROMPTS[name]), "arg_1": settings}}
    return {"doc_id": name, "doc": {}, "target": "x", "arguments": arguments, "resps": [[text_of(tokens)]]}


def sequences(name, tokens):
    padding = [EOS] * 5 if tokens[-1] == EOS else []
    return {"id": name, "input_ids": [PROMPTS[name]], "sequences": [[*PROMPTS[name], *tokens, *padding]]}


def generated(name, tokens):
    prompt = words(*PROMPTS[name])
    return {"id": name, "prompt": prompt, "generated_text": f"{prompt} {text_of(tokens)}"}


HOLD_PROMPTS = [ours, vllm, sample, sequences, generated]
NEED_PROMPTS = [chat, chat_with_logprobs, completion, completion_with_ids, batch]
FORMAT_OF = {
    "ours": "ours",
    "vllm": "vllm",
    "chat": "openai-chat",
    "chat_with_logprobs": "openai-chat",
    "completion": "openai-completion",
    "completion_with_ids": "openai-completion",
    "batch": "openai-batch",
    "sample": "lm-eval",
    "sequences": "transformers",
    "generated": "transformers",
}


@pytest.fixture
def verify(run, model, tmp_path):
    def verify(records, *flags, prompts=None):
        files = ["--outputs", write(tmp_path / "o.jsonl", records)]
        if prompts is not None:
            files += ["--input", write(tmp_path / "p.jsonl", prompts)]
        return run("verify", "--model", model, *files, "--max-new-tokens", NEW, *flags)

    return verify


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))


@pytest.mark.parametrize("written", HOLD_PROMPTS + NEED_PROMPTS)
def test_every_format_gives_the_verdicts_of_our_own(verify, plain, written):
    wrong = [*plain["b"]]
    wrong[4] = 9
    answers = plain | {"b": wrong}
    records = [ours(name, tokens) for name, tokens in answers.items()]
    code, out, err = verify(records)
    expected = verdicts_of(out)
    assert (code, expected[0], expected[3], err) == (1, "a: same 3 tokens", "2 same, 0 tie, 1 diverged", "")
    assert expected[1].startswith("b: diverged at new token 4: plain 28 (")
    prompts = None
    if written in NEED_PROMPTS:
        prompts = [{"id": name, "prompt_ids": ids} for name, ids in reversed(PROMPTS.items())]
    values = [written(name, tokens) for name, tokens in answers.items()]
    code, out, err = verify(values, prompts=prompts)
    assert (code, verdicts_of(out)) == (1, expected)
    said = err.splitlines()
    form = FORMAT_OF[written.__name__]
    assert [line for line in said if "is read as" in line] == [line for line in said[:1] if form != "ours"]
    assert form == "ours" or said[0].startswith(f"o.jsonl is read as {form} (")
    assert said[1:] == ["3 of 3 outputs are to begin with their prompts, which are cut off"] * (form == "transformers")
    assert verdicts_of(verify(values, "--format", form, prompts=prompts)[1]) == expected


def test_an_array_of_answers(run, model, plain, tmp_path):
    path = tmp_path / "o.json"
    path.write_text(json.dumps([ours(name, tokens) for name, tokens in plain.items()], indent=1), encoding="utf-8")
    code, out, err = run("verify", "--model", model, "--outputs", path, "--max-new-tokens", NEW)
    assert (code, verdicts_of(out)[-1], err) == (0, "3 same, 0 tie, 0 diverged", "")


def test_a_padded_batch_of_transformers_is_a_record_a_prompt(verify, plain):
    size = max(map(len, PROMPTS.values()))
    ids = [[EOS] * (size - len(prompt)) + prompt for prompt in PROMPTS.values()]
    mask = [[0] * (size - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS.values()]
    rows = [row + plain[name] + [EOS] * (NEW - len(plain[name])) for name, row in zip(PROMPTS, ids, strict=True)]
    batch = {"id": list(PROMPTS), "input_ids": ids, "attention_mask": mask, "sequences": rows}
    code, out, _ = verify([batch])
    assert (code, verdicts_of(out)[-1]) == (0, "3 same, 0 tie, 0 diverged")
    swapped = [rows[0], rows[2], rows[1]]
    code, out, _ = verify([batch | {"sequences": swapped}])
    assert (code, out.count(": unchecked: the output is to begin with its prompt")) == (2, 2)
    assert_refused(verify([batch | {"id": ["a", "b", "b"]}]), "has the id 'b' of ")


def test_prompts_of_completions_pass_no_chat_template_and_those_of_chats_do(verify, plain):
    prompts = [{"id": name, "prompt": words(*ids)} for name, ids in PROMPTS.items()]
    values = [completion(name, tokens) for name, tokens in plain.items()]
    assert verdicts_of(verify(values, prompts=prompts)[1])[-1] == "3 same, 0 tie, 0 diverged"
    values = [chat(name, tokens) for name, tokens in plain.items()]
    assert "3 diverged" in verify(values, prompts=prompts)[1]
    assert "3 same, 0 tie, 0 diverged\n" in verify(values, "--no-chat-template", prompts=prompts)[1]


def test_sequences_show_whether_their_prompt_passed_the_chat_template(verify, plain):
    record = {"prompt": words(7), "sequences": [[7, *plain["a"]]]}
    assert verify([record])[1].startswith("1: same 3 tokens\n")
    templated = record | {"sequences": [[0, 59, 7, 60, 1]]}
    assert verify([templated])[1].startswith("1: diverged at new token 0: ")


def test_outputs_that_cannot_be_checked_say_why(verify, plain):
    failed = batch("b", plain["b"]) | {"response": None, "error": {"code": "batch_expired", "message": "Late."}}
    prompts = [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()]
    code, out, _ = verify([batch("a", plain["a"]), failed], prompts=prompts)
    assert code == 2
    assert out.splitlines()[:2] == ["a: same 3 tokens", "b: unchecked: the request failed: batch_expired, Late."]
    code, out, err = verify([generated("a", plain["a"]) | {"generated_text": text_of(plain["a"])}])
    assert code == 2
    assert out.startswith(
        "a: unchecked: the output is to begin with its prompt, but begins with '\u00e9t\u00e9 \u00e9t\u00e9'; "
    )
    assert err.endswith("1 of 1 outputs are to begin with their prompts, which are cut off\n")
    answer_alone = {"generated_text": text_of(plain["a"]), "return_full_text": False}
    assert verify([generated("a", plain["a"]) | answer_alone])[1].startswith("a: same 3 tokens\n")


def test_a_limit_that_only_the_output_knows(run, model, plain, tmp_path):
    files = ["--outputs", write(tmp_path / "o.jsonl", [vllm("b", plain["b"])])]
    code, out, _ = run("verify", "--model", model, *files)
    assert (code, out.splitlines()[0]) == (0, "b: same 24 tokens")
    files = ["--outputs", write(tmp_path / "o.jsonl", [ours("b", plain["b"]) | {"finish_reason": "length"}])]
    assert "no limit is known" in run("verify", "--model", model, *files)[1]  # as ever


def test_answers_of_generate_without_their_prompts_are_joined(run, model, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": words(*ids)} for ids in [*PROMPTS.values(), PROMPTS["a"]]])
    flags = ["--model", model, "--temperature", "0.8", "--seed", "5", "--max-new-tokens", "12"]
    assert run("generate", *flags, "--input", prompts, "--output", tmp_path / "a.jsonl", "--n", "2")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ("id", "token_ids", "content", "occurrence", "sample")
    stripped = [{name: line[name] for name in kept if name in line} for line in lines]
    write(tmp_path / "s.jsonl", reversed(stripped))
    code, out, err = run("verify", *flags, "--input", prompts, "--outputs", tmp_path / "s.jsonl")
    assert (code, verdicts_of(out)[-1], err) == (0, "8 same, 0 tie, 0 diverged", "")
    assert_refused(
        run("verify", *flags, "--outputs", tmp_path / "s.jsonl"),
        'must be an object with a text "prompt", or "messages"',
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--outputs", "o", "--prompt", "x"], "argument --outputs: not allowed with argument --prompt"),
        (["--input", "p", "--prompt", "x"], "not allowed with argument"),
        ([], "one of the arguments --prompt --input --outputs is required"),
        (["--prompt", "x", "--format", "vllm"], "--format is for --outputs; leave it out."),
        (["--outputs", "o", "--format", "tgi"], "invalid choice: 'tgi'"),
        (
            ["--outputs", "-", "--input", "-"],
            "--input and --outputs cannot both be stdin; name a file for one of them.",
        ),
    ],
)
def test_flags_that_do_not_go_together(run, no_model, flags, says):
    assert_refused(run("verify", "--model", "m", *flags), says)


@pytest.mark.parametrize(
    ("lines", "flags", "says"),
    [
        ([{"question": "x"}], [], "line 1 is in no known format: it has the keys 'question', but ours needs"),
        ([vllm("a", [1]), chat("a", [1])], [], "line 2 is openai-chat, but the file is read as vllm; "),
        ([vllm("a", [1])], ["--format", "ours"], "line 1 is vllm, but the file is read as ours; "),
        ([chat("a", [1])], [], "line 1 holds no prompt; give the file of the prompts with --input"),
    ],
)
def test_files_that_cannot_be_read_are_refused_before_anything_is_opened(verify, no_model, lines, flags, says):
    assert_refused(verify(lines, *flags), says)


def test_outputs_of_other_prompts_are_refused_before_anything_is_opened(verify, no_model):
    assert_refused(
        verify([batch("a", [1]), batch("z", [1])], prompts=[{"id": "a", "prompt": "x"}]),
        "p.jsonl has no prompt of the id 'z' (1 of 2 outputs have none there); give the file of their prompts.",
    )


def test_a_text_may_be_cut_into_another_number_of_tokens(verify, plain):
    """Its tokens' number is not the limit's: one that says that it reached the limit did, and a longer one is whole."""
    prompts = [{"id": "b", "prompt_ids": PROMPTS["b"]}]
    for limit in ("20", "30"):
        flags = ["--max-new-tokens", limit]
        assert verify([ours("b", plain["b"])], *flags)[1].startswith("b: incomplete: ")
        assert verify([completion("b", plain["b"])], *flags, prompts=prompts)[1].startswith("b: same 24 tokens")
    short = sample("b", plain["b"])
    short["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 20
    assert verify([short])[1].startswith("b: same 24 tokens")
