"""What version 0.1.0 wrote before drafts had one text form: answers with what made them, and a bench record."""

import copy

ANSWER = {
    "id": "a",
    "prompt_ids": [7],
    "token_ids": [8, 8, 26],
    "text": "été été",
    "finish_reason": "stop",
    "calls": 2,
    "committed": 2,
}
RUN = {
    "chat_template": True,
    "max_new_tokens": 8,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 0,
    "logprobs": False,
    "stop": [],
    "exact": False,
}
PROGRAM = {"batch_size": 1, "capacity": 64, "calls_per_chunk": 8, "mesh": None}


def answer(draft, accepted_by_depth):
    """The answer to the record "a"."""
    return ANSWER | {"draft": draft, "accepted_by_depth": accepted_by_depth}


def run_of(draft, model, *, exact=False):
    """What stood in the file beside the answers; `model` is what `model_identity` gives."""
    run = {"model": model | {"dtype": "float32"}, "settings": {"draft": draft} | RUN | {"exact": exact}}
    return run | {"program": PROGRAM | {"draft": draft}} if exact else run


def bench_record(environment, model, questions_sha256):
    """A bench of two questions that was interrupted after the first; its environment is that of whoever goes on."""

    def run(name, rows, calls, accepted, seconds, prefill):
        speedup, tau = round(0.003726 / seconds, 4), 5 / calls
        result = {
            "calls": calls,
            "committed": 5,
            "accepted_by_depth": accepted,
            "seconds": seconds,
            "prefill_seconds": prefill,
            "difference": None,
        }
        return {
            "run": name,
            "rows_per_call": rows,
            "tau": tau,
            "tau_by_category": {"first": tau},
            "call_reduction": 1 - 1 / tau,
            "calls": calls,
            "committed": 5,
            "accepted_by_depth": accepted,
            "accepted_by_source": {name.split(":")[0]: sum(accepted)} if accepted else {},
            "exact_match": 1.0,
            "ties": 0,
            "differences": {},
            "seconds": round(seconds, 4),
            "prefill_seconds": round(prefill, 4),
            "tokens_per_second": round(6 / seconds, 2),
            "seconds_by_category": {"first": round(seconds, 4)},
            "speedup_vs_ar": speedup,
            "speedup_vs_ar_by_category": {"first": speedup},
            "speedup_quartiles": [speedup] * 3,
            "ms_per_call_quartiles": [round(1000 * (seconds - prefill) / (calls + 1), 4)] * 3,
            "by_question": {"1": result},
        }

    runs = [
        run("ar", 1, 5, [], 0.003726, 0.00187671),
        run("probe:4@ema=0.5", 10, 4, [1], 0.039404006, 0.015708717),
        run("ngram:3@n=2", 4, 5, [0, 0, 0], 0.013854559, 0.011451381),
    ]
    settings = {
        "questions": "questions.jsonl",
        "questions_sha256": questions_sha256,
        "per_category": None,
        "max_new_tokens": 6,
        "runs": [each["run"] for each in runs],
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "batch_size": 1,
        "capacity": 64,
        "prompt_slots": 8,
        "use_chat_template": False,
    }
    return copy.deepcopy(
        {
            "format": 1,
            "environment": environment,
            "model": model,
            "settings": settings,
            "is_complete": False,
            "questions": [1],
            "categories": {"1": "first"},
            "skipped": {},
            "runs": runs,
        }
    )
