"""Small random networks in the formats of the published ones, which rewards load
as they do those."""
