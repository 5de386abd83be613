"""Parameters out of the trees of other JAX projects: tunix's Llama, and the Llama 3 and Qwen3 of jax-llm-examples.

`from_tunix` and `from_llm_examples` take nested dicts of arrays, read the sizes of the model off their shapes, and give what
`decode` and `generate` take. What no shape shows is the caller's to say: `norm_eps`, `rope_theta`, `context_length` and, of
Llama 3.1 and later, `rope_divisors`.

Both projects turn pairs (i, i + h/2) by rope and count query heads kv head by kv head, as is done here. Names and axes differ:

| | google/tunix, `tunix/models/llama3` | jax-ml/jax-llm-examples, `llama3` and `qwen3` |
|---|---|---|
| layout as of commit | c7d8950 (August 2026) | 8b4b246 (July 2026) |
| the dicts are | `nnx.to_pure_dict(nnx.state(model, nnx.Param))` | `as_dicts(weights)`, not quantized |
| embedding [V, D] | embedder.input_embedding | embedding |
| of layers.N: q [D, H, h] | attn.q_proj.w | q; of Qwen3 attn.q |
| k, v [D, K, h] | attn.k_proj.w, attn.v_proj.w | k, v; of Qwen3 attn.k, attn.v |
| out [H, h, D] | attn.o_proj.w | o; of Qwen3 attn.o |
| norms of q and k [h] | | of Qwen3 attn.q_gamma, attn.k_gamma |
| gate, up [D, F] | mlp.gate_proj.kernel, mlp.up_proj.kernel | w_gate, w_up; of Qwen3 ffw.w_gate, ffw.w_up |
| down [F, D] | mlp.down_proj.kernel | w_down; of Qwen3 ffw.w_down |
| norm before attention [D] | input_layernorm.w | attn_pre_gamma |
| norm before the mlp [D] | post_attention_layernorm.w | attn_post_gamma |
| last norm [D] | final_norm.w | gamma_final |
| head [D, V], where not tied | lm_head.w | lm_head |

Two things to know. tunix's Llama turns by a theta of 1,000,000 whatever its configuration says, and scales nothing: weights
that came from Meta want theirs (500,000), weights that were trained there want 1,000,000. The Llama 3 of jax-llm-examples has
1e-6 for `norm_eps` whatever the checkpoint says, and rounds to bfloat16 after every norm, so its logits are near these only.

    python params_from_trees.py      # makes a small random tree of each kind and decodes with it
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import Checkpoint, ModelConfig, Probe, Settings, check_params, generate

Tree = Mapping[Any, Any]


def from_tunix(tree: Tree, **not_in_shapes: Any) -> tuple[dict, ModelConfig]:
    """Takes a Llama's tree of tunix; the numbers of its layers may be ints or texts."""

    def layer_of(layer: Tree) -> dict:
        attn, mlp = layer["attn"], layer["mlp"]
        return {
            "attn_norm": layer["input_layernorm"]["w"],
            "qkv": qkv(*(attn[name]["w"] for name in ("q_proj", "k_proj", "v_proj"))),
            "out": merge_heads(attn["o_proj"]["w"]),
            "mlp_norm": layer["post_attention_layernorm"]["w"],
            **{name: mlp[f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")},
        }

    layers = [tree["layers"][number] for number in sorted(tree["layers"], key=int)]
    params = {
        "embed": tree["embedder"]["input_embedding"],
        "layers": [layer_of(layer) for layer in layers],
        "final_norm": tree["final_norm"]["w"],
    }
    if "lm_head" in tree:  # else the model is tied
        params["head"] = tree["lm_head"]["w"].T
    attn = layers[0]["attn"]
    return checked(params, attn["q_proj"]["w"], attn["k_proj"]["w"], "llama", not_in_shapes)


def from_llm_examples(tree: Tree, **not_in_shapes: Any) -> tuple[dict, ModelConfig]:
    """Takes the weights of `llama3` or of a dense `qwen3` of jax-llm-examples, as `as_dicts` gives them."""

    def layer_of(layer: Tree) -> dict:
        attn, mlp = layer.get("attn", layer), layer.get("ffw", layer)  # of llama3 all are in one
        if any(isinstance(leaf, Mapping) for leaf in (*map(attn.get, "qkvo"), mlp["w_gate"])):
            raise ValueError("these weights are quantized; load them with quant_layer, quant_attn and quant_mlp False.")
        ours = {
            "attn_norm": layer["attn_pre_gamma"],
            "qkv": qkv(attn["q"], attn["k"], attn["v"]),
            "out": merge_heads(attn["o"]),
            "mlp_norm": layer["attn_post_gamma"],
            **{name: mlp[f"w_{name}"] for name in ("gate", "up", "down")},
        }
        if "q_gamma" in attn:
            ours |= {"q_norm": attn["q_gamma"], "k_norm": attn["k_gamma"]}
        return ours

    params = {
        "embed": tree["embedding"],
        "layers": [layer_of(layer) for layer in tree["layers"]],
        "final_norm": tree["gamma_final"],
    }
    if tree["lm_head"] is not None:
        params["head"] = tree["lm_head"].T
    first = tree["layers"][0]
    attn = first.get("attn", first)
    family = "qwen3" if "q_gamma" in attn else "llama"
    return checked(params, attn["q"], attn["k"], family, not_in_shapes)


def qkv(q_DHh: jax.Array, k_DKh: jax.Array, v_DKh: jax.Array) -> jax.Array:
    """Makes one matrix of three: for each kv head its queries, its key, its value."""
    D, K, h = k_DKh.shape
    q_DKGh = q_DHh.reshape(D, K, -1, h)
    return jnp.concatenate([q_DKGh, k_DKh[:, :, None], v_DKh[:, :, None]], axis=2).reshape(D, -1)


def merge_heads(out_HhD: jax.Array) -> jax.Array:
    return out_HhD.reshape(-1, out_HhD.shape[-1])


def checked(
    params: dict, q_DHh: jax.Array, k_DKh: jax.Array, family: str, not_in_shapes: dict
) -> tuple[dict, ModelConfig]:
    """Reads the sizes off the shapes, and checks that all arrays fit them."""
    cfg = ModelConfig(
        family=family,
        vocab_size=params["embed"].shape[0],
        width=params["embed"].shape[1],
        num_layers=len(params["layers"]),
        num_heads=q_DHh.shape[1],
        num_kv_heads=k_DKh.shape[1],
        head_dim=k_DKh.shape[2],
        mlp_width=params["layers"][0]["up"].shape[1],
        has_qk_norm="q_norm" in params["layers"][0],
        is_tied="head" not in params,
        **not_in_shapes,
    )
    check_params(params, cfg)  # says in one line which parameter has another shape
    return params, cfg


def as_dicts(tree: Any) -> Any:
    """Makes nested dicts of nested dataclasses, which the weights of jax-llm-examples are; copies no array."""
    if isinstance(tree, list | tuple):
        return [as_dicts(each) for each in tree]
    if not dataclasses.is_dataclass(tree):
        return tree
    return {field.name: as_dicts(getattr(tree, field.name)) for field in dataclasses.fields(tree)}


def random_tree(kind: str, draw: np.random.Generator) -> dict:
    """Makes a small tree with the names and shapes of "tunix", "llama3" or "qwen3", all of its sizes different."""
    V, D, H, K, h, F, L = 61, 20, 6, 2, 8, 40, 3

    def normal(*shape: int, fan_in: int) -> jax.Array:
        return jnp.asarray(draw.normal(size=shape) * fan_in**-0.5, jnp.float32)

    def near_one(size: int) -> jax.Array:
        return jnp.asarray(1 + 0.1 * draw.normal(size=size), jnp.float32)

    def matrices() -> tuple[dict, dict]:
        attn = {name: normal(D, heads, h, fan_in=D) for name, heads in zip("qkv", (H, K, K), strict=True)}
        mlp = {name: normal(D, F, fan_in=D) for name in ("gate", "up")} | {"down": normal(F, D, fan_in=F)}
        return attn | {"o": normal(H, h, D, fan_in=H * h)}, mlp

    embed, head = normal(V, D, fan_in=D), normal(D, V, fan_in=D) * 2
    if kind == "tunix":
        layers: Any = {}
        for number in range(L):
            attn, mlp = matrices()
            layers[number] = {
                "input_layernorm": {"w": near_one(D)},
                "attn": {f"{name}_proj": {"w": array} for name, array in attn.items()},
                "mlp": {f"{name}_proj": {"kernel": array} for name, array in mlp.items()},
                "post_attention_layernorm": {"w": near_one(D)},
            }
        return {
            "embedder": {"input_embedding": embed},
            "layers": layers,
            "final_norm": {"w": near_one(D)},
            "lm_head": {"w": head},
        }
    layers = []
    for _ in range(L):
        attn, mlp = matrices()
        mlp = {f"w_{name}": array for name, array in mlp.items()}
        norms = {"attn_pre_gamma": near_one(D), "attn_post_gamma": near_one(D)}
        if kind == "qwen3":
            layers.append({"ffw": mlp, "attn": attn | {"q_gamma": near_one(h), "k_gamma": near_one(h)}, **norms})
        else:
            layers.append(attn | mlp | norms)
    return {"layers": layers, "embedding": embed, "gamma_final": near_one(D), "lm_head": head}


def converted(kind: str, tree: Tree) -> tuple[dict, ModelConfig]:
    convert = from_tunix if kind == "tunix" else from_llm_examples
    return convert(tree, norm_eps=1e-6, rope_theta=500_000.0, context_length=256)


def main() -> None:
    for kind in ("tunix", "llama3", "qwen3"):
        params, cfg = converted(kind, random_tree(kind, np.random.default_rng(0)))
        checkpoint = Checkpoint(params=params, config=cfg, tokenizer=None, eos_token_ids=(0,), name=kind)
        [answer] = generate(checkpoint, [[5, 9, 2]], draft=Probe(widths=(14,)), settings=Settings(max_new_tokens=24))
        print(f"{checkpoint}: {answer.token_ids} in {answer.calls} calls")


if __name__ == "__main__":
    main()
