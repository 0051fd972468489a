"""PACT: parameterized clipping activation (Choi et al. 2018, arXiv 1805.06085).

y = clip(x, 0, alpha)  (Eq. 1),  x_hat = round(y (2^b - 1) / alpha) alpha / (2^b - 1)  (Eq. 2)
dx_hat/dalpha = 0 below alpha, 1 above  (Eq. 3);  dx_hat/dx = 1 inside, 0 outside

The paper regularises alpha as it does weights, with a learning rate and decay of its own: the
parameter is called ``alpha``, so that an optimizer can put it in a group. The paper knows
unsigned inputs only; signed ones are clipped to [-alpha, alpha (1 - 2^(1-b))], where
dx_hat/dalpha is -1 below and 1 - 2^(1-b) above. PACT says nothing about weights (the paper
takes DoReFa's); qtool's default beside it is LSQ.
"""

from qtool.quantizers.activation import ActivationQuantizer

ACTIVATION = ActivationQuantizer("alpha", "clip")
