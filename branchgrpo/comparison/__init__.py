"""Several methods on one service: runs, statistics, tables and pictures."""
