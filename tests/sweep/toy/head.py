"""A Ray cluster of one node and one CPU: prints its address, lives until its standard input closes."""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
