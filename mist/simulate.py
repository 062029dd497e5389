"""One deployment under one workload: config in, Result out."""
