"""`python -m checkpoints_convert` is the command `checkpoints-convert`."""

import sys

from checkpoints_convert.cli import main

sys.exit(main())
