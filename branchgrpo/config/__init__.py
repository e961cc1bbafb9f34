"""What a run is made of: the schema, and how YAML, presets and overrides become a checked
config."""
