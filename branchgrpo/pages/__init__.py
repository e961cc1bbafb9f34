"""Pages about runs: report.html of one, and one that compares several."""
