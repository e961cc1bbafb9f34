"""`python run.py` is the command `branchgrpo`, in a checkout."""

import sys

from branchgrpo.app.main import main

if __name__ == "__main__":
    sys.exit(main())
