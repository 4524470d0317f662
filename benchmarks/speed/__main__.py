"""All benchmarks of speed and memory, one after the other, and their page in results/speed.

python -m benchmarks.speed [--large]
"""

import subprocess
import sys

from benchmarks.speed.page import write_page

PARTS = ("reading", "scoring", "training", "retrieval")


def main():
    """Each part in a process of its own, so that none finds memory or threads as another left them."""
    arguments = sys.argv[1:]
    for part in PARTS:
        more = [a for a in arguments if part != "training"]  # which is of one size
        subprocess.run([sys.executable, "-m", f"benchmarks.speed.{part}", *more], check=True)
    write_page(" ".join(["python -m benchmarks.speed", *arguments]))


if __name__ == "__main__":
    main()
