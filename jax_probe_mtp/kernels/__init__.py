"""GPU kernels: arrays in, arrays out; they know no model."""

import warnings

# JAX 0.12 says at each kernel that it will drop this backend in a release that it does not name; README.md tells it once.
warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning)
