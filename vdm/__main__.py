"""`python -m vdm` is the console script `vdm`."""

import sys

from vdm.run.cli import main

sys.exit(main())
