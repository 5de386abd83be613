"""The static part of a decoding run."""

import dataclasses
import numbers

ATTENTIONS = ("auto", "plain", "fused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """What shapes a decoding program besides the model and the draft source; another value is another compiled program.

    Attributes:
      capacity: S, cache slots of a row; a row needs prompt + new tokens - 1 of them.
      prefill_chunk: prompt tokens that enter the model at a time.
      attention: which code runs the layers of decode calls, in the exact mode of prompts too: "auto" takes GPU kernels on
        CUDA, where there are some for the model's heads, and plain layers elsewhere; "plain" or "fused" says which. Off CUDA
        the kernels are interpreted: slow, for tests.
      is_exact: True for the exact mode: a row's sums have an order that its position decides, so that a token's logits do not
        depend on the call that gave it; on CUDA GPUs nor on the program (docs/exactness.md).
      has_logprobs: True keeps the log-probability of every emitted token.
      num_top: C, of the most likely tokens at each place whose log-probabilities are kept as well; only with `has_logprobs`.
      has_prompt_logprobs: True keeps all of that for the tokens of prompts too; only with `has_logprobs`.
    """

    capacity: int
    prefill_chunk: int = 256  # so 18% of the rows are padding on Spec-Bench's questions; 27% with 512
    attention: str = "auto"
    is_exact: bool = False
    has_logprobs: bool = False
    num_top: int = 0
    has_prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}.")
        if self.num_top and not self.has_logprobs:
            raise ValueError(f"num_top {self.num_top} needs has_logprobs=True.")
        if self.has_prompt_logprobs and not self.has_logprobs:
            raise ValueError("has_prompt_logprobs=True needs has_logprobs=True.")
        for name in ("capacity", "prefill_chunk"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
