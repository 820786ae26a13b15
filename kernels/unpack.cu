/* unpack: fragment order back to rows. A warp takes 16 outputs times 128 inputs: four pairs of steps, of
 * which a lane loads its fragments; in them the words of eight neighbouring inputs of an output are spread
 * over the four lanes of a quad, two inputs each, so two exchanges within the quad give each lane 16 bytes of
 * a row and a quad 64. launch   grid [ceil(k / 1024), ceil(n / 16)], block 256: eight neighbouring spans of a
 * tile; no shared memory math     FP8: number * scale in f32, rounded once; BF16: copied moves    4 n k bytes
 * (BF16), 3 n k (FP8) roof     memory: a layer of Llama 3.1 8B is 0.87 GB, 0.3 ms of an H100, and its
 * products take 5 ms at 8192 rows */
#include "kernels/bulk.h"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include <cuda_fp16.h>

enum { WARPS = 8, THREADS = 32 * WARPS, PAIRS = 4, PAIR = 32, TILE = 16 };

struct view {
    const void *data;
    const float *scale;
    bf16 *to;
    int n, k;
    int tiles, head_dim; /* of a rotary matrix: tiles a head */
    unsigned flags;
};

/* The output in row `row` < 8 of a tile; *other is the one in row + 8. n where there is none. */
static __device__ int output_of(const struct view *a, int tile, int row, int *other)
{
    int j = tile * TILE + row, limit = a->n, apart = TILE / 2;
    if (a->flags == MATRIX_INTERLEAVE) {
        j = tile * (TILE / 2) + row;
        limit = apart = a->n / 2;
    } else if (a->flags == MATRIX_ROTARY) {
        j = tile / a->tiles * a->head_dim + tile % a->tiles * (TILE / 2) + row;
        apart = a->head_dim / 2;
    }
    *other = j < limit && j + apart < a->n ? j + apart : a->n;
    return j < limit ? j : a->n;
}

static __device__ unsigned pack(float low, float high)
{
    unsigned u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
    return u;
}

/* Two E4M3, times the scale of their output. */
static __device__ unsigned widen(unsigned two, float scale)
{
    unsigned half;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half) : "h"((unsigned short)two));
    return pack(__fmul_rn(__half2float(__ushort_as_half((unsigned short)(half & 0xffffu))), scale),
                __fmul_rn(__half2float(__ushort_as_half((unsigned short)(half >> 16))), scale));
}

/* A lane's fragments of a pair of steps as loaded: BF16 words {row < 8, row >= 8} of inputs 0..7, then 8..15,
 * of both steps; FP8 the same in half the bytes. Zeros past the last step. */
template <bool FP8>
static __device__ void load_pair(uint4 raw[2], const struct view *a, int tile, int pair, int lane)
{
    const int steps = (a->k + TILE - 1) / TILE;
    raw[0] = raw[1] = make_uint4(0, 0, 0, 0);
    if (FP8) {
        const size_t pairs = (size_t)(steps + 1) / 2;
        if (pair * 2 < steps)
            raw[0] = __ldg((const uint4 *)a->data + ((size_t)tile * pairs + (size_t)pair) * 32 + lane);
        return;
    }
    const uint4 *from =
        (const uint4 *)a->data + ((size_t)tile * (size_t)steps + (size_t)pair * 2) * 32 + lane;
    if (pair * 2 < steps)
        raw[0] = __ldg(from);
    if (pair * 2 + 1 < steps)
        raw[1] = __ldg(from + 32);
}

/* words[half][piece]: two inputs of output row lane / 4 + 8 * half, of the piece of eight inputs `piece`. */
template <bool FP8>
static __device__ void words_of(unsigned words[2][4], const uint4 raw[2], const float scale[2])
{
    const unsigned w[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        words[i % 2][i / 2] = FP8 ? widen(w[i / 2] >> (i % 2 * 16) & 0xffffu, scale[i % 2]) : w[i];
}

/* Before: lane q of a quad has word q of four pieces. After: it has the four words of piece q. */
static __device__ uint4 exchange(const unsigned w[4], int q)
{
    const bool odd = q % 2 != 0, high = q / 2 != 0;
    unsigned a = odd ? w[0] : w[1], b = odd ? w[2] : w[3]; /* what the neighbour wants */
    a = __shfl_xor_sync(0xffffffffu, a, 1);
    b = __shfl_xor_sync(0xffffffffu, b, 1);
    /* words (even lane's, odd lane's) of piece q % 2, and of piece 2 + q % 2 */
    const uint2 first = odd ? make_uint2(a, w[1]) : make_uint2(w[0], a),
                second = odd ? make_uint2(b, w[3]) : make_uint2(w[2], b);
    uint2 send = high ? first : second;
    send.x = __shfl_xor_sync(0xffffffffu, send.x, 2);
    send.y = __shfl_xor_sync(0xffffffffu, send.y, 2);
    return high ? make_uint4(send.x, send.y, second.x, second.y)
                : make_uint4(first.x, first.y, send.x, send.y);
}

/* Eight inputs from i on of output j, as far as there are any. */
static __device__ void store_piece(const struct view *a, int j, int i, uint4 piece)
{
    bf16 *to = a->to + (size_t)j * (size_t)a->k + i;
    const unsigned w[4] = {piece.x, piece.y, piece.z, piece.w};
    if (j >= a->n || i >= a->k)
        return;
    if (a->k % 8 == 0) {
        *(uint4 *)to = piece;
        return;
    }
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (i + e < a->k)
            to[e] = (bf16)(w[e / 2] >> (e % 2 * 16));
}

template <bool FP8>
static __global__ void __launch_bounds__(THREADS) unpack_kernel(const __grid_constant__ struct view a)
{
    const int lane = threadIdx.x % 32, warp = (int)threadIdx.x / 32, tile = (int)blockIdx.y,
              first = ((int)blockIdx.x * WARPS + warp) * PAIRS;
    uint4 raw[PAIRS][2];
    float scale[2] = {1, 1};
    int output[2];
    launch_trigger();
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
        load_pair<FP8>(raw[i], &a, tile, first + i, lane);
    output[0] = output_of(&a, tile, lane / 4, &output[1]);
    if (FP8 && a.scale)
#pragma unroll
        for (int half = 0; half < 2; half++)
            scale[half] = output[half] < a.n ? __ldg(a.scale + output[half]) : 0.0f;
    launch_wait(); /* the buffer may still be read by the product before */
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        unsigned words[2][4];
        words_of<FP8>(words, raw[i], scale);
#pragma unroll
        for (int half = 0; half < 2; half++)
            store_piece(&a, output[half], (first + i) * PAIR + lane % 4 * 8, exchange(words[half], lane % 4));
    }
}

KERN_API int unpack_cuda(const struct unpack *a, void *stream)
{
    const struct matrix *w = a->w;
    const int outputs = w->flags == MATRIX_INTERLEAVE ? (w->n / 2 + TILE / 2 - 1) / (TILE / 2)
                                                      : (w->n + TILE - 1) / TILE,
              span = WARPS * PAIRS * PAIR;
    const struct view view = {.data = w->data,
                              .scale = w->scale,
                              .to = a->to,
                              .n = w->n,
                              .k = w->k,
                              .tiles = w->flags == MATRIX_ROTARY ? w->head_dim / TILE : 1,
                              .head_dim = w->head_dim,
                              .flags = w->flags};
    const struct launch l = {.grid = dim3((unsigned)((w->k + span - 1) / span), (unsigned)outputs),
                             .block = THREADS,
                             .stream = stream};
    return w->form == MATRIX_FP8 ? launch_kernel(&l, unpack_kernel<true>, view)
                                 : launch_kernel(&l, unpack_kernel<false>, view);
}
