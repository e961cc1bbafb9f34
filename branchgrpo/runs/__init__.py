"""Run folders: who owns one, what a run is, and what may change when it goes on."""
