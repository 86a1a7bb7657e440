"""A Ray cluster of two nodes on this machine, the second of which is lost when a line is read.

    python two_ray_nodes.py

writes the cluster's address, then `lost`; after another line, or at the end of its input, it ends.
"""

import sys

from ray.cluster_utils import Cluster

ADDRESS = {"node_ip_address": "127.0.0.2"}  # Ray would replace 127.0.0.1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    head = {"num_cpus": 1, "include_dashboard": False, **ADDRESS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, **ADDRESS)
    cluster.wait_for_nodes()
    say(cluster.address)
    if sys.stdin.readline():
        cluster.remove_node(second, allow_graceful=False)
        say("lost")
        sys.stdin.readline()
    cluster.shutdown()
