"""Records in tokens: with the chat template or without, and the cache slots that they need."""

import dataclasses
import json

from checkpoints import make_tokenizer, word, words
from conftest import BASE
from support.files.job_runs import FAILING, SIZES, files, read

from jax_probe_mtp import Settings
from jax_probe_mtp.files.prompt_file import Record
from jax_probe_mtp.jobs.encode import capacity_of


def test_messages_need_the_chat_template(generate, tmp_path):
    records = [{"id": 1, "messages": [{"role": "user", "content": "w7"}]}, {"id": 2, "prompt": "w7"}]
    records += [{"id": 3, "prompt_ids": [1], "temperature": 1}]
    flags = ["--no-chat-template", "--ordered", "--max-new-tokens", "2", *SIZES]
    assert generate(*files(tmp_path, records), *flags)[0] == 3
    bad, good, _ = map(json.loads, read(tmp_path / "answers.jsonl"))
    assert bad["error"] == "messages need the chat template; leave --no-chat-template out, or give a prompt."
    assert (good["prompt_ids"], good["finish_reason"]) == ([7], "length")


def test_the_capacity_is_that_of_the_longest_record_that_fits():
    tokenizer = make_tokenizer(61, template=FAILING)

    def capacity(*records, cfg=BASE, use_chat_template=True):
        records = [Record(index=i, id=i, **record) for i, record in enumerate(records)]
        return capacity_of(records, cfg, tokenizer, Settings(max_new_tokens=20), use_chat_template=use_chat_template)

    assert capacity({"prompt_ids": [1]}) == 64  # the smallest one
    assert capacity({"prompt_ids": [1] * 45}) == 64  # 45 + 20 - 1: the last token needs no slot
    assert capacity({"prompt_ids": [1] * 46}) == 128
    assert capacity({"prompt_ids": [1] * 46}, {"prompt_ids": [1]}) == 128
    assert capacity({"prompt_ids": [1] * 46, "max_new_tokens": 19}) == 64
    assert capacity({"prompt_ids": [1], "max_new_tokens": 200}) == 256
    assert (
        capacity({"prompt_ids": [1], "max_new_tokens": 512}, {"prompt_ids": [1]}) == 64
    )  # more than the context of 512
    assert capacity({"prompt_ids": [1], "max_new_tokens": 511}) == 512
    assert capacity({"prompt": words(*[1] * 43)}) == 128  # with the three tokens of the template
    assert capacity({"prompt": words(*[1] * 43)}, use_chat_template=False) == 64
    assert capacity({"prompt": word(50)}, {"prompt_ids": [1] * 46}) == 128  # the first one's template fails
    short = dataclasses.replace(BASE, context_length=50)
    assert capacity({"prompt_ids": [1] * 30}, cfg=short) == 50  # not a bucket of 64
