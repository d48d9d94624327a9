"""The ops against peers and this machine's limits: `atu bench`, which the wheel holds."""

from atu.bench.cli import bench

if __name__ == "__main__":
    bench()
