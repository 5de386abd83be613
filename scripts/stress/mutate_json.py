"""Damages a JSON file by its values.

A value that Python cannot hold, or a key that is there twice, is marked in the tree and put into the text.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any

from mutate_bytes import OUTSIDE, SIZES, TEXTS, Mutation

# JSON as text: not all of it could be made of Python's values.
NUMBERS_JSON = [
    *["0", "-1", "1", "2", "3", "7", "-0.0", "0.5", "1e308", "1e400", "-1e400", "1e-320", "1e-50", "NaN", "Infinity"],
    *["-Infinity", "1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 4000, "1" + "0" * 5000, "1" * 100000],
    *[str(2**n + d) for n in (15, 16, 31, 32, 53, 63, 64) for d in (-1, 0, 1)],
]
OTHERS_JSON = [
    "null",
    "true",
    "false",
    '""',
    '"text"',
    "[]",
    "{}",
    "[[]]",
    '{"a": {}}',
    "[1]",
    '["x"]',
    '"5"',
    "[null]",
]
KEYS: dict[str, list[Any]] = {  # that a reader knows, each with values worth a try
    "fast_tokenizer_files": [[f"../{OUTSIDE}.tokenizer.4.0.json"], ["tokenizer.4.0.json"], "x", {"a": 1}],
    "tokenizer_file": [f"../{OUTSIDE}.json"],
    "vocab_file": [f"../{OUTSIDE}.json"],
    "merges_file": [f"../{OUTSIDE}.json"],
    "gguf_file": [f"../{OUTSIDE}.gguf"],
    "auto_map": [{"AutoTokenizer": [f"../{OUTSIDE}--x.X", None]}],
    "tokenizer_class": ["LlamaTokenizer", 5],
    "add_bos_token": [True, False, "x"],
    "add_eos_token": [True, False, 1],
    "post_processor": [
        None,
        {"type": "Sequence", "processors": []},
        {"type": "ByteLevel"},
        {"type": "TemplateProcessing"},
    ],
    "tokenizer_object": ["x", {}],
    "extra_special_tokens": [["<a>"], {"a": "b"}, [{"content": "x"}], 5],
    "additional_special_tokens": [["<a>"], 7],
    "chat_template": [{"a": "b"}, [{"name": "default", "template": "x"}], 5],
    "head_dim": [0, -8, 2, 7, 65536, 65538, 10**9, 10**30],
    "rope_parameters": [{"rope_type": "yarn"}, {"rope_theta": 0}, {"full\nattention": {}}, {"type": "default"}],
    "rope_scaling": [
        {"type": "linear", "factor": 2},
        {"type": "linear", "factor": 0.5},
        {"rope_type": "dynamic", "factor": 10**400},
        {"rope_type": "longrope", "short_factor": [1.0] * 4},
        {"rope_type": "yarn", "factor": 4.0, "mscale": -99, "mscale_all_dim": 1},
        {"rope_type": "yarn", "factor": 1e300, "beta_fast": 1e-300, "beta_slow": 1e-300},
        {"rope_type": "yarn", "factor": 2, "truncate": 1, "a\nb": 2},
        {"rope_type": "yarn", "factor": 2, "attn_factor": 0, "original_max_position_embeddings": 2**62},
        {"rope_type": ["yarn"], "type": {}},
    ],
    "no_rope_layers": [[0], [2], [1] * 20000, [True], [[0]], "1", [10**400], [0, 1]],
    "no_rope_layer_interval": [0, -1, 1, 2**62, "4", 1.5],
    "sliding_window": [0, -1, 1, 511, 512, 10**400, "a\nb"],
    "use_sliding_window": [True, False, 1],
    "layer_types": [["sliding_attention"], ["linear_attention"], [{}], [["a\nb"]], "full_attention"],
    "architectures": [[name] for name in ("MistralForCausalLM", "SmolLM3ForCausalLM", "Qwen3MoeForCausalLM", "a\nb")],
    "model_type": ["mistral", "smollm3", "qwen3_next", "a\nb"],
    "num_hidden_layers": [0, 2, 1024, 2**40],
    "rope_scale": [0, 1.5, 10**400, "1"],
    "original_max_position_embeddings": [10**400, 0, -1],
    "quantization_config": [{"quant_method": "a\nb"}, [], 0],
    "num_experts": [0, 8, "a\nb"],
    "is_sharded": [True],
    "rope_divisors": [[1.0] * 4, "abcd", [1] * 20000, [10**400] * 4],
    "__metadata__": [{"format": "pt"}, {"a": 1}, []],
}


def raw(text: str) -> str:
    return "\x01" + text + "\x01"


def dump(tree: Any) -> bytes:
    text = json.dumps(tree)
    text = re.sub(r'"\\u0001(.*?)\\u0001"', lambda match: json.loads(f'"{match[1]}"'), text)
    return text.replace("\\u0002", "").encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Gives every value in the tree as what holds it and its key or index."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys]
    return found


def _pick(draw: random.Random, tree: Any, *kinds: type) -> tuple[Any, Any]:
    """Chooses a value of one of the kinds, or any where there is none; those near the top as often as the many below."""
    places = _places(tree)
    of_kind = [(node, key) for node, key in places if type(node[key]) in kinds] or places
    near = [(node, key) for node, key in of_kind if node is tree] or of_kind
    return draw.choice(draw.choice([of_kind, near]))


def in_tree(change: Callable[[random.Random, Any], Any], most: int = 4) -> Mutation:
    """Gives the mutation that makes a change up to `most` times."""

    def mutation(draw: random.Random, data: bytes) -> bytes:
        tree = json.loads(data)
        for _ in range(min(most, draw.choice([1, 1, 1, 2, 4]))):
            if _places(tree):
                tree = change(draw, tree)
        return dump(tree)

    return mutation


def _change_number(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree, int, float)
    node[key] = raw(draw.choice(NUMBERS_JSON))
    return tree


def _change_type(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    value = raw(draw.choice(OTHERS_JSON + NUMBERS_JSON[:8]))
    if draw.random() < 0.03:
        return value
    node[key] = draw.choice([value, [node[key]], {"a": node[key]}])
    return tree


def _change_text(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree, str)
    text = draw.choice(TEXTS)
    if isinstance(node, dict) and draw.random() < 0.3:
        node[text] = node.pop(key)
    else:
        node[key] = text
    return tree


def _nest(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    depth = draw.choice([20, 100, 130, 400, draw.randint(850, 1000), 1001, 20000])
    before, after = draw.choice([("[", "]"), ('{"a":', "}")])
    node[key] = raw(before * depth + "0" + after * depth)
    return tree


def _change_keys(draw: random.Random, tree: Any) -> Any:
    """Leaves an entry out, names one twice, gives one another's value, or adds one that a reader knows."""
    node, key = _pick(draw, tree)
    other, other_key = _pick(draw, tree)
    copied = json.loads(json.dumps(other[other_key]))
    name = draw.choice(list(KEYS))
    what = draw.randrange(4)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[key + "\x02"] = draw.choice([node[key], copied])
    elif what == 2 or not isinstance(tree, dict):
        node[key] = copied
    else:
        tree[name] = draw.choice(KEYS[name])
    return tree


def _many_values(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    item, size = draw.choice(["{}", "[]", "0", '"ab"', '{"":0}', "1.5"]), draw.choice(SIZES)
    many = raw("[" + ",".join([item] * (size // (len(item) + 1))) + "]")
    text = raw('"' + "x" * size + '"')
    node[key] = draw.choice([many, many, text])
    return tree


JSON: dict[str, Mutation] = {
    "numbers": in_tree(_change_number),
    "types": in_tree(_change_type),
    "texts": in_tree(_change_text),
    "nesting": in_tree(_nest),
    "keys": in_tree(_change_keys),
}


def _lead_elsewhere(draw: random.Random, tree: Any) -> Any:
    """Gives another path to one or all of the tensors in a shard."""
    weight_map = tree["weight_map"]
    old, new = draw.choice(sorted(weight_map.values())), draw.choice(TEXTS)
    one = draw.choice([None, *weight_map])
    for name, shard in weight_map.items():
        if shard == old and one in (None, name):
            weight_map[name] = new
    return tree


INDEX: dict[str, Mutation] = {"paths": in_tree(_lead_elsewhere, most=1)}
JSON_MANY: dict[str, Mutation] = {"many values": lambda draw, data: dump(_many_values(draw, json.loads(data)))}
