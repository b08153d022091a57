// What a layer does between its products, one launch each. Products themselves are cuBLAS's, through candle.
//
// T is float or bfloat16. Where the reference rounds to T, `rounded` does; sums are in float. One exception: the weights of
// `attend` are not rounded before they are applied, since they are known only at its end. Each kernel exists as NAME_f32
// and NAME_bf16, but for `cut` and those of attention.cuh; shapes and launch sizes are in src/fused/cuda.rs, which is the
// only caller.

#include <cuda_bf16.h>
#include <stdint.h>

#include "attention.cuh"

namespace {

using half_t = __nv_bfloat16;
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

__device__ float wide(float x) { return x; }
__device__ float wide(half_t x) { return __bfloat162float(x); }
template <typename T> __device__ T narrow(float x);
template <> __device__ float narrow<float>(float x) { return x; }
template <> __device__ half_t narrow<half_t>(float x) { return __float2bfloat16_rn(x); }
template <typename T> __device__ float rounded(float x) { return wide(narrow<T>(x)); }

__device__ float warp_sum(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}

__device__ float warp_max(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
  return x;
}

// The sum over a block, in every thread. The block's size is a multiple of a warp's.
__device__ float block_sum(float x) {
  __shared__ float of_warp[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  x = warp_sum(x);
  __syncthreads();  // who still reads an earlier sum
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : 0.0f);
}

__device__ float block_max(float x) {
  __shared__ float of_warp[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? of_warp[lane] : -INFINITY);
}

template <typename T> __device__ float inverse_rms(const T* row, int width, float eps) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += wide(row[i]) * wide(row[i]);
  return 1.0f / sqrtf(block_sum(sum) / width + eps);
}

// out = x / rms(x) × scale, plus `residual` where there is one. A block a row.
template <typename T>
__device__ void norm(const T* x, const float* scale, const T* residual, T* out, int width, float eps) {
  const size_t at = static_cast<size_t>(blockIdx.x) * width;
  const float inverse = inverse_rms(x + at, width, eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const T y = narrow<T>(wide(x[at + i]) * inverse * scale[i]);
    out[at + i] = residual ? narrow<T>(wide(residual[at + i]) + wide(y)) : y;
  }
}

// RMS norm of each head, then rotation of its first half against its second. A block a (row, head); x [rows, heads, width].
template <typename T>
__device__ void norm_rope(const T* x, const float* scale, const T* cos, const T* sin, T* out, int heads, int width, float eps) {
  extern __shared__ float head[];
  const size_t at = static_cast<size_t>(blockIdx.x) * width;
  const size_t angle = static_cast<size_t>(blockIdx.x / heads) * (width / 2);
  const float inverse = inverse_rms(x + at, width, eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) head[i] = rounded<T>(wide(x[at + i]) * inverse * scale[i]);
  __syncthreads();
  for (int i = threadIdx.x; i < width / 2; i += blockDim.x) {
    const float a = head[i], b = head[i + width / 2], c = wide(cos[angle + i]), s = wide(sin[angle + i]);
    // Each product is rounded before the sum, as separate operations on tensors are.
    out[at + i] = narrow<T>(__fsub_rn(rounded<T>(__fmul_rn(a, c)), rounded<T>(__fmul_rn(b, s))));
    out[at + width / 2 + i] = narrow<T>(__fadd_rn(rounded<T>(__fmul_rn(b, c)), rounded<T>(__fmul_rn(a, s))));
  }
}

// out[slots[row]] = x[row]. A block a row.
template <typename T> __device__ void scatter(const T* x, const uint32_t* slots, T* out, int width) {
  const size_t from = static_cast<size_t>(blockIdx.x) * width, to = static_cast<size_t>(slots[blockIdx.x]) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) out[to + i] = x[from + i];
}

__device__ float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.79788456080286535588f * x * (1.0f + 0.044715f * x * x)));
}

// out = gelu(gate) × up, element by element; gelu(gate) where there is no `up`.
template <typename T> __device__ void gelu_times(const T* gate, const T* up, T* out, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const T y = narrow<T>(gelu_tanh(wide(gate[i])));
  out[i] = up ? narrow<T>(wide(y) * wide(up[i])) : y;
}

// Every row of out = row: what a product with a bias is added to. A block a stretch of a row.
template <typename T> __device__ void spread(const T* row, T* out, int width) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < width) out[static_cast<size_t>(blockIdx.x) * width + i] = row[i];
}

// (x − mean) / sqrt(variance + eps) × weight + bias. A block a row.
template <typename T>
__device__ void layer_norm(const T* x, const float* weight, const float* bias, T* out, int width, float eps) {
  const size_t at = static_cast<size_t>(blockIdx.x) * width;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += wide(x[at + i]);
  const float mean = block_sum(sum) / width;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float centred = wide(x[at + i]) - mean;
    squares += centred * centred;
  }
  const float deviation = sqrtf(block_sum(squares) / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    out[at + i] = narrow<T>((wide(x[at + i]) - mean) / deviation * weight[i] + bias[i]);
}

// softmax(rounded(x × scale) + mask). A block a row; the mask has `mask_rows` rows that repeat. `held` has room for a row
// where `holds` says so: then scores and exponentials are worked out once.
template <typename T>
__device__ void softmax(const T* x, const float* mask, T* out, int keys, int mask_rows, float scale, int holds) {
  extern __shared__ float held[];
  const size_t at = static_cast<size_t>(blockIdx.x) * keys;
  if (mask) mask += static_cast<size_t>(blockIdx.x % mask_rows) * keys;
  const auto score = [&](int i) { return rounded<T>(wide(x[at + i]) * scale) + (mask ? mask[i] : 0.0f); };
  float most = -INFINITY;
  for (int i = threadIdx.x; i < keys; i += blockDim.x) {
    const float of_key = score(i);
    if (holds) held[i] = of_key;
    most = fmaxf(most, of_key);
  }
  most = block_max(most);
  // A thread reads only what it wrote itself.
  float sum = 0.0f;
  for (int i = threadIdx.x; i < keys; i += blockDim.x) {
    const float power = expf((holds ? held[i] : score(i)) - most);
    if (holds) held[i] = power;
    sum += power;
  }
  sum = block_sum(sum);
  for (int i = threadIdx.x; i < keys; i += blockDim.x)
    out[at + i] = narrow<T>((holds ? held[i] : expf(score(i) - most)) / sum);
}

// A decode step's attention, straight from the paged keys and values: query [steps, heads, width], storage
// [slots, kv heads, width]. A block a (head, step, share of the keys); a warp takes every eighth group of keys, and each of
// its lanes the elements lane + 32 i of the width. `steps` has four numbers a step: row of the query, first position seen,
// positions seen, where its blocks begin in `blocks`; a step's blocks begin with that of its first position.
constexpr int STEP_WARPS = 8, AT_ONCE = 4;

struct Reach {
  const uint32_t* steps;
  const uint32_t* blocks;
  int block_tokens;
};

template <typename T, int PER_LANE>
__device__ void attend(const T* query, const T* keys, const T* values, Reach reach, T* out, float* shares, int heads, int kv_heads,
                       int width, float scale) {
  extern __shared__ float mixed[];  // [warps, width]
  __shared__ float most_of[STEP_WARPS], sum_of[STEP_WARPS];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int head = blockIdx.x, step = blockIdx.y, share = blockIdx.z, all_shares = gridDim.z;
  const int kv_head = head / (heads / kv_heads);
  const uint32_t* of_step = reach.steps + 4 * step;
  const uint32_t row = of_step[0], first = of_step[1], seen = of_step[2], block_first = first / reach.block_tokens;
  const uint32_t* blocks = reach.blocks + of_step[3];
  const uint32_t a_share = (seen + all_shares - 1) / all_shares;
  const uint32_t from = share * a_share, to = min(seen, from + a_share);

  float q[PER_LANE], acc[PER_LANE];
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + WARP * i;
    q[i] = d < width ? wide(query[(static_cast<size_t>(row) * heads + head) * width + d]) : 0.0f;
    acc[i] = 0.0f;
  }
  float most = -INFINITY, sum = 0.0f;
  for (uint32_t begin = from + warp * AT_ONCE; begin < to; begin += STEP_WARPS * AT_ONCE) {
    float score[AT_ONCE];
    size_t place[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      const uint32_t position = first + min(begin + j, to - 1);
      const uint32_t block = blocks[position / reach.block_tokens - block_first];
      const size_t slot = static_cast<size_t>(block) * reach.block_tokens + position % reach.block_tokens;
      place[j] = (slot * kv_heads + kv_head) * width;
      float dot = 0.0f;
#pragma unroll
      for (int i = 0; i < PER_LANE; ++i) {
        const int d = lane + WARP * i;
        if (d < width) dot += q[i] * wide(keys[place[j] + d]);
      }
      score[j] = dot;
    }
    float peak = most;
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      score[j] = rounded<T>(rounded<T>(warp_sum(score[j])) * scale);
      if (begin + j >= to) score[j] = -INFINITY;
      peak = fmaxf(peak, score[j]);
    }
    const float shrink = expf(most - peak);
    sum *= shrink;
    for (int i = 0; i < PER_LANE; ++i) acc[i] *= shrink;
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      const float weight = expf(score[j] - peak);
      sum += weight;
#pragma unroll
      for (int i = 0; i < PER_LANE; ++i) {
        const int d = lane + WARP * i;
        if (d < width) acc[i] += weight * wide(values[place[j] + d]);
      }
    }
    most = peak;
  }
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + WARP * i;
    if (d < width) mixed[warp * width + d] = acc[i];
  }
  if (lane == 0) {
    most_of[warp] = most;
    sum_of[warp] = sum;
  }
  __syncthreads();
  float peak = -INFINITY, total = 0.0f;
  for (int w = 0; w < STEP_WARPS; ++w) peak = fmaxf(peak, most_of[w]);
  // A share without keys weighs nothing.
  const auto weight = [&](int w) { return most_of[w] == -INFINITY ? 0.0f : expf(most_of[w] - peak); };
  for (int w = 0; w < STEP_WARPS; ++w) total += sum_of[w] * weight(w);
  const size_t place = static_cast<size_t>(step) * heads + head;
  float* part = shares + (place * all_shares + share) * (width + 2);
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    float value = 0.0f;
    for (int w = 0; w < STEP_WARPS; ++w) value += mixed[w * width + d] * weight(w);
    if (all_shares == 1) out[place * width + d] = narrow<T>(value / total);
    else part[d] = value;
  }
  if (all_shares > 1 && threadIdx.x == 0) {
    part[width] = peak;
    part[width + 1] = total;
  }
}

// The shares of `attend` put together. A block a (step, head).
template <typename T> __device__ void gather(const float* shares, T* out, int all_shares, int width) {
  const float* parts = shares + static_cast<size_t>(blockIdx.x) * all_shares * (width + 2);
  const auto part = [&](int s) { return parts + static_cast<size_t>(s) * (width + 2); };
  float peak = -INFINITY, total = 0.0f;
  for (int s = 0; s < all_shares; ++s) peak = fmaxf(peak, part(s)[width]);
  const auto weight = [&](int s) { return part(s)[width] == -INFINITY ? 0.0f : expf(part(s)[width] - peak); };
  for (int s = 0; s < all_shares; ++s) total += part(s)[width + 1] * weight(s);
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    float value = 0.0f;
    for (int s = 0; s < all_shares; ++s) value += part(s)[d] * weight(s);
    out[static_cast<size_t>(blockIdx.x) * width + d] = narrow<T>(value / total);
  }
}

// Bits that are ordered as finite numbers are, and never 0; the two zeros are one.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Of each row of logits the likeliest token, the lowest of equal ones, and its log-probability under all of them, as
// `choose` in src/sampling.rs says it; `never` is not chosen. Two words a row: the token, or 2³² − 1 where no number is
// finite, and the bits of the log-probability. A block a row.
template <typename T> __device__ void likeliest(const T* logits, uint32_t* out, int width, uint32_t never) {
  __shared__ unsigned long long best_of[WARP];
  __shared__ double sum_of[WARP];
  const T* row = logits + static_cast<size_t>(blockIdx.x) * width;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  unsigned long long best = 0;
  float most = -INFINITY;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float x = wide(row[i]);
    if (!isfinite(x)) continue;
    most = fmaxf(most, x);
    const unsigned long long key = static_cast<unsigned long long>(ordered(x)) << 32 | ~static_cast<uint32_t>(i);
    if (static_cast<uint32_t>(i) != never && key > best) best = key;
  }
  most = block_max(most);
  double sum = 0.0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float x = wide(row[i]);
    if (isfinite(x)) sum += exp(static_cast<double>(x) - static_cast<double>(most));
  }
  for (int step = WARP / 2; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(ALL, best, step);
    best = other > best ? other : best;
    sum += __shfl_xor_sync(ALL, sum, step);
  }
  if (lane == 0) {
    best_of[warp] = best;
    sum_of[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) {
    best = best_of[w] > best ? best_of[w] : best;
    sum += sum_of[w];
  }
  const uint32_t token = best ? ~static_cast<uint32_t>(best) : 0xffffffffu;
  const double of_all = static_cast<double>(most) + log(sum);
  out[2 * blockIdx.x] = token;
  out[2 * blockIdx.x + 1] = best ? __float_as_uint(static_cast<float>(static_cast<double>(wide(row[token])) - of_all)) : 0u;
}

}  // namespace

// A picture [side, side, channels] cut into patches [(side / patch)², 3, patch, patch] in [−1, 1]; grey is repeated. Rounded
// as `scaled` in src/frame.rs rounds. A block a stretch of a patch.
extern "C" __global__ void cut(const uint8_t* pixels, float* out, int side, int channels, int patch) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x, width = 3 * patch * patch, across = side / patch;
  if (i >= width) return;
  const int channel = i / (patch * patch) % channels, y = i / patch % patch, x = i % patch;
  const int row = blockIdx.x / across * patch + y, column = blockIdx.x % across * patch + x;
  const float sample = pixels[(static_cast<size_t>(row) * side + column) * channels + channel];
  out[static_cast<size_t>(blockIdx.x) * width + i] = __fdiv_rn(__fsub_rn(__fdiv_rn(sample, 255.0f), 0.5f), 0.5f);
}

// query [queries, heads × WIDTH], key and value [keys, heads × WIDTH] → out as query. Blocks are (queries / 128, heads).
#define EXPORT_ATTENTION(WIDTH)                                                                                               \
  extern "C" __global__ void __launch_bounds__(all_to_all::THREADS, 2)                                                        \
      attend_all_##WIDTH##_bf16(const half_t* query, const half_t* key, const half_t* value, half_t* out, int queries,        \
                                int keys, float factor) {                                                                     \
    const int stride = gridDim.y * WIDTH, at = blockIdx.y * WIDTH;                                                            \
    all_to_all::attend<WIDTH>({query + at, queries, stride}, {key + at, keys, stride}, {value + at, keys, stride}, out + at,  \
                              stride, factor);                                                                                \
  }

EXPORT_ATTENTION(48)
EXPORT_ATTENTION(64)
EXPORT_ATTENTION(72)

#define EXPORT(T, NAME)                                                                                                       \
  extern "C" __global__ void norm_##NAME(const T* x, const float* scale, const T* residual, T* out, int width, float eps) {   \
    norm<T>(x, scale, residual, out, width, eps);                                                                             \
  }                                                                                                                           \
  extern "C" __global__ void norm_rope_##NAME(const T* x, const float* scale, const T* cos, const T* sin, T* out, int heads,  \
                                              int width, float eps) {                                                         \
    norm_rope<T>(x, scale, cos, sin, out, heads, width, eps);                                                                 \
  }                                                                                                                           \
  extern "C" __global__ void scatter_##NAME(const T* x, const uint32_t* slots, T* out, int width) {                           \
    scatter<T>(x, slots, out, width);                                                                                         \
  }                                                                                                                           \
  extern "C" __global__ void gelu_times_##NAME(const T* gate, const T* up, T* out, size_t count) {                            \
    gelu_times<T>(gate, up, out, count);                                                                                      \
  }                                                                                                                           \
  extern "C" __global__ void spread_##NAME(const T* row, T* out, int width) { spread<T>(row, out, width); }                    \
  extern "C" __global__ void layer_norm_##NAME(const T* x, const float* weight, const float* bias, T* out, int width,         \
                                               float eps) {                                                                   \
    layer_norm<T>(x, weight, bias, out, width, eps);                                                                          \
  }                                                                                                                           \
  extern "C" __global__ void softmax_##NAME(const T* x, const float* mask, T* out, int keys, int mask_rows, float scale,      \
                                            int holds) {                                                                      \
    softmax<T>(x, mask, out, keys, mask_rows, scale, holds);                                                                  \
  }                                                                                                                           \
  extern "C" __global__ void attend_##NAME(const T* query, const T* keys, const T* values, const uint32_t* steps,             \
                                           const uint32_t* blocks, int block_tokens, T* out, float* shares, int heads,        \
                                           int kv_heads, int width, float scale) {                                            \
    const Reach reach = {steps, blocks, block_tokens};                                                                        \
    if (width <= 4 * WARP) attend<T, 4>(query, keys, values, reach, out, shares, heads, kv_heads, width, scale);              \
    else attend<T, 8>(query, keys, values, reach, out, shares, heads, kv_heads, width, scale);                                \
  }                                                                                                                           \
  extern "C" __global__ void gather_##NAME(const float* shares, T* out, int all_shares, int width) {                          \
    gather<T>(shares, out, all_shares, width);                                                                                \
  }                                                                                                                           \
  extern "C" __global__ void likeliest_##NAME(const T* logits, uint32_t* out, int width, uint32_t never) {                    \
    likeliest<T>(logits, out, width, never);                                                                                  \
  }

EXPORT(float, f32)
EXPORT(half_t, bf16)
