"""Pictures of trees: where things stand, a page, and a PNG."""
