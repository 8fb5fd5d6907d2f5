"""`python -m vdm` is the console script `vdm`."""

import sys

from vdm.run.start import main

sys.exit(main())
