"""Model families: one file and one line each."""

TABLE = {"flux": "branchgrpo.models.flux:FluxModel"}
