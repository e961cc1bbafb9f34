"""Growing trees: one segment in a worker, and a whole batch from the driver."""
