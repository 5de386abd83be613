"""Cases for kernels, and programs as they are lowered for a GPU, which need not be here."""

import jax
import jax.numpy as jnp
import numpy as np

_H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
_MESH = jax.sharding.AbstractMesh(
    (1,),
    ("x",),
    axis_types=(jax.sharding.AxisType.Auto,),  # explicit axes would make gathers say how their results lie
    abstract_device=_H200,
)


def lowered_for_cuda(function, *args):
    """Gives the text of a function, jitted or to be, lowered for one H200."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with jax.sharding.use_abstract_mesh(_MESH):
        return jitted.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def int8_case(M, D, I, seed):
    """Gives rows, a weight's values and scales, and the float64 product."""
    rng = np.random.default_rng(seed)
    x_MD = jnp.asarray(rng.normal(size=(M, D)), jnp.bfloat16)
    value_ID = jnp.asarray(rng.integers(-127, 128, size=(I, D)), jnp.int8)
    scale_I = jnp.asarray(rng.uniform(0.5, 2, size=I) / 500, jnp.float32)
    exact_MI = np.asarray(x_MD, np.float64) @ (np.asarray(value_ID, np.float64) * np.asarray(scale_I)[:, None]).T
    return x_MD, value_ID, scale_I, exact_MI
