"""Is this cluster fit for a run? The checks behind `doctor`."""
