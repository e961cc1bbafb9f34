"""Before any test imports Ray, or anything that takes long to compile."""

import os
import sys

import cluster

__all__ = ["cluster"]

# Some container images set it. Each actor of each run would then compile torch, diffusers and
# transformers once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
