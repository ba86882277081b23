// SPDX-License-Identifier: Apache-2.0
// Small kernels for the PTX route: what they compute is easily said in numpy, what nvcc makes of them is not.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

// out[i] = f(a[i], b[i]) over whole numbers, one result after the other.
extern "C" __global__ void whole_numbers(const int32_t* a, const int32_t* b, int32_t* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int32_t x = a[i], y = b[i];
  const uint32_t u = static_cast<uint32_t>(x), v = static_cast<uint32_t>(y);
  int32_t* o = out + 20 * i;
  o[0] = x / (y | 1);
  o[1] = x % (y | 1);
  o[2] = static_cast<int32_t>(u / (v | 1));
  o[3] = static_cast<int32_t>(u % (v | 1));
  o[4] = __mulhi(x, y);
  o[5] = static_cast<int32_t>(__umulhi(u, v));
  o[6] = __popc(u);
  o[7] = __clz(x);
  o[8] = static_cast<int32_t>(__brev(u));
  o[9] = __ffs(x);
  o[10] = x >> (y & 31);
  o[11] = static_cast<int32_t>(u >> (v & 31));
  o[12] = static_cast<int32_t>(u << (v & 31));
  o[13] = static_cast<int32_t>(__funnelshift_l(u, v, 9));
  o[14] = static_cast<int32_t>(__byte_perm(u, v, 0x6240));
  o[15] = __dp4a(x, y, 7);
  o[16] = static_cast<int32_t>(__sad(x, y, 3u));
  o[17] = static_cast<int32_t>((static_cast<int64_t>(x) * y) >> 13);
  o[18] = x < y ? -x : (u > v ? x ^ y : ~x);
  o[19] = static_cast<int16_t>(x) * static_cast<int8_t>(y);
}

// out[i]: conversions and functions of a[i], as f32.
extern "C" __global__ void numbers(const float* a, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = a[i];
  float* o = out + 16 * i;
  o[0] = __bfloat162float(__float2bfloat16(x));
  o[1] = __half2float(__float2half(x));
  o[2] = static_cast<float>(__nv_fp8_e4m3(x));
  o[3] = static_cast<float>(__nv_fp8_e5m2(x));
  o[4] = static_cast<float>(static_cast<int>(x));
  o[5] = static_cast<float>(__float2int_rn(x));
  o[6] = static_cast<float>(__float2int_rd(x));
  o[7] = sqrtf(fabsf(x));
  o[8] = fmaxf(x, 0.5f) - fminf(x, -0.5f);
  o[9] = fmaf(x, x, 1.f);
  o[10] = x / 3.f;
  o[11] = __saturatef(x);
  o[12] = rsqrtf(fabsf(x) + 1.f);
  o[13] = __half2float(__hfma(__float2half(x), __float2half(0.5f), __float2half(1.f)));
  o[14] = exp2f(-fabsf(x));
  o[15] = static_cast<float>(static_cast<double>(x) * 1.25);
}

// out[block] = sum of the block's part of a: shuffles, shared memory, a barrier, then an atomic for the total.
extern "C" __global__ void sum(const float* a, float* out, float* total, int n) {
  __shared__ float sums[8];
  float s = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += a[i];
  for (int d = 16; d; d /= 2) s += __shfl_down_sync(0xffffffffu, s, d);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  s = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.f;
  for (int d = 4; d; d /= 2) s += __shfl_xor_sync(0xffffffffu, s, d, 8);
  if (threadIdx.x == 0) {
    out[blockIdx.x] = s;
    atomicAdd(total, s);
  }
}

// out[i] = table[a[i] % 8], through local memory and a switch.
extern "C" __global__ void choose(const int* a, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int table[8];
  for (int j = 0; j < 8; ++j) table[j] = j * j + n;
  if (i >= n) return;
  table[a[i] & 7] += 100;
  int extra = 0;
  switch (a[i] & 7) {
    case 0:
      extra = out[i];
      break;
    case 1:
      extra = a[i] * 3;
      break;
    case 2:
      extra = a[i] / 7;
      break;
    case 3:
      extra = -1;
      break;
    case 4:
      extra = i;
      break;
    case 5:
      extra = n;
      break;
    default:
      extra = 5;
  }
  out[i] = table[(a[i] + 1) & 7] + table[a[i] & 7] + extra;
}

struct alignas(16) Sizes {
  int64_t stride;
  int rows, columns;
  float scale;
};
// out[c, r] = scale * a[r, c] through dynamic shared memory: a tile of 32 x 32 a block.
extern "C" __global__ void transpose(const float* a, float* out, const Sizes sizes) {
  extern __shared__ float tile[];
  const int column = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * 32;
  for (int r = threadIdx.x / 32; r < 32; r += blockDim.x / 32) {
    if (first + r < sizes.rows && column < sizes.columns)
      tile[r * 33 + threadIdx.x % 32] = a[(first + r) * sizes.stride + column];
  }
  __syncthreads();
  for (int c = threadIdx.x / 32; c < 32; c += blockDim.x / 32) {
    const int row = first + threadIdx.x % 32, to = blockIdx.x * 32 + c;
    if (row < sizes.rows && to < sizes.columns)
      out[static_cast<int64_t>(to) * sizes.rows + row] = sizes.scale * tile[threadIdx.x % 32 * 33 + c];
  }
}
