"""`python -m jax_probe_mtp`."""

import sys

from jax_probe_mtp.commands.main import main

sys.exit(main())
