"""`python -m branchgrpo` is the command `branchgrpo`."""

import sys

from branchgrpo.app.main import main

if __name__ == "__main__":
    sys.exit(main())
