"""The embedded model, its tokenizers and its prompt lists."""

from __future__ import annotations
