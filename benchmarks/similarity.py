"""What MS-SSIM through a separable window buys over MONAI's, whose window is a convolution.

Both compare the same 8 pairs at 4 mm by turns, on one core; the ratio is the median over the turns
of MONAI's time over ours. Run: make bench
"""

import platform
import statistics
import time

import torch
from monai.metrics.regression import compute_ms_ssim

from brain_ldm.evaluation.similarity import WINDOW, WINDOW_SIGMA, ms_ssim, scale_weights

TURNS = 5
SHAPE = (8, 1, 40, 56, 40)


@torch.inference_mode()
def main() -> None:
    """Print the ratio with its range, and how far the two values are apart."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a = torch.rand(SHAPE)
    b = (a + 0.1 * torch.randn(SHAPE)).clamp(0, 1)
    window = {"spatial_dims": 3, "kernel_size": WINDOW, "kernel_sigma": WINDOW_SIGMA}
    weights = scale_weights(SHAPE[2:])
    ratios, apart = [], 0.0
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        theirs = compute_ms_ssim(a, b, weights=weights, **window)[:, 0]
        middle = time.perf_counter()
        ours = ms_ssim(a, b)
        ratios.append((middle - start) / (time.perf_counter() - middle))
        apart = max(apart, float((ours - theirs).abs().max()))
    ratios = ratios[1:]  # the first turn warms up
    print(
        f"{platform.machine()}, torch {torch.__version__}, 1 thread, {TURNS} turns: MS-SSIM of 8 "
        f"pairs at 4 mm takes MONAI {statistics.median(ratios):.1f} times as long as us "
        f"({min(ratios):.1f} to {max(ratios):.1f}); values differ by {apart:.0e} at most"
    )


if __name__ == "__main__":
    main()
