"""The device's rate of matrix products, in operations a second: what a share in run.py is of.

    python matmul_rate.py --threads 2 --dtypes float32

prints JSON, `{"float32": 9.1e10}`: of the three products that a linear layer's forward and backward
take, which differ where a type is emulated, the fastest; each the median of several.
"""

import argparse
import json
import statistics

import torch
from measuring import now

PRODUCTS = 5
SIZES = {"cuda": 8192, "cpu": 2048}
SMALL = 512
SLOW = 1.0
"""Seconds of a product that are too many: then the small size has to tell the rate."""


def rate(dtype: torch.dtype) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[device]
    seconds = product_seconds(dtype, SMALL, device)
    if max(seconds) * (size / SMALL) ** 3 > SLOW:
        size = SMALL
    else:
        seconds = product_seconds(dtype, size, device)
    return 2 * size**3 / min(seconds)


def product_seconds(dtype: torch.dtype, size: int, device: str) -> list[float]:
    """Median seconds of each of the three products, of square matrices."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in "ab")
    medians = []
    for a, b in ((left, right.t()), (left, right), (left.t(), right)):
        a @ b  # the first one sets the library up
        seconds = []
        for _ in range(PRODUCTS):
            start = now()
            a @ b
            seconds.append(now() - start)
        medians.append(statistics.median(seconds))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps({name: rate(getattr(torch, name)) for name in options.dtypes}))


if __name__ == "__main__":
    main()
