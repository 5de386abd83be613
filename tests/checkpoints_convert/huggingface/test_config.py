"""config.json: what is read, what stands in for what is left out, what is refused."""

import json
import math

import pytest
from support.checkpoints.hf_folders import hf_config, write_hf

from checkpoints_convert import CheckpointError
from checkpoints_convert.huggingface.config import read_hf_config
from checkpoints_convert.huggingface.model import open_hf

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(folder, config, generation=None):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_hf_config(folder)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "llama",
            {"architectures": ["MixtralForCausalLM"]},
            r"\['MixtralForCausalLM'\] is not supported \(a mixture of experts.*\); LlamaForCausalLM",
        ),
        (
            "llama",
            {"architectures": ["XForCausalLM"], "auto_map": {"AutoModelForCausalLM": "x.X"}},
            "code .* never run",
        ),
        ("llama", {"architectures": None, "model_type": "gemma"}, "'gemma' is not supported; "),
        ("llama", {"architectures": None, "model_type": "qwen3_next"}, "'qwen3_next' .* \\(its recurrent state"),
        ("llama", {"model_type": "mistral"}, "model_type 'mistral' does not belong to LlamaForCausalLM"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 639},
            "sliding_window = 639 .* texts of up to 640 tokens",
        ),
        ("qwen2", {"use_sliding_window": True, "max_position_embeddings": 4097}, "sliding_window = 4096"),
        ("mistral", {"sliding_window": 639}, "sliding_window = 639 is not .*; to read .* max_position_embeddings"),
        ("mistral", {"sliding_window": "none"}, "'sliding_window' must be a whole number, got 'none'"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}, "sliding_window = 9"),
        ("llama", {"layer_types": ["sliding_attention"]}, "'sliding_attention', but sliding_window is missing"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "linear_attention"]},
            "'linear_attention', which is not supported",
        ),
        ("llama", {"no_rope_layers": [1, 1, 1, 0]}, r"no_rope_layers = \[1, 1, 1, 0\] is not supported"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, r"0 or 1 for each of 5 layers, got \[1, 1, 1, 0\]"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 2, 1]}, "must hold 0 or 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be at least 1, got 0"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu is not supported, only silu"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config = .*awq"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling = 8"),
        ("qwen3", {"num_experts": 128}, "num_experts = 128"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope"}},
            "'longrope' is not supported: its frequencies change .* 'yarn'",
        ),
        ("llama", {"rope_scaling": {"rope_type": "su", "factor": 4.0}}, "rope type 'su' is not supported; 'default', "),
        ("llama", {"rope_scaling": {"factor": 4.0}}, "factor = 4.0 is not read for rope type 'default'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling has no 'factor'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 8}},
            "beta_fast = 8 is not read .* 'linear'",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, r"differ \(linear, yarn\)"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "has no 'factor'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 8}}, "alpha = 8 is not read"),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": 0.5}}, "factor >= 1 .* factor 0.5"),
        ("llama", {"rope_scaling": LLAMA3 | {"beta_fast": 0.5}}, "beta_fast = 0.5"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "has no 'factor'"),
        ("llama", {"rope_scaling": YARN | {"factor": 0.9}}, "factor must be at least 1, got 0.9"),
        ("llama", {"rope_scaling": YARN | {"factor": math.inf}}, "'factor' must be finite"),
        ("llama", {"rope_scaling": YARN | {"factor": "4"}}, "'factor' must be a number, got '4'"),
        ("llama", {"rope_scaling": YARN | {"beta_fast": 0.5}}, "0 < beta_slow <= beta_fast .* got theta 5000, 1, 0.5"),
        ("llama", {"rope_scaling": YARN | {"beta_slow": -1}}, "0 < beta_slow <= beta_fast"),
        ("llama", {"rope_scaling": YARN | {"truncate": 1}}, "'truncate' must be true or false"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 0.0}}, "make 0 of the rotary embedding's scale"),
        (
            "llama",
            {"rope_scaling": YARN | {"mscale": -99.0, "mscale_all_dim": 1.0}},
            "make -11.* of the rotary embedding's",
        ),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1.0, "attn_factor": 2.0}}, "leave one out"),
        ("llama", {"rope_scaling": YARN | {"extrapolation_factor": 2.0}}, "extrapolation_factor = 2.0 is not read"),
        ("llama", {"rope_scaling": YARN | {"factor": 2.0**60}}, "is no length of a context"),
        ("llama", {"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "a trained length above 0"),
        ("llama", {"rope_scaling": YARN, "rope_theta": 1.0}, "a theta above 1"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"by layer \(full_attention\)"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor must be 1, got 0.25"),
        ("llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "0 < low_freq_factor < high_freq_factor"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "has no 'factor'"),
        ("llama", {"hidden_size": None}, "has no 'hidden_size'"),
        ("llama", {"hidden_size": "36"}, "'hidden_size' must be a whole number, got '36'"),
        ("llama", {"num_attention_heads": True}, "'num_attention_heads' must be a whole number, got 'True'"),
        ("llama", {"num_attention_heads": 0}, "num_heads must be a whole number of at least 1, got 0"),
        ("llama", {"num_key_value_heads": 4}, "num_heads 6 must be a multiple of num_kv_heads 4"),
        ("llama", {"num_key_value_heads": 0}, "num_kv_heads must be a whole number of at least 1, got 0"),
        ("llama", {"rms_norm_eps": 0}, r"norm_eps 0\.0"),
        ("llama", {"rms_norm_eps": math.inf}, "'rms_norm_eps' must be finite"),
        ("llama", {"rope_theta": math.nan}, "'rope_theta' must be finite"),
        ("llama", {"rope_theta": 10**400}, "'rope_theta' must be finite"),
        ("llama", {"rope_theta": 0, "rope_scaling": LLAMA3}, "theta > 0, factor >= 1 .* got theta 0"),
        ("llama", {"head_dim": 10**9}, "head size of 1000000000 is not supported"),
        ("llama", {"architectures": [["LlamaForCausalLM"]]}, r"\[\['LlamaForCausalLM'\]\] is not supported"),
        ("llama", {"eos_token_id": None}, r"have no eos_token_id; .* or give it with --eos-token-id"),
        ("llama", {"eos_token_id": 293}, "eos_token_id 293 is no id below 293"),
        ("llama", {"eos_token_id": [1, "2"]}, "eos_token_id '2' is no id"),
        ("llama", {"eos_token_id": [[1]]}, r"eos_token_id \[1\] is no id"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, family, change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read(tmp_path, hf_config(family, **change))
    assert str(tmp_path) in str(error.value) or "llama3 rope" in str(error.value)


def test_settings_that_change_nothing_are_accepted(tmp_path):
    neutral = {"attention_bias": False, "sliding_window": 4096, "use_sliding_window": False, "pretraining_tp": 2}
    neutral |= {"layer_types": ["full_attention"], "quantization_config": None, "num_experts": 0, "auto_map": {}}
    assert read(tmp_path, hf_config("qwen3", **neutral)) == read(tmp_path, hf_config("qwen3"))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not readable JSON"), ("3", "JSON object"), ('{"a":1,"a":2}', "'a' twice")]
)
def test_a_malformed_config_is_named(tmp_path, text, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, text)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_hf_config(tmp_path)


def test_end_of_text_ids_come_from_the_generation_config_first(tmp_path):
    assert read(tmp_path, hf_config("llama", eos_token_id=[9, 4]))[1] == (9, 4)
    assert read(tmp_path, hf_config("llama"), {"eos_token_id": [5, 6, 5]})[1] == (5, 6)
    assert read(tmp_path, hf_config("llama"), {"eos_token_id": 0})[1] == (0,)
    assert read(tmp_path, hf_config("llama"), {"do_sample": True})[1] == (7,)


def test_what_is_left_out_is_what_transformers_assumes(tmp_path):
    import transformers

    minimal = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 1, "eos_token_id": 1}
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"):
        heads = 32 if name != "Llama" else 4
        config = minimal | {"num_attention_heads": heads, "hidden_size": 12 * heads, "num_hidden_layers": 9}
        config |= {"sliding_window": None} if name == "Mistral" else {}
        theirs = getattr(transformers, f"{name}Config")(**config)
        ours, _ = read(tmp_path, config | {"architectures": [name + "ForCausalLM"]})
        assert [i not in ours.no_rope_layers for i in range(9)] == getattr(theirs, "no_rope_layers", [1] * 9)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
        assert ours.context_length == theirs.max_position_embeddings
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.is_tied == theirs.tie_word_embeddings


def test_a_window_that_no_text_reaches_is_none(tmp_path):
    plain = read(tmp_path, hf_config("qwen2"))
    assert read(tmp_path, hf_config("qwen2", use_sliding_window=True, sliding_window=640)) == plain
    assert read(tmp_path, hf_config("qwen2", use_sliding_window=True, sliding_window=None)) == plain
    named = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 640}
    assert read(tmp_path, hf_config("qwen2", **named)) == plain
    left_out = hf_config("mistral")
    del left_out["sliding_window"]  # transformers takes 4096 then
    assert read(tmp_path, left_out) == read(tmp_path, hf_config("mistral"))
    with pytest.raises(CheckpointError, match="sliding_window = 4096 is not supported"):
        read(tmp_path, left_out | {"max_position_embeddings": 32768})


def test_layers_whose_rows_are_not_turned(tmp_path):
    assert read(tmp_path, hf_config("smollm3"))[0].no_rope_layers == (3,)
    assert read(tmp_path, hf_config("smollm3", no_rope_layer_interval=2))[0].no_rope_layers == (1, 3)
    said = {"no_rope_layers": [0, 1, 1, 1, 0, 1], "no_rope_layer_interval": 2}
    assert read(tmp_path, hf_config("smollm3", **said))[0].no_rope_layers == (0, 4)


def test_a_mistral_without_a_window_is_a_llama(tmp_path):
    assert read(tmp_path, hf_config("mistral")) == read(tmp_path, hf_config("llama"))


def test_the_context_is_that_of_the_scaling(tmp_path):
    """Qwen2.5's page tells to add `YARN`, and to leave `max_position_embeddings`; dynamic scaling begins behind it."""

    def context(**change):
        return read(tmp_path, hf_config("llama", max_position_embeddings=64) | change)[0].context_length

    assert context() == 64
    assert context(rope_scaling=YARN) == 256
    assert context(rope_scaling=YARN, max_position_embeddings=1024) == 1024
    assert context(rope_scaling={"type": "yarn", "factor": 4.0}) == 64  # 64 may be the longer one already
    assert context(rope_scaling={"type": "yarn", "factor": 4.0}, original_max_position_embeddings=32) == 128
    assert context(rope_scaling={"type": "linear", "factor": 4.0}) == 64
    assert context(rope_scaling={"type": "dynamic", "factor": 4.0}) == 64


def test_what_changes_nothing_is_none(tmp_path):
    plain = read(tmp_path, hf_config("llama"))
    for scaling in (
        {"type": "linear", "factor": 1.0},
        {"type": "dynamic", "factor": 8.0},
        {"rope_type": "default", "type": "default", "factor": 1.0},
        {"rope_type": "default", "factor": None},
    ):
        assert read(tmp_path, hf_config("llama", rope_scaling=scaling)) == plain
    for key, value in {"finetuned": True, "extrapolation_factor": 1, "attn_factor": 1.0}.items():
        with_it = read(tmp_path, hf_config("llama", rope_scaling=YARN | {key: value}))
        assert with_it == read(tmp_path, hf_config("llama", rope_scaling=YARN)) != plain


def test_both_ways_to_write_rope_are_read(tmp_path):
    old = hf_config("llama", rope_theta=500000.0, rope_scaling=LLAMA3)
    new = hf_config("llama", rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    del new["rope_theta"]
    assert read(tmp_path, old) == read(tmp_path, new)
    assert len(read(tmp_path, old)[0].rope_divisors) == 4
    plain = hf_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    assert read(tmp_path, plain) == read(tmp_path, hf_config("llama"))


def test_a_length_beyond_all_floats_is_named(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = hf_config("llama", rope_scaling=scaling | {"original_max_position_embeddings": 10**400})
    with pytest.raises(
        CheckpointError, match="original_max_position_embeddings' must be a whole number within 64 bits"
    ):
        open_hf(write_hf(tmp_path / "hf", config, {}))
