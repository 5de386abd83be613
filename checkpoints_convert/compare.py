"""Compares our logits with those of transformers on torch: `python -m checkpoints_convert.compare MODEL`.

Both have the same weights.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.load import load_checkpoint
from checkpoints_convert.mapping.ends import add_flag
from checkpoints_convert.mapping.names import hf_rows
from checkpoints_convert.mapping.transforms import LAYOUTS
from jax_probe_mtp.errors import Parser, exit_status, one_line
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params, by_head, dequantize_params, weights_of
from jax_probe_mtp.model.transformer import full_logits

MAX_DELTA = 1e-3  # rounding of two float32 models; 1.4e-4 was seen
NUM_TOKENS = 512  # short prompts hide errors of rope
_TRANSFORMERS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}  # its classes' names
TEXT = """The tide was out when they reached the harbour, and the boats lay on their sides in the mud. "We can wait," said
the older one, "or we can walk." Nobody answered. def tide(hour: int) -> float: return 2.1 * math.sin(hour / 12.4)
In 1897 the pier was 312 metres long; by 1953 only 47 of its 60 piles were left. Ça va, naïve façade — 海は静かだった。
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The distance between two sets of logits.

    Attributes:
      num_tokens: positions compared.
      max_delta: largest difference of two logits.
      num_argmax_differs: positions at which another token comes first.
      scale: standard deviation of the logits, to judge the rest by.
    """

    num_tokens: int
    max_delta: float
    num_argmax_differs: int
    scale: float


def difference(ours_TV: np.ndarray, theirs_TV: np.ndarray) -> Difference:
    """Compares two arrays of logits, float32 [T, V]."""
    return Difference(
        num_tokens=len(ours_TV),
        max_delta=float(np.abs(ours_TV - theirs_TV).max()),
        num_argmax_differs=int((ours_TV.argmax(-1) != theirs_TV.argmax(-1)).sum()),
        scale=float(theirs_TV.std()),
    )


def torch_model(cfg: ModelConfig, params: Params, dtype: str = "float32") -> Any:
    """Makes the transformers model with our parameters, in "float32" or "bfloat16" on the CPU."""
    import torch
    import transformers

    if weights_of(params):  # a tied head then has numbers of its own
        cfg, params = dataclasses.replace(cfg, is_tied=False), dequantize_params(params)
    kind = _TRANSFORMERS[cfg.family]
    config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    is_turned = [int(i not in cfg.no_rope_layers) for i in range(cfg.num_layers)]
    config = config_class(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        max_position_embeddings=cfg.context_length,
        rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.is_tied,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        attn_implementation="eager",
        pad_token_id=None,  # one beyond the vocabulary is an error there
        **({"no_rope_layers": is_turned} if cfg.family == "smollm3" else {}),
    )
    model = model_class(config).float().eval()
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for row in hf_rows(cfg):
            for i in range(cfg.num_layers) if "{}" in row.source else [None]:
                leaf = params[row.target] if i is None else params["layers"][i][row.target]
                leaf = np.asarray(leaf, np.float32).reshape(by_head(cfg).get(row.target, leaf.shape))
                values = LAYOUTS[row.layout].export(leaf)
                tensors.pop(row.source.format(i)).copy_(torch.from_numpy(values))
        if cfg.rope_divisors:
            model.model.rotary_emb.inv_freq /= torch.tensor(cfg.rope_divisors)
        model.model.rotary_emb.attention_scaling = cfg.rope_scale
    if tensors:
        raise CheckpointError(f"transformers' {model_class.__name__} has parameters we do not: {', '.join(tensors)}.")
    rope = model.model.rotary_emb
    frequencies = {name: buffer.clone() for name, buffer in rope.named_buffers()}
    model = model.to(getattr(torch, dtype))
    for name, buffer in frequencies.items():  # float32 in any dtype, as `from_pretrained` leaves them
        rope.register_buffer(name, buffer, persistent=False)
    return model


def greedy(model: Any, prompt_ids: Sequence[int], *, max_new_tokens: int, eos_token_ids: Sequence[int]) -> list[int]:
    """Generates as transformers' own greedy `generate` does: no sampling, beams or penalties, whatever a checkpoint asks for.

    Args:
      model: from `torch_model`, moved and cast as it should run.
      prompt_ids: the prompt.
      max_new_tokens: tokens at most.
      eos_token_ids: ids that end the text; the one that does is the last new token.
    """
    import torch
    import transformers

    # Not an argument of `generate`, which fills that in from the model's own.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_token_ids),
        pad_token_id=eos_token_ids[0],
    )
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids))
    return [int(token) for token in whole[0, len(prompt_ids) :]]


def compare(model: str, eos_token_ids: Sequence[int] | None = None) -> Difference:
    """Compares a checkpoint's logits on a text of about 500 tokens; `eos_token_ids` as `load_checkpoint` takes them."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{one_line(error)}; pip install '.[torch]' from a checkout installs it.") from error

    checkpoint = load_checkpoint(model, dtype="float32", eos_token_ids=eos_token_ids)
    ids = checkpoint.tokenizer(TEXT * 8)["input_ids"][:NUM_TOKENS]
    ours = jax.jit(full_logits, static_argnums=1)(checkpoint.params, checkpoint.config, jnp.array([ids]))
    with torch.no_grad():
        theirs = torch_model(checkpoint.config, checkpoint.params)(torch.tensor([ids])).logits
    return difference(np.asarray(ours[0]), theirs[0].numpy())


def main() -> int:
    """Prints the comparison; returns 1 where a best token differs, or a logit by more than `MAX_DELTA`."""
    parser = Parser(description="Compares our logits with those of transformers on torch.")
    parser.add_argument("model", help="converted folder, Hugging Face folder, GGUF file or hub id")
    add_flag(parser)
    args = parser.parse_args()
    found = compare(args.model, args.eos_token_id)
    print(found)
    return 1 if found.num_argmax_differs or not found.max_delta <= MAX_DELTA else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
