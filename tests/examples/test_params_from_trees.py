"""Trees of other projects: the converted parameters give the logits of the original layout, computed by hand in its axes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import params_from_trees
import pytest
import reference
from params_from_trees import as_dicts, from_llm_examples, from_tunix, random_tree

from jax_probe_mtp.model.transformer import full_logits

KINDS = ["tunix", "llama3", "qwen3"]
TOKENS = np.random.default_rng(1).integers(0, 61, 40)
THETA, EPS = 300.0, 1e-6  # a small base: positions turn far within a short text


def convert(kind, tree):
    from_tree = from_tunix if kind == "tunix" else from_llm_examples
    return from_tree(tree, norm_eps=EPS, rope_theta=THETA, context_length=128)


def forward(kind, tree):
    """Runs a text through the original tree in float64: einsums over its own axes, letters B left out."""

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS)

    def turn(x_TNh):
        T, _, h = x_TNh.shape
        angle_T1c = (np.arange(T)[:, None] / THETA ** (2 * np.arange(h // 2) / h))[:, None]
        first, second = x_TNh[..., : h // 2], x_TNh[..., h // 2 :]
        cos, sin = np.cos(angle_T1c), np.sin(angle_T1c)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attend(x_TD, q, k, v, o, q_norm=None, k_norm=None):
        q_TNh, k_TKh, v_TKh = (np.einsum("td,dnh->tnh", x_TD, weight) for weight in (q, k, v))
        if q_norm is not None:
            q_TNh, k_TKh = norm(q_TNh, q_norm), norm(k_TKh, k_norm)
        q_TNh, k_TKh = turn(q_TNh), turn(k_TKh)
        times = q_TNh.shape[1] // k_TKh.shape[1]
        k_TNh, v_TNh = (np.repeat(x_TKh, times, axis=1) for x_TKh in (k_TKh, v_TKh))
        score_NTS = np.einsum("tnh,snh->nts", q_TNh, k_TNh) * q_TNh.shape[-1] ** -0.5
        score_NTS = np.where(np.tril(np.ones(score_NTS.shape[1:], bool)), score_NTS, -np.inf)
        weight_NTS = np.exp(score_NTS - score_NTS.max(axis=-1, keepdims=True))
        weight_NTS /= weight_NTS.sum(axis=-1, keepdims=True)
        return np.einsum("tnh,nhd->td", np.einsum("nts,snh->tnh", weight_NTS, v_TNh), o)

    def gated(x_TD, gate, up, down):
        y_TF = np.einsum("td,df->tf", x_TD, gate)
        return np.einsum("tf,fd->td", y_TF / (1 + np.exp(-y_TF)) * np.einsum("td,df->tf", x_TD, up), down)

    if kind == "tunix":
        x = tree["embedder"]["input_embedding"][TOKENS]
        for number in range(len(tree["layers"])):
            layer = tree["layers"][number]
            attn = [layer["attn"][f"{name}_proj"]["w"] for name in "qkvo"]
            mlp = [layer["mlp"][f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")]
            x = x + attend(norm(x, layer["input_layernorm"]["w"]), *attn)
            x = x + gated(norm(x, layer["post_attention_layernorm"]["w"]), *mlp)
        return np.einsum("td,dv->tv", norm(x, tree["final_norm"]["w"]), tree["lm_head"]["w"])
    x = tree["embedding"][TOKENS]
    for layer in tree["layers"]:
        attn, mlp = (layer["attn"], layer["ffw"]) if kind == "qwen3" else (layer, layer)
        norms = [attn["q_gamma"], attn["k_gamma"]] if kind == "qwen3" else []
        x = x + attend(norm(x, layer["attn_pre_gamma"]), *[attn[name] for name in "qkvo"], *norms)
        x = x + gated(norm(x, layer["attn_post_gamma"]), *[mlp[f"w_{name}"] for name in ("gate", "up", "down")])
    return np.einsum("td,dv->tv", norm(x, tree["gamma_final"]), tree["lm_head"])


def as_float64(tree):
    if isinstance(tree, dict):
        return {name: as_float64(each) for name, each in tree.items()}
    return [as_float64(each) for each in tree] if isinstance(tree, list) else np.asarray(tree, np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_original_layout(kind):
    tree = random_tree(kind, np.random.default_rng(2))
    params, cfg = convert(kind, tree)
    expected = forward(kind, as_float64(tree))
    got = full_logits(params, cfg, jnp.asarray(TOKENS[None]))[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected, axis=1).min() > 1, "logits so alike would hide a difference"


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_read_off_the_shapes(kind):
    _, cfg = convert(kind, random_tree(kind, np.random.default_rng(2)))
    sizes = cfg.vocab_size, cfg.width, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.mlp_width
    assert sizes == (61, 20, 3, 6, 2, 8, 40)
    assert (cfg.family, cfg.has_qk_norm, cfg.is_tied) == (
        "qwen3" if kind == "qwen3" else "llama",
        kind == "qwen3",
        False,
    )


def test_tied_trees_and_numbers_of_layers_as_texts():
    tree = random_tree("tunix", np.random.default_rng(2))
    layers = {str(number): layer for number, layer in tree["layers"].items()}
    twelve = {str(number): layers[str(number % 3)] for number in range(12)}  # "10" sorts before "2"
    tied = {name: part for name, part in tree.items() if name != "lm_head"} | {"layers": twelve}
    params, cfg = convert("tunix", tied)
    assert cfg.is_tied
    ups = [layer["up"] for layer in params["layers"]]
    assert all(up is layers[str(n % 3)]["mlp"]["up_proj"]["kernel"] for n, up in enumerate(ups))
    tree = random_tree("qwen3", np.random.default_rng(2)) | {"lm_head": None}
    assert convert("qwen3", tree)[1].is_tied


def test_dataclasses_become_dicts_and_quantized_weights_are_refused():
    @dataclasses.dataclass
    class Quantized:
        quant: np.ndarray
        scale: np.ndarray

    @dataclasses.dataclass
    class Layer:
        q: Quantized
        norm: np.ndarray

    array = np.ones(2)
    found = as_dicts([Layer(q=Quantized(array, array), norm=array)])
    assert found == [{"q": {"quant": array, "scale": array}, "norm": array}]
    assert found[0]["norm"] is array
    tree = random_tree("llama3", np.random.default_rng(2))
    tree["layers"][1]["w_gate"] = {"quant": array, "scale": array}
    with pytest.raises(ValueError, match=r"quantized; load them with quant_layer, quant_attn and quant_mlp False\.\Z"):
        convert("llama3", tree)


def test_a_weight_of_another_shape_is_named():
    tree = random_tree("llama3", np.random.default_rng(2))
    tree["layers"][2]["w_down"] = tree["layers"][2]["w_down"].T
    with pytest.raises(ValueError, match=r"\Aparams\['layers'\]\[2\]\['down'\] must be float32 \(40, 20\), got"):
        convert("llama3", tree)


def test_the_example_decodes_with_them(capsys):
    params_from_trees.main()
    lines = capsys.readouterr().out.splitlines()
    for kind, line in zip(KINDS, lines, strict=True):
        tree = random_tree(kind, np.random.default_rng(0))
        params, cfg = params_from_trees.converted(kind, tree)
        plain, gap = reference.plain_decode(reference.Model(params, cfg), [5, 9, 2], max_new_tokens=24, eos=(0,))
        assert gap > 1e-3, "choose another seed: rounding could decide this one"
        assert line.startswith(f"Checkpoint('{kind}', ")
        assert f": {plain} in " in line
