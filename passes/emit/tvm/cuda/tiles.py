"""Which tile of a product of matrices a block gets.

A large tile reads its inputs fewer times, a small one leaves less of itself outside of a small
layer: few pixels (a linear layer at batch 1) get few rows. The rule is arithmetic, not
measured: no GPU was at hand.
"""

from passes.emit.tvm.cuda.kernels.products import Dp4a, Mma, Products

# From few pixels to many: the first with enough rows for all, else the last.
_DP4A = (Dp4a(16, 64, 2, 4), Dp4a(64, 64, 4, 4))
_MMA = (Mma(16, 64, 16, 16), Mma(64, 64, 32, 32), Mma(128, 64, 32, 32))
# Blocks of 64 rows below which 128 would leave multiprocessors without work: a card of sm_80
# or sm_90 has 108 to 132.
_ENOUGH_BLOCKS = 2 * 132


def choose(mma: bool, pixels: int, outputs: int) -> Products:
    """Return how the tiles of a layer are multiplied.

    Args:
        mma: on tensor cores.
        pixels: of all images.
        outputs: channels.
    """
    known: tuple[Products, ...] = _MMA if mma else _DP4A
    for products in known:
        if pixels <= products.rows:
            return products
    wide = known[-1]
    across = -(-outputs // wide.columns)
    return wide if pixels // wide.rows * across >= _ENOUGH_BLOCKS else known[1]
