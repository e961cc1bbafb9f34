"""What people read: metrics, sinks, the terminal, curves and contact sheets."""
