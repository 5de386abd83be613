"""Writes tiny Hugging Face folders, for tests."""

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

V, D, F, H, K, G, h, L = 293, 36, 52, 6, 2, 3, 8, 5  # all distinct, so that no transpose can hide
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
LINES = ["the quick brown fox jumps over the lazy dog", "def f(x): return x + 1", "héllo wörld"]


def hf_config(family, **changes):
    config = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": h,
        "max_position_embeddings": 640,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 5000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 7,
    }
    if family == "mistral":
        config["sliding_window"] = None
    return config | changes


def hf_tensors(config, seed=0):
    """Draws random weights under Hugging Face's names and in its shapes."""
    rng = np.random.default_rng(seed)
    family = config["model_type"]
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for i in range(L):
        layer = {
            "input_layernorm.weight": (D,),
            "self_attn.q_proj.weight": (H * h, D),
            "self_attn.k_proj.weight": (K * h, D),
            "self_attn.v_proj.weight": (K * h, D),
            "self_attn.o_proj.weight": (D, H * h),
            "post_attention_layernorm.weight": (D,),
            "mlp.gate_proj.weight": (F, D),
            "mlp.up_proj.weight": (F, D),
            "mlp.down_proj.weight": (D, F),
        }
        if family == "qwen2":
            layer |= {f"self_attn.{x}_proj.bias": (n * h,) for x, n in (("q", H), ("k", K), ("v", K))}
        if family == "qwen3":
            layer |= {"self_attn.q_norm.weight": (h,), "self_attn.k_norm.weight": (h,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def tiny_tokenizer():
    """Trains a byte-level BPE of at most V tokens, <eos> among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=V - 3,
        min_frequency=1,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def write_hf(folder, config, tensors, *, num_shards=0):
    """Writes a folder as save_pretrained writes it; `num_shards` 0 means one file without an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )
    if not num_shards:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = names[i::num_shards]
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def sharded(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config), num_shards=3)
    return folder, folder / "model.safetensors.index.json"


def quiet(text):
    del text
