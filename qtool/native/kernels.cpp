// Elementwise quantization for training on the CPU: one read, one write, sums in the same pass.
//
// What `qtool.quantizers.uniform` and `qtool.nn.ops.norm_quant` say in torch operators, with the
// same floats for every element: no contraction to fused multiply-adds (-ffp-contract=off),
// true division, rounding half to even. Sums are taken over fixed chunks of elements and added
// in order, so that they do not depend on the number of threads.
//
// Compiled with OpenMP but not linked to it: the symbols are those of torch's own runtime, whose
// threads are shared. Plain C interface, called through ctypes.

#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

template <int W> struct Lanes {
  typedef float F __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
  typedef double D __attribute__((vector_size(W * 8)));
};
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

constexpr int64_t kChunk = 16384;  // elements whose sums are added before others join them
constexpr int64_t kFewChannels = 64;
constexpr int kBlock = 16;         // float additions before a channel's sum becomes double

template <int W> using F = typename Lanes<W>::F;
template <int W> using I = typename Lanes<W>::I;
template <int W> using D = typename Lanes<W>::D;

template <int W> F<W> load(const float *from) {
  F<W> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <int W> void store(float *to, F<W> value) { std::memcpy(to, &value, sizeof value); }
// Doubles of a vector's lanes, in two vectors of the machine's own size.
template <int W> struct Wide {
  static constexpr int kHalf = W > 1 ? W / 2 : 1;
  D<kHalf> low{}, high{};
  Wide() = default;
  explicit Wide(F<W> value) {
#if defined(__AVX512DQ__)
    if constexpr (W == 16) {  // compilers go through memory otherwise
      low = (D<kHalf>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)value));
      high = (D<kHalf>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)value, 1));
      return;
    }
#endif
    F<kHalf> parts[2] = {};
    std::memcpy(parts, &value, sizeof value);
    low = __builtin_convertvector(parts[0], D<kHalf>);
    high = __builtin_convertvector(parts[1], D<kHalf>);
  }
  Wide operator*(const Wide &other) const {
    Wide result;
    result.low = low * other.low, result.high = high * other.high;
    return result;
  }
  void operator+=(const Wide &other) { low += other.low, high += other.high; }
  double total() const {
    double sum = 0;
    for (int lane = 0; lane < kHalf; ++lane) sum += low[lane] + high[lane];
    return sum;
  }
};
template <int W> bool any(I<W> mask) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
  if constexpr (W == 8) return _mm256_movemask_ps((__m256)mask) != 0;
#endif
  int32_t found = 0;
  for (int lane = 0; lane < W; ++lane) found |= mask[lane];
  return found != 0;
}
template <int W> F<W> keep(I<W> mask, F<W> value) { return (F<W>)((I<W>)value & mask); }

// Grid of one step: codes -qn..qp; values are clipped to [0, hi] first where relu is set.
struct Grid {
  float step, high, low;  // step = high + low, and codes times high are exact
  float qn, qp, hi;
  bool relu;
  Grid(float s, int below, int above, float ceiling, bool rectified)
      : step(s), qn(-float(below)), qp(float(above)), hi(ceiling), relu(rectified) {
    uint32_t bits;
    std::memcpy(&bits, &s, 4);
    bits &= 0xfffff000u;
    std::memcpy(&high, &bits, 4);
    low = s - high;
  }
};

// Round half to even; |v| < 2^22. The sign of zero is kept, as torch keeps it.
template <int W> F<W> round_even(F<W> v) {
  const I<W> sign = (I<W>)v & int32_t(0x80000000);
  const F<W> big = (F<W>)((I<W>)(F<W>{} + 12582912.0f));
  const F<W> magnitude = (F<W>)((I<W>)v & 0x7fffffff);
  return (F<W>)((I<W>)((magnitude + big) - big) | sign);
}

template <int W> F<W> clip(F<W> v, float lowest, float highest) {
  // Comparisons with NaN are false: NaN stays.
  const F<W> low = F<W>{} + lowest, high = F<W>{} + highest;
  v = v < low ? low : v;
  return v > high ? high : v;
}

template <int W> F<W> rectify(F<W> x, const Grid &grid) {
  if (!grid.relu) return x;
  const F<W> zero = F<W>{}, hi = F<W>{} + grid.hi;
  x = x > zero ? x : (x == x ? zero : x);
  return x > hi ? hi : x;
}

template <int W> F<W> quantized(F<W> x, const Grid &grid) {
  const F<W> v = rectify<W>(x, grid) / grid.step;
  return round_even<W>(clip<W>(v, grid.qn, grid.qp)) * grid.step;
}

// What the gradients of step and offset are made of: g times what rounding added (in units of
// x), g times the code of clipped values, g of clipped values. Codes are large and their sums
// cancel: their products are exact, in double. Each rule pays only for what it needs.
enum Rule { kNone = 0, kClip = 1, kLsq = 2, kOffset = 3 };  // kOffset: kLsq, with an offset

constexpr int kSums = 3;
template <int W> struct Sums {
  Wide<W> rounding, codes, outside;
  void add_to(double *out) const {
    out[0] += rounding.total(), out[1] += codes.total(), out[2] += outside.total();
  }
};

// The sums of each width of vectors that a row of channels is cut into.
struct WidthSums {
  Sums<kLanes> full;
  Sums<kLanes == 4 ? 2 : 4> four;  // never used where kLanes is 4
  Sums<1> one;
  template <int W> Sums<W> &of() {
    if constexpr (W == kLanes) return full;
    else if constexpr (W == 4) return four;
    else return one;
  }
  void add_to(double *out) const { full.add_to(out), four.add_to(out), one.add_to(out); }
};

// Returns dL/dx of one vector; adds what its elements give to the gradients of step and offset.
template <int W, int kRule>
F<W> masked(F<W> g, F<W> x, const Grid &grid, Sums<W> &sums) {
  const F<W> z = rectify<W>(x, grid);
  const F<W> v = z / grid.step;
  const I<W> below = v < F<W>{} + grid.qn, above = v > F<W>{} + grid.qp;
  const I<W> outside = below | above;
  F<W> got = keep<W>(~outside, g);
  if (kRule != kNone) {
    const F<W> code = clip<W>(v, grid.qn, grid.qp);
    if (any<W>(outside)) {  // rare, and dear
      const Wide<W> clipped_grad(keep<W>(outside, g));
      sums.codes += clipped_grad * Wide<W>(code);
      if (kRule == kOffset) sums.outside += clipped_grad;
    }
    if (kRule != kClip) {
      const F<W> nearest = round_even<W>(code);
      const F<W> rest = (nearest * grid.high - z) + nearest * grid.low;
      sums.rounding += Wide<W>(got * rest);
    }
  }
  if (!grid.relu) return got;
  return keep<W>((x > F<W>{}) & (x < F<W>{} + grid.hi), got);
}

template <int W> void quantize_run(const float *x, float *y, int64_t n, const Grid &grid) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(y + i, quantized<W>(load<W>(x + i), grid));
  for (; i < n; ++i) store<1>(y + i, quantized<1>(load<1>(x + i), grid));
}

template <int kRule>
void backward_run(const float *g, const float *x, float *dx, int64_t n, const Grid &grid,
                  double *out) {
  constexpr int W = kLanes;
  Sums<W> sums;
  Sums<1> rest;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    store<W>(dx + i, masked<W, kRule>(load<W>(g + i), load<W>(x + i), grid, sums));
  }
  for (; i < n; ++i) {
    store<1>(dx + i, masked<1, kRule>(load<1>(g + i), load<1>(x + i), grid, rest));
  }
  sums.add_to(out);
  rest.add_to(out);
}

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// Pixels a chunk: whole ones, about kChunk elements.
int64_t pixel_chunk(int64_t channels) {
  const int64_t pixels = kChunk / channels;
  return pixels < kBlock ? kBlock : pixels;
}

// Channels in blocks of decreasing width: BLOCK<W>(..., c, ...) for each.
#define FOR_CHANNEL_BLOCKS(channels, call)                          \
  do {                                                              \
    int64_t c = 0;                                                  \
    for (; c + kLanes <= (channels); c += kLanes) {                 \
      constexpr int W = kLanes;                                     \
      call;                                                         \
    }                                                               \
    for (; c + 4 <= (channels); c += 4) {                           \
      constexpr int W = 4;                                          \
      call;                                                         \
    }                                                               \
    for (; c < (channels); ++c) {                                   \
      constexpr int W = 1;                                          \
      call;                                                         \
    }                                                               \
  } while (0)

struct Norm {
  const float *factor, *shift, *mean;
};

// Channels [c, c + W) of one pixel.
template <int W>
void norm_pixel(const float *x, float *y, int64_t c, const Norm &norm, const Grid &grid) {
  const F<W> z = load<W>(x + c) * load<W>(norm.factor + c) + load<W>(norm.shift + c);
  store<W>(y + c, quantized<W>(z, grid));
}

// Channels [c, c + W) of one pixel; adds to the channels' sums of g and of g * (x - mean).
template <int W, int kRule>
void norm_backward_pixel(const float *g, const float *x, float *dx, int64_t channels,
                         int64_t c, const Norm &norm, const Grid &grid, Sums<W> &sums,
                         float *channel) {
  const F<W> value = load<W>(x + c);
  const F<W> z = value * load<W>(norm.factor + c) + load<W>(norm.shift + c);
  const F<W> got = masked<W, kRule>(load<W>(g + c), z, grid, sums);
  store<W>(dx + c, got);
  store<W>(channel + c, load<W>(channel + c) + got);
  float *product = channel + channels + c;
  store<W>(product, load<W>(product) + got * (value - load<W>(norm.mean + c)));
}

// Channels [c, c + W) of up to kBlock pixels; adds to the chunk's sums.
template <int W, int kRule>
void norm_backward_block(const float *g, const float *x, float *dx, int64_t pixels,
                         int64_t channels, int64_t c, const Norm &norm, const Grid &grid,
                         Sums<W> &total, double *channel) {
  const F<W> factor = load<W>(norm.factor + c), shift = load<W>(norm.shift + c);
  const F<W> mean = load<W>(norm.mean + c);
  const Grid own = grid;
  Sums<W> sums = total;
  F<W> grad{}, product{};
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t at = p * channels + c;
    const F<W> value = load<W>(x + at);
    const F<W> got = masked<W, kRule>(load<W>(g + at), value * factor + shift, own, sums);
    store<W>(dx + at, got);
    grad += got;
    product += got * (value - mean);
  }
  total = sums;
  for (int lane = 0; lane < W; ++lane) {
    channel[c + lane] += grad[lane];
    channel[channels + c + lane] += product[lane];
  }
}

// Few channels: sums stay in registers. Many: memory is read in its order, sums are in the cache.
template <int kRule>
void norm_backward_chunk(const float *g, const float *x, float *dx, int64_t pixels,
                         int64_t channels, const Norm &norm, const Grid &grid, double *out) {
  WidthSums sums;
  std::vector<float> channel(2 * channels);
  for (int64_t p = 0; p < pixels; p += kBlock) {
    const int64_t count = pixels - p < kBlock ? pixels - p : kBlock;
    if (channels <= kFewChannels) {
      const int64_t at = p * channels;
      FOR_CHANNEL_BLOCKS(channels, (norm_backward_block<W, kRule>(
                                       g + at, x + at, dx + at, count, channels, c, norm, grid,
                                       sums.of<W>(), out + kSums)));
      continue;
    }
    for (int64_t pixel = p; pixel < p + count; ++pixel) {
      const int64_t at = pixel * channels;
      FOR_CHANNEL_BLOCKS(channels, (norm_backward_pixel<W, kRule>(
                                       g + at, x + at, dx + at, channels, c, norm, grid,
                                       sums.of<W>(), channel.data())));
    }
    for (int64_t k = 0; k < 2 * channels; ++k) {
      out[kSums + k] += channel[k];
      channel[k] = 0;
    }
  }
  sums.add_to(out);
}

template <int W>
void input_gradient_pixel(float *dx, const float *x, int64_t c, const Norm &norm,
                          const float *grad_mean, const float *slope) {
  const F<W> centred = load<W>(x + c) - load<W>(norm.mean + c);
  const F<W> kept = load<W>(dx + c) - load<W>(grad_mean + c) - centred * load<W>(slope + c);
  store<W>(dx + c, kept * load<W>(norm.factor + c));
}

// Returns, of what Sums holds, the gradients of a step and of an offset.
void parameter_gradients(const double *sums, float step, double weight, float *of_step,
                         float *of_offset) {
  *of_step = float((sums[0] / step + sums[1]) * weight);
  *of_offset = float(sums[2] * weight);
}

}  // namespace

// CALL with the rule as a constant.
#define WITH_RULE(rule, call)                                       \
  do {                                                              \
    if ((rule) == kLsq) {                                           \
      constexpr int kRule = kLsq;                                   \
      call;                                                         \
    } else if ((rule) == kOffset) {                                 \
      constexpr int kRule = kOffset;                                \
      call;                                                         \
    } else if ((rule) == kClip) {                                   \
      constexpr int kRule = kClip;                                  \
      call;                                                         \
    } else {                                                        \
      constexpr int kRule = kNone;                                  \
      call;                                                         \
    }                                                               \
  } while (0)

extern "C" {

// Elements of the scratch that the backward functions need, in doubles.
int64_t qtool_quantize_scratch(int64_t rows, int64_t cols) {
  return rows * chunks_of(cols) * kSums;
}
int64_t qtool_norm_scratch(int64_t pixels, int64_t channels) {
  const int64_t chunk = pixel_chunk(channels);
  return (pixels + chunk - 1) / chunk * (kSums + 2 * channels);
}

// y (rows, cols): each row on the grid of its own step.
void qtool_quantize(const float *x, float *y, int64_t rows, int64_t cols, const float *steps,
                    int qn, int qp, float hi, int relu, int threads) {
  const int64_t chunks = chunks_of(cols);
#pragma omp parallel for num_threads(threads) if (rows * chunks > 1)
  for (int64_t job = 0; job < rows * chunks; ++job) {
    const int64_t row = job / chunks, start = job % chunks * kChunk;
    const int64_t count = cols - start < kChunk ? cols - start : kChunk;
    const Grid grid(steps[row], qn, qp, hi, relu);
    quantize_run<kLanes>(x + row * cols + start, y + row * cols + start, count, grid);
  }
}

// dx like x; grads (2, rows): of step and offset, times weight.
void qtool_quantize_backward(const float *g, const float *x, float *dx, int64_t rows,
                             int64_t cols, const float *steps, int qn, int qp, float hi,
                             int relu, int rule, double weight, float *grads, double *scratch,
                             int threads) {
  const int64_t chunks = chunks_of(cols);
#pragma omp parallel for num_threads(threads) if (rows * chunks > 1)
  for (int64_t job = 0; job < rows * chunks; ++job) {
    const int64_t row = job / chunks, start = job % chunks * kChunk, at = row * cols + start;
    const int64_t count = cols - start < kChunk ? cols - start : kChunk;
    const Grid grid(steps[row], qn, qp, hi, relu);
    double *own = scratch + job * kSums;
    own[0] = own[1] = own[2] = 0;
    WITH_RULE(rule, backward_run<kRule>(g + at, x + at, dx + at, count, grid, own));
  }
  for (int64_t row = 0; row < rows; ++row) {
    double *sums = scratch + row * chunks * kSums;
    for (int64_t k = kSums; k < chunks * kSums; ++k) sums[k % kSums] += sums[k];
    parameter_gradients(sums, steps[row], weight, grads + row, grads + rows + row);
  }
}

// codes (n): x / step + qn, of an x on the grid; and back, to the same floats.
void qtool_pack(const float *x, uint8_t *codes, int64_t n, const float *step, int qn,
                int threads) {
  const float s = *step, zero = float(qn);
#pragma omp parallel for num_threads(threads) if (n > kChunk)
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = n - start < kChunk ? n : start + kChunk;
    // Codes are whole numbers up to the last digits of a product and a quotient.
    for (int64_t i = start; i < end; ++i) codes[i] = uint8_t(int(x[i] / s + (zero + 0.5f)));
  }
}
void qtool_unpack(const uint8_t *codes, float *x, int64_t n, const float *step, int qn,
                  int threads) {
  const float s = *step;
#pragma omp parallel for num_threads(threads) if (n > kChunk)
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = n - start < kChunk ? n : start + kChunk;
    for (int64_t i = start; i < end; ++i) x[i] = float(int(codes[i]) - qn) * s;
  }
}

// y (pixels, channels): x * factor + shift on the grid.
void qtool_norm_quantize(const float *x, float *y, int64_t pixels, int64_t channels,
                         const float *factor, const float *shift, const float *step, int qn,
                         int qp, float hi, int relu, int threads) {
  const int64_t chunk = pixel_chunk(channels), chunks = (pixels + chunk - 1) / chunk;
  const Norm norm{factor, shift, nullptr};
  const Grid grid(*step, qn, qp, hi, relu);
#pragma omp parallel for num_threads(threads) if (chunks > 1)
  for (int64_t job = 0; job < chunks; ++job) {
    const int64_t at = job * chunk * channels;
    const int64_t count = pixels - job * chunk < chunk ? pixels - job * chunk : chunk;
    for (int64_t p = 0; p < count; ++p) {
      const float *from = x + at + p * channels;
      float *to = y + at + p * channels;
      FOR_CHANNEL_BLOCKS(channels, norm_pixel<W>(from, to, c, norm, grid));
    }
  }
}

// dx: dL/d(x * factor + shift). grads (2): of step and offset, times weight. channel (2, channels): sum of dx, and of
// dx * (x - mean).
void qtool_norm_quantize_backward(const float *g, const float *x, float *dx, int64_t pixels,
                                  int64_t channels, const float *factor, const float *shift,
                                  const float *mean, const float *step, int qn, int qp,
                                  float hi, int relu, int rule, double weight,
                                  float *grads, double *channel, double *scratch, int threads) {
  const int64_t chunk = pixel_chunk(channels), chunks = (pixels + chunk - 1) / chunk;
  const int64_t size = kSums + 2 * channels;
  const Norm norm{factor, shift, mean};
  const Grid grid(*step, qn, qp, hi, relu);
#pragma omp parallel for num_threads(threads) if (chunks > 1)
  for (int64_t job = 0; job < chunks; ++job) {
    const int64_t at = job * chunk * channels;
    const int64_t count = pixels - job * chunk < chunk ? pixels - job * chunk : chunk;
    double *own = scratch + job * size;
    std::memset(own, 0, size * sizeof(double));
    WITH_RULE(rule, norm_backward_chunk<kRule>(g + at, x + at, dx + at, count, channels, norm,
                                               grid, own));
  }
  double sums[kSums] = {};
  std::memset(channel, 0, 2 * channels * sizeof(double));
  for (int64_t job = 0; job < chunks; ++job) {
    const double *own = scratch + job * size;
    for (int k = 0; k < kSums; ++k) sums[k] += own[k];
    for (int64_t k = 0; k < 2 * channels; ++k) channel[k] += own[kSums + k];
  }
  parameter_gradients(sums, *step, weight, grads, grads + 1);
}

// dx in place: (dx - grad_mean - (x - mean) * slope) * factor, per channel.
void qtool_norm_input_gradient(float *dx, const float *x, int64_t pixels, int64_t channels,
                               const float *factor, const float *mean, const float *grad_mean,
                               const float *slope, int threads) {
  const int64_t chunk = pixel_chunk(channels), chunks = (pixels + chunk - 1) / chunk;
  const Norm norm{factor, nullptr, mean};
#pragma omp parallel for num_threads(threads) if (chunks > 1)
  for (int64_t job = 0; job < chunks; ++job) {
    const int64_t at = job * chunk * channels;
    const int64_t count = pixels - job * chunk < chunk ? pixels - job * chunk : chunk;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t pixel = at + p * channels;
      FOR_CHANNEL_BLOCKS(channels, input_gradient_pixel<W>(dx + pixel, x + pixel, c, norm,
                                                           grad_mean, slope));
    }
  }
}

}  // extern "C"
