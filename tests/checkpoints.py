"""Tiny checkpoints with a tokenizer, in memory and as a Hugging Face folder."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jax_probe_mtp import Checkpoint

BOS, EOS, UNKNOWN, USER, ASSISTANT = 0, 26, 58, 59, 60
SPECIAL = {BOS: "<s>", EOS: "</s>", UNKNOWN: "<unk>", USER: "<user>", ASSISTANT: "<bot>"}
WORDS = {8: "été", 13: "海", 20: ".", 28: "n't"}
TEMPLATE = "<s> <user> {{ messages[0]['content'] }} {% if add_generation_prompt %}<bot>{% endif %}"


def word(token_id: int) -> str:
    """The one spelling of a token: ids are words, so that texts can be written by hand."""
    return SPECIAL.get(token_id) or WORDS.get(token_id) or f"w{token_id}"


def words(*token_ids: int) -> str:
    return " ".join(word(token_id) for token_id in token_ids)


def make_tokenizer(
    vocab_size: int, *, adds_bos: bool = False, template: str | None = TEMPLATE
) -> PreTrainedTokenizerFast:
    """Words split at spaces; `adds_bos` puts <s> in front of plain text, as Llama's tokenizer does."""
    backend = Tokenizer(models.WordLevel({word(i): i for i in range(vocab_size)}, unk_token=SPECIAL[UNKNOWN]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNKNOWN],
        additional_special_tokens=[SPECIAL[USER], SPECIAL[ASSISTANT]],
    )
    tokenizer.chat_template = template
    return tokenizer


def make_checkpoint(tiny, **tokenizer_options) -> Checkpoint:
    return Checkpoint(
        params=tiny.params,
        config=tiny.cfg,
        tokenizer=make_tokenizer(tiny.cfg.vocab_size, **tokenizer_options),
        eos_token_ids=(EOS,),
        name="tiny",
    )


def write_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """The checkpoint as a Hugging Face folder; llama only."""
    cfg = checkpoint.config
    assert cfg.family == "llama"
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "tie_word_embeddings": cfg.is_tied,
        "eos_token_id": list(checkpoint.eos_token_ids),
    }
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint.tokenizer.save_pretrained(str(folder))
    save_file(_tensors(checkpoint), folder / "model.safetensors")
    return folder


def _tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    params, D = jax.tree.map(np.asarray, checkpoint.params), checkpoint.config.width
    tensors = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["final_norm"],
        "lm_head.weight": params["head"],
    }
    for i, layer in enumerate(params["layers"]):
        K, h = checkpoint.config.num_kv_heads, checkpoint.config.head_dim
        qkv = layer["qkv"].reshape(D, K, -1, h)  # [D, K, G + 2, h]
        weights = {
            "input_layernorm": layer["attn_norm"],
            "self_attn.q_proj": qkv[:, :, :-2].reshape(D, -1).T,
            "self_attn.k_proj": qkv[:, :, -2].reshape(D, -1).T,
            "self_attn.v_proj": qkv[:, :, -1].reshape(D, -1).T,
            "self_attn.o_proj": layer["out"].T,
            "post_attention_layernorm": layer["mlp_norm"],
            "mlp.gate_proj": layer["gate"].T,
            "mlp.up_proj": layer["up"].T,
            "mlp.down_proj": layer["down"].T,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": value for name, value in weights.items()}
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}
