"""Draws one call of a real decode as text: the root, the drafts, who owned masks, and what was accepted.

    python scripts/draw_call.py --model MODEL --prompt TEXT --draft merged:16 --call 17

Call 0 is the prefill's, which drafts nothing. The text so far comes first, then the tree (`jax_probe_mtp.decoding.trace.draw`).
"""

import argparse
import itertools
import sys

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.decoding.trace import draw, trace
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, parse_draft
from jax_probe_mtp.errors import Parser, count, exit_status, positive
from jax_probe_mtp.generation.api import as_prompt


def main() -> int:
    """Decodes up to the call, prints the text before it and its tree."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--draft", default=DEFAULT_DRAFT, metavar="SPEC")
    parser.add_argument("--call", type=count, default=1, metavar="N", help="0 is the prefill's (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=128, metavar="N")
    args = parser.parse_args()

    source = parse_draft(args.draft)
    checkpoint = load_checkpoint(args.model, dtype="float32")
    cfg, eos = checkpoint.config, checkpoint.eos_token_ids
    prompt = as_prompt(checkpoint, 0, args.prompt, use_chat_template=True, continue_final_message=False)
    batch = make_batch(cfg, source, [prompt], Settings(max_new_tokens=args.max_new_tokens), eos_token_ids=eos)
    traced = next(itertools.islice(trace(checkpoint.params, batch, cfg, source), args.call, None), None)
    if traced is None:
        raise ValueError(f"the answer ended before call {args.call}; give a smaller --call.")
    begin, end = len(prompt.token_ids), int(traced.before.length_B[0])
    print("so far:", repr(checkpoint.tokenizer.decode(traced.before.token_BT[0, begin:end].tolist())), end="\n\n")
    print(draw(traced.call, source, lambda token: str(checkpoint.tokenizer.decode([token]))))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
