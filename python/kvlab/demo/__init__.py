"""The headline demo: a prefix that leaves memory for NVMe and comes back in a new process."""
