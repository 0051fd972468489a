"""The kernels themselves, in Triton's language: what runs on a GPU, or in its interpreter.

Activations are bytes in NHWC order, held *shifted*: int8 ``code - 128``, which is what
``tl.dot`` takes. The zero point of a result shifts with it, so that shifting costs nothing,
and a maximum stays one.

Arguments mean the same in every kernel. Those in capital letters are constants of a compiled
kernel, a layer's shape and strides; its numbers are arguments, so that layers of one shape
share code.

- x, y: int8 codes, element (n, h, w, c) of x at the dot product with X_STRIDES
- w, factor, bias: int8 weights; float32 of `numerics.multiplier`, int32 of sums over shifted
  codes, both an output each
- pixels: batch * height * width of the result; `border`: the shifted code that pads
- low, high, shift: the window, as `rounding.to_codes` takes it
- IN, OUT: height and width of x and y; CHANNELS, OUTPUTS: of x and y, of one group
- KERNEL, STRIDES, DILATIONS, CORNER: along height and width; CORNER is the padding in front,
  PADDED whether there is any
- PIXELS, COLUMNS: results of a program, of which COLUMNS are in one pixel
"""
