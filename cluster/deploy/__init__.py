"""Files to start a cluster and to watch it; docs/cluster.md tells how to use them."""
