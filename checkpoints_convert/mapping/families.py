"""Says what a family's checkpoints tell by their name alone: one row per architecture that is read (docs/adding_a_model.md).

What the model then computes is in the switches of `ModelConfig`; no code below asks for a family by its name.
"""

import dataclasses

from checkpoints_convert.errors import CheckpointError

MAX_LAYERS = 1024  # the largest models of our families have 126


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    Attributes:
      architecture: its name in config.json.
      model_type: its other name there.
      family: `ModelConfig.family`, what it computes.
      gguf: the architecture that its GGUF files name.
      has_rope_pairs: True where its GGUF files keep the two numbers next to each other that rope turns together.
      has_qkv_bias: as in `ModelConfig`.
      has_qk_norm: as in `ModelConfig`.
      no_rope_interval: of each so many layers the rows of the last are not turned; 0: of all they are.
      has_window: True where `sliding_window` alone says that rows read no further back; elsewhere `use_sliding_window` must.
      context_length, num_kv_heads, head_dim, rope_theta, is_tied, sliding_window: what transformers assumes where config.json
        leaves it out; of num_kv_heads None: as many as query heads; of head_dim None: D / H.
    """

    architecture: str
    model_type: str
    family: str
    gguf: str
    has_rope_pairs: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    no_rope_interval: int = 0
    has_window: bool = False
    context_length: int = 32768
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    is_tied: bool = False
    sliding_window: int | None = None


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    family="llama",
    gguf="llama",
    has_rope_pairs=True,
    context_length=2048,
)
# Without its window it is a Llama, and its GGUF files say that they are.
MISTRAL = dataclasses.replace(
    LLAMA,
    architecture="MistralForCausalLM",
    model_type="mistral",
    has_window=True,
    context_length=131072,
    num_kv_heads=8,
    sliding_window=4096,
)
QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    family="qwen2",
    gguf="qwen2",
    has_qkv_bias=True,
    num_kv_heads=32,
    sliding_window=4096,
)
QWEN3 = dataclasses.replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    family="qwen3",
    gguf="qwen3",
    has_qkv_bias=False,
    has_qk_norm=True,
    head_dim=128,
)
SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    family="smollm3",
    gguf="smollm3",
    has_rope_pairs=True,
    no_rope_interval=4,
    num_kv_heads=4,
    rope_theta=2_000_000.0,
    is_tied=True,
)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3)
BY_ARCHITECTURE = {each.architecture: each for each in FAMILIES}
BY_MODEL_TYPE = {each.model_type: each for each in FAMILIES}
BY_GGUF = {each.gguf: each for each in FAMILIES if each.gguf == each.model_type}

# Why others are refused, by what their names hold, without the signs between letters; docs/models.md says more.
_EXPERTS = ("moe", "mixtral", "deepseekv", "deepseek2", "gptoss", "llama4", "dbrx", "grok", "arctic")
_RECURRENT = (
    "mamba",
    "bamba",
    "jamba",
    "zamba",
    "rwkv",
    "falconh1",
    "nemotronh",
    "lfm2",
    "hybrid",
    "qwen3next",
    "qwen35",
)
_REASONS = (
    (_EXPERTS, "a mixture of experts, of which the rows of one call touch most, so that drafts would not be free"),
    (_RECURRENT, "its recurrent state has taken in every row of a call, and a refused draft cannot be taken out of it"),
)


def why_not(name: str) -> str:
    """Gives the reason why an architecture is refused, for a message; empty where none is known."""
    letters = "".join(sign for sign in name.lower() if sign.isalnum())
    found = [reason for parts, reason in _REASONS if any(part in letters for part in parts)]
    return f" ({found[0]})" if found else ""


def no_rope_layers(interval: int, num_layers: int) -> tuple[int, ...]:
    """Gives the layers whose rows are not turned: the last of each `interval`, none for an interval of 0.

    Raises:
      ValueError: for more layers than a model can have, before so many numbers are made.
    """
    if num_layers > MAX_LAYERS:
        raise ValueError(f"{num_layers} layers are above {MAX_LAYERS}.")
    return tuple(range(interval - 1, num_layers, interval)) if interval else ()


def check_window(window: int | None, context_length: int, *, key: str, where: str, way_out: str) -> None:
    """Refuses a window that a text would reach: a row reads no further back than `window` positions, itself counted.

    Raises:
      CheckpointError: if it is shorter than the context.
    """
    if window is not None and window < context_length:
        raise CheckpointError(
            f"{where}: {key} = {window} is not supported, since texts of up to {context_length} tokens reach it; {way_out}."
        )
