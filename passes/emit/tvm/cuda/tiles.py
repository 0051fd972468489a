"""Which tile of a product of matrices a block gets.

The largest one with which there is still a block for every multiprocessor, else the smallest:
a large tile reads its inputs fewer times, but a card that waits for a few blocks is slower
than one that reads more. The rule is arithmetic, not measured: no GPU was at hand.
"""

from passes.emit.tvm.cuda.kernels.products import Dp4a, Mma, Products

# From large to small.
DP4A: tuple[Products, ...] = (Dp4a(64, 64, 4, 4), Dp4a(16, 64, 2, 4))
MMA: tuple[Products, ...] = (Mma(128, 64, 32, 32), Mma(64, 64, 32, 32), Mma(16, 64, 16, 16))
# Of an A100, the fewest among the large cards of sm_80 and sm_90.
_MULTIPROCESSORS = 108


def choose(mma: bool, pixels: int, outputs: int) -> Products:
    """Return how the tiles of a layer are multiplied.

    Args:
        mma: on tensor cores.
        pixels: of all images.
        outputs: channels.
    """
    *larger, smallest = MMA if mma else DP4A
    for products in larger:
        if -(-pixels // products.rows) * -(-outputs // products.columns) >= _MULTIPROCESSORS:
            return products
    return smallest
