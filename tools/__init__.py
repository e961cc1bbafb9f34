"""Programs for those who work on branchgrpo; not in the wheel."""
