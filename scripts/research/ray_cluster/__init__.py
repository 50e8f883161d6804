"""A Ray over several hosts, which are network namespaces of this machine. Needs root, and the program `ip`.

    network   the hosts, with an address each
    cluster   Ray's processes on them, as scripts/deployment/ray/node starts them, and what serves there
    deployer  the program in the head's namespace that deploys
    clients   clients that ask for digits without a pause, and count what they get

Used by scripts/research/ray_hosts.py, ray_spread.py and tests/e2e/test_ray_hosts.py.
"""
