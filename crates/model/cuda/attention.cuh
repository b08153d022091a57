// Attention in which every query sees every key, as in SigLIP's encoder, without its scores in memory: bfloat16 products on
// tensor cores, summed in float, with the softmax kept up to date while the keys pass by (Milakov and Gimelshein 2018; Dao
// et al. 2022). Scores stay in float; the weights are rounded to bfloat16 before they are applied, their sum is not.
//
// A block works on QUERIES queries of one head, a warp on 32 of them; TILE keys and values at a time pass through shared
// memory, the next while these are worked on. The fragments are those of mma.m16n8k16 and m16n8k8 as the PTX manual draws
// them: of a lane, g = lane / 4 is a row (a column of B), t = lane % 4 a pair of columns.

#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

namespace all_to_all {

constexpr int LANES = 32, WARPS = 4, THREADS = WARPS * LANES;
constexpr int HALVES = 2, QUERIES = WARPS * HALVES * 16, TILE = 64;
constexpr unsigned EVERY_LANE = 0xffffffffu;

struct Rows {
  const __nv_bfloat16* at;  // of this head, row 0
  int count;
  int stride;  // elements from row to row
};

__device__ inline uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// 16 bytes into shared memory; zeros where `there` is false.
__device__ inline void copy_16(uint32_t to, const void* from, bool there) {
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int LEFT> __device__ inline void wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory"); }

__device__ inline void load_4(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_2(uint32_t (&r)[2], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
}
__device__ inline void load_4_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_2_transposed(uint32_t (&r)[2], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(at)
               : "memory");
}

// c += a × b, 16 × 8 × 16 and 16 × 8 × 8.
__device__ inline void multiply_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_8(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ inline uint32_t pair(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ inline float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// `HEIGHT` rows from `first` on into shared memory, rows of STRIDE elements; zeros beyond the last row.
template <int WIDTH, int STRIDE, int HEIGHT> __device__ inline void fetch(Rows rows, int first, uint32_t to) {
  constexpr int CHUNKS = WIDTH / 8;
  for (int i = threadIdx.x; i < HEIGHT * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i % CHUNKS;
    const bool there = first + row < rows.count;
    const size_t from = static_cast<size_t>(there ? first + row : 0) * rows.stride + 8 * chunk;
    copy_16(to + (row * STRIDE + 8 * chunk) * 2, rows.at + from, there);
  }
}

// Blocks are (queries / QUERIES, heads). Rows begin on 16 bytes. `factor` is scale × log2(e).
template <int WIDTH>
__device__ inline void attend(Rows query, Rows key, Rows value, __nv_bfloat16* out, int out_stride, float factor) {
  static_assert(WIDTH % 8 == 0 && WIDTH <= 80, "whole chunks, and accumulators that fit the registers");
  constexpr int STEPS = WIDTH / 16, OUT_TILES = WIDTH / 8, KEY_TILES = TILE / 8;
  constexpr bool ODD = WIDTH % 16 == 8;
  // An odd number of chunks a row: the eight rows of a matrix then lie in different banks.
  constexpr int STRIDE = OUT_TILES % 2 ? WIDTH : WIDTH + 8;
  constexpr uint32_t SIDE = TILE * STRIDE * 2, STAGE = 2 * SIDE;
  static_assert(QUERIES * STRIDE * 2 <= STAGE, "the queries pass through the second stage");
  __shared__ __align__(16) unsigned char held[2 * STAGE];
  const uint32_t base = shared_address(held);
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const int first = blockIdx.x * QUERIES, tiles = (key.count + TILE - 1) / TILE;

  fetch<WIDTH, STRIDE, QUERIES>(query, first, base + STAGE);
  fetch<WIDTH, STRIDE, TILE>(key, 0, base);
  fetch<WIDTH, STRIDE, TILE>(value, 0, base + SIDE);
  commit();
  wait<0>();
  __syncthreads();
  uint32_t q[HALVES][STEPS ? STEPS : 1][4], q_rest[HALVES][2];
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    const int row = (warp * HALVES + h) * 16 + lane % 16;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) load_4(q[h][s], base + STAGE + (row * STRIDE + s * 16 + lane / 16 * 8) * 2);
    if (ODD) load_2(q_rest[h], base + STAGE + (row * STRIDE + STEPS * 16) * 2);
  }
  __syncthreads();  // the second stage is free

  float mixed[HALVES][OUT_TILES][4] = {};
  // Of rows g and g + 8: the largest score, and this lane's part of the sum.
  float most[HALVES][2], sum[HALVES][2];
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    most[h][0] = most[h][1] = -INFINITY;
    sum[h][0] = sum[h][1] = 0.0f;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t keys = base + (tile % 2) * STAGE, values = keys + SIDE;
    if (tile + 1 < tiles) {
      const uint32_t next = base + ((tile + 1) % 2) * STAGE;
      fetch<WIDTH, STRIDE, TILE>(key, (tile + 1) * TILE, next);
      fetch<WIDTH, STRIDE, TILE>(value, (tile + 1) * TILE, next + SIDE);
      commit();
      wait<1>();
    } else {
      wait<0>();
    }
    __syncthreads();

    float score[HALVES][KEY_TILES][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
#pragma unroll
      for (int j = 0; j < KEY_TILES; j += 2) {
        uint32_t b[4];
        const int row = j * 8 + lane / 16 * 8 + lane % 8, column = s * 16 + lane / 8 % 2 * 8;
        load_4(b, keys + (row * STRIDE + column) * 2);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
          multiply_16(score[h][j], q[h][s], b[0], b[1]);
          multiply_16(score[h][j + 1], q[h][s], b[2], b[3]);
        }
      }
    }
    if (ODD) {
#pragma unroll
      for (int j = 0; j < KEY_TILES; j += 4) {
        uint32_t b[4];
        load_4(b, keys + ((j * 8 + lane) * STRIDE + STEPS * 16) * 2);
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
          for (int i = 0; i < 4; ++i) multiply_8(score[h][j + i], q_rest[h], b[i]);
      }
    }
    if ((tile + 1) * TILE > key.count) {
#pragma unroll
      for (int j = 0; j < KEY_TILES; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (tile * TILE + j * 8 + lane % 4 * 2 + i < key.count) continue;
#pragma unroll
          for (int h = 0; h < HALVES; ++h) score[h][j][i] = score[h][j][2 + i] = -INFINITY;
        }
    }

    // Every tile has a key, so the largest score is a number from here on.
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float peak = most[h][r];
#pragma unroll
        for (int j = 0; j < KEY_TILES; ++j) peak = fmaxf(peak, fmaxf(score[h][j][2 * r], score[h][j][2 * r + 1]));
        peak = fmaxf(peak, __shfl_xor_sync(EVERY_LANE, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(EVERY_LANE, peak, 2));
        const float shrink = power_of_2((most[h][r] - peak) * factor), lift = peak * factor;
        most[h][r] = peak;
        float part = 0.0f;
#pragma unroll
        for (int j = 0; j < KEY_TILES; ++j)
#pragma unroll
          for (int i = 2 * r; i < 2 * r + 2; ++i) {
            score[h][j][i] = power_of_2(fmaf(score[h][j][i], factor, -lift));
            part += score[h][j][i];
          }
        sum[h][r] = sum[h][r] * shrink + part;
#pragma unroll
        for (int d = 0; d < OUT_TILES; ++d) {
          mixed[h][d][2 * r] *= shrink;
          mixed[h][d][2 * r + 1] *= shrink;
        }
      }

    // What a product leaves is laid out as the next one reads it.
#pragma unroll
    for (int s = 0; s < TILE / 16; ++s) {
      uint32_t weight[HALVES][4];
#pragma unroll
      for (int h = 0; h < HALVES; ++h) {
        weight[h][0] = pair(score[h][2 * s][0], score[h][2 * s][1]);
        weight[h][1] = pair(score[h][2 * s][2], score[h][2 * s][3]);
        weight[h][2] = pair(score[h][2 * s + 1][0], score[h][2 * s + 1][1]);
        weight[h][3] = pair(score[h][2 * s + 1][2], score[h][2 * s + 1][3]);
      }
      const int row = s * 16 + lane % 16;
#pragma unroll
      for (int d = 0; d + 1 < OUT_TILES; d += 2) {
        uint32_t b[4];
        load_4_transposed(b, values + (row * STRIDE + d * 8 + lane / 16 * 8) * 2);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
          multiply_16(mixed[h][d], weight[h], b[0], b[1]);
          multiply_16(mixed[h][d + 1], weight[h], b[2], b[3]);
        }
      }
      if (ODD) {
        uint32_t b[2];
        load_2_transposed(b, values + (row * STRIDE + (OUT_TILES - 1) * 8) * 2);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) multiply_16(mixed[h][OUT_TILES - 1], weight[h], b[0], b[1]);
      }
    }
    __syncthreads();  // who still reads this stage
  }

#pragma unroll
  for (int h = 0; h < HALVES; ++h)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[h][r];
      total += __shfl_xor_sync(EVERY_LANE, total, 1);
      total += __shfl_xor_sync(EVERY_LANE, total, 2);
      const int row = first + (warp * HALVES + h) * 16 + r * 8 + lane / 4;
      if (row >= query.count) continue;
      __nv_bfloat16* to = out + static_cast<size_t>(row) * out_stride + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < OUT_TILES; ++d)
        *reinterpret_cast<uint32_t*>(to + d * 8) = pair(mixed[h][d][2 * r] / total, mixed[h][d][2 * r + 1] / total);
    }
}

}  // namespace all_to_all
