"""Stands for the timing of decode calls where a tree is chosen."""

from jax_probe_mtp.measuring.call_cost import Timing

CHEAP = {1: 10.0, 10: 10.5, 30: 11.0, 60: 13.0}  # 30 rows pay best: 1.503 * 10 / 11


class Timer:
    """Stands for `call_cost.time_step`: notes what was asked and answers from `costs`, by rows."""

    costs = CHEAP

    def __init__(self):
        self.asked = []

    def __call__(self, params, cfg, source, decode_cfg, **more):
        self.asked.append((source, decode_cfg, more))
        cost = self.costs[source.num_rows]
        if isinstance(cost, Exception):
            raise cost
        return Timing(ms=(cost / 2, cost, cost * 9), compile_seconds=0.0, temp_bytes=None)

    @property
    def rows(self):
        return [source.num_rows for source, _, _ in self.asked]
