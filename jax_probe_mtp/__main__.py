"""`python -m jax_probe_mtp`."""

import sys

from jax_probe_mtp.cli import main

sys.exit(main())
