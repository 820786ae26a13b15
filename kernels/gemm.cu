/* gemm_cuda, swiglu_cuda: bf16 weights as the 16-row operand of mma.m16n8k16, 8 rows of activations as its
 * columns, f32 sums. The weights of a tile (16 outputs) are read once from memory for up to 64 rows, straight
 * to registers in the order the tensor cores want them (matrix_pack_cuda), 16 bytes a lane, and are requested
 * before the kernel waits for the activations.
 *
 * order    K in steps of 16, dealt in turn to slices (8 warps a block, 1 to 4 blocks a tile:
 * gemm_log2_slices, a function of (n, k) alone); a slice adds its steps in order, a block its 8 slices in
 * order, the cluster its blocks in order. Nothing depends on rows. launch   grid [blocks a tile, blocks of 64
 * rows, tiles or pairs of tiles], so n <= 16 * 65535; block 256, shared 6 to 44 KB moves    2 n k bytes of
 * weights once a 64 rows, past the first level cache and first to leave the second; each block also reads its
 *          slices of the acts, 32 bytes a row and step against 512 of weights, from the caches
 * roof     memory: 2 rows flops for 2 bytes. 4096 x 4096: 33.6 MB, 11 us at 3 TB/s; 576 x 576: 0.66 MB, the
 * launch is the cost */
#include "kernels/cuda.h"
#include "kernels/act.h"
#include "kernels/launch.cuh"
#include <cuda_bf16.h>

enum {
    TILE = 16,
    STEP = 16,
    LOG2_WARPS = 3,
    WARPS = 1 << LOG2_WARPS,
    LANES = 32,
    ROW_BLOCK = 64,
    MAX_CLUSTER = 4
};
enum epilogue { EPILOGUE_STORE, EPILOGUE_ADD, EPILOGUE_SWIGLU };

struct gemm_args {
    const uint4 *w; /* [tiles][steps][32] fragments */
    const uint2 *x; /* act */
    void *y;
    int n, rows, tiles, steps, log2_slices;
    enum epilogue epilogue;
};

/* Weights pass by: not kept in the first level, first to be replaced in the second. The load is not `.nc`,
 * which the assembler would move behind the dependency wait. */
__device__ static uint64_t evict_first(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Loads of what may not exist, zeros then. The choice is made inside: a choice in C++ becomes copies of
 * registers just requested, and a copy waits for them. */
__device__ static uint4 load_weights(const uint4 *at, int exists, uint64_t policy)
{
    uint4 v;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %6, 0;\n\t"
                 "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n\t"
                 "@p ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5; }"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(at), "l"(policy), "r"(exists));
    return v;
}

__device__ static uint2 load_act(const uint2 *at, int exists)
{
    uint2 v;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;\n\t"
                 "@p ld.global.v2.u32 {%0, %1}, [%2]; }"
                 : "=&r"(v.x), "=&r"(v.y)
                 : "l"(at), "r"(exists));
    return v;
}

__device__ static void mma(float4 *c, uint4 a, uint2 b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c->x), "+f"(c->y), "+f"(c->z), "+f"(c->w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

__device__ static float4 add(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* At the start, with nothing to publish yet. */
__device__ static void cluster_arrive_relaxed(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ static void cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ static void cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Write v to where `at` stands in the shared memory of the cluster's first block. */
__device__ static void store_first(float4 *at, float4 v)
{
    uint32_t own = (uint32_t)__cvta_generic_to_shared(at), first;
    asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(first) : "r"(own));
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(first), "f"(v.x), "f"(v.y),
                 "f"(v.z), "f"(v.w)
                 : "memory");
}

/* This warp's sums of MT tiles by NT * 8 rows. DEPTH steps of weights are in flight, the first of them before
 * the dependency wait; acts come AHEAD steps at a time. Steps past the last, tiles past n and rows past the
 * last multiply zeros. */
template <int NT, int MT, int DEPTH, int AHEAD>
__device__ static void slice_sums(const struct gemm_args &p, int tile, int slice, float4 (*sum)[NT])
{
    const int lane = threadIdx.x % LANES,
              count = (p.steps - slice + (1 << p.log2_slices) - 1) >> p.log2_slices;
    const int rows = p.rows - blockIdx.y * ROW_BLOCK -
                     lane / 4; /* of this lane: its row of tile t exists if t * 8 < rows */
    const size_t stride = (size_t)LANES << p.log2_slices, size = (size_t)p.steps * LANES;
    const uint64_t policy = evict_first();
    const uint4 *w = p.w + tile * size + slice * LANES + lane;
    const uint2 *x = p.x + blockIdx.y * (ROW_BLOCK / ACT_ROWS) * size + slice * LANES + lane;
    uint4 a[DEPTH][MT];
#pragma unroll
    for (int i = 0; i < DEPTH; i++, w += stride)
#pragma unroll
        for (int m = 0; m < MT; m++)
            a[i][m] = load_weights(w + m * size, i < count && (m == 0 || tile + m < p.tiles), policy);
    launch_wait();
#pragma unroll 1
    for (int left = count; left > 0; left -= DEPTH)
#pragma unroll
        for (int g = 0; g < DEPTH; g += AHEAD) {
            uint2 b[AHEAD][NT];
#pragma unroll
            for (int i = 0; i < AHEAD; i++, x += stride)
#pragma unroll
                for (int t = 0; t < NT; t++)
                    b[i][t] = load_act(x + t * size, g + i < left && t * ACT_ROWS < rows);
#pragma unroll
            for (int i = 0; i < AHEAD; i++, w += stride)
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int t = 0; t < NT; t++)
                        mma(&sum[m][t], a[g + i][m], b[i][t]);
                    a[g + i][m] = load_weights(
                        w + m * size, g + i + DEPTH < left && (m == 0 || tile + m < p.tiles), policy);
                }
        }
}

__device__ static float silu(float v)
{
    return v / (1.0f + expf(-v));
}

/* v holds outputs lane / 4 and lane / 4 + 8 of the tile, each for two rows: {first, first + 1}. */
__device__ static void write(const struct gemm_args &p, int tile, int first, float4 v)
{
    const int row_of_tile = threadIdx.x % LANES / 4;
    const float out[2][2] = {{v.x, v.z}, {v.y, v.w}}; /* [row][output] */
    for (int c = 0; c < 2 && first + c < p.rows; c++) {
        if (p.epilogue == EPILOGUE_SWIGLU) {
            const int m = p.n / 2, i = tile * (TILE / 2) + row_of_tile;
            __nv_bfloat16 *y = (__nv_bfloat16 *)p.y;
            y[act_at(first + c, i, m)] = __float2bfloat16_rn(i < m ? silu(out[c][0]) * out[c][1] : 0.0f);
            if (tile == p.tiles - 1 && p.tiles % 2 == 1) /* the act's last step is half ours, half padding */
                y[act_at(first + c, i + TILE / 2, m)] = __float2bfloat16_rn(0.0f);
            continue;
        }
        for (int h = 0; h < 2; h++) {
            const int j = tile * TILE + row_of_tile + h * 8;
            float *y = (float *)p.y + (size_t)(first + c) * p.n + j;
            if (j < p.n)
                *y = p.epilogue == EPILOGUE_ADD ? *y + out[c][h] : out[c][h];
        }
    }
}

/* NT tiles of 8 rows by MT tiles of 16 outputs a block. MT = 2, where there are tiles enough, halves the
 * acts' way through the caches and has no cluster: its launch gives one block a tile pair. */
template <int NT, int MT, int DEPTH, int AHEAD, int BLOCKS>
static __global__ void __launch_bounds__(WARPS *LANES, BLOCKS) gemm_kernel(const struct gemm_args p)
{
    launch_trigger();
    __shared__ float4 part[WARPS][NT][LANES];
    __shared__ float4 block[MT == 1 ? MAX_CLUSTER - 1 : 1][NT][LANES];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, tile = blockIdx.z * MT;
    const int cluster = MT == 1 ? (1 << p.log2_slices) / WARPS : 1, rank = MT == 1 ? blockIdx.x : 0;
    float4 sum[MT][NT] = {};
    if (cluster > 1)
        cluster_arrive_relaxed(); /* the first block runs: its memory may be written */
    slice_sums<NT, MT, DEPTH, AHEAD>(p, tile, rank * WARPS + warp, sum);
#pragma unroll
    for (int m = 0; m < MT; m++) {
        if (m > 0)
            __syncthreads();
#pragma unroll
        for (int t = 0; t < NT; t++)
            part[warp][t][lane] = sum[m][t];
        __syncthreads();
        float4 v = {};
        if (warp < NT) {
            v = part[0][warp][lane];
            for (int i = 1; i < WARPS; i++)
                v = add(v, part[i][warp][lane]);
        }
        if (cluster > 1) {
            cluster_wait();
            if (rank > 0 && warp < NT)
                store_first(&block[rank - 1][warp][lane], v);
            cluster_arrive();
            if (rank > 0)
                return;
            cluster_wait();
            for (int i = 1; warp < NT && i < cluster; i++)
                v = add(v, block[i - 1][warp][lane]);
        }
        if (warp < NT && tile + m < p.tiles)
            write(p, tile + m, blockIdx.y * ROW_BLOCK + warp * ACT_ROWS + lane % 4 * 2, v);
    }
}

/* Slices of K: 8 warps, in one block unless they cannot hold their whole share of K in flight and there are
 * too few tiles to fill the device: then in the next 2 or 4 blocks that do either. */
static int gemm_log2_slices(int tiles, int steps)
{
    enum { IN_FLIGHT = 8, FULL = 288 };
    int blocks = 0;
    while (1 << blocks < MAX_CLUSTER && steps > (WARPS * IN_FLIGHT) << blocks &&
           tiles << (blocks + 1) <= FULL)
        blocks++;
    return LOG2_WARPS + blocks;
}

static int launch_gemm(const struct gemm *a, enum epilogue epilogue, void *stream)
{
    const struct matrix *w = a->w;
    struct gemm_args p = {};
    p.w = (const uint4 *)w->data;
    p.x = (const uint2 *)a->x;
    p.y = a->y;
    p.n = w->n;
    p.rows = a->rows;
    p.tiles = (w->n + TILE - 1) / TILE;
    p.steps = (w->k + STEP - 1) / STEP;
    p.log2_slices = gemm_log2_slices(p.tiles, p.steps);
    p.epilogue = epilogue;
    const int nt = (a->rows < ROW_BLOCK ? a->rows + ACT_ROWS - 1 : ROW_BLOCK) / ACT_ROWS,
              pairs = nt > 2 && p.tiles >= 512;
    struct launch l = {};
    l.cluster = (1 << p.log2_slices) / WARPS;
    l.grid = dim3(l.cluster, (a->rows + ROW_BLOCK - 1) / ROW_BLOCK, pairs ? (p.tiles + 1) / 2 : p.tiles);
    l.block = dim3(WARPS * LANES);
    l.stream = stream;
    if (nt <= 1)
        return launch_kernel(&l, gemm_kernel<1, 1, 8, 4, 4>, p);
    if (nt <= 2)
        return launch_kernel(&l, gemm_kernel<2, 1, 8, 4, 3>, p);
    if (nt <= 4)
        return pairs ? launch_kernel(&l, gemm_kernel<4, 2, 4, 2, 2>, p)
                     : launch_kernel(&l, gemm_kernel<4, 1, 8, 2, 2>, p);
    return pairs ? launch_kernel(&l, gemm_kernel<8, 2, 2, 1, 2>, p)
                 : launch_kernel(&l, gemm_kernel<8, 1, 4, 1, 2>, p);
}

KERN_API int gemm_cuda(const struct gemm *a, void *stream)
{
    return launch_gemm(a, a->accumulate ? EPILOGUE_ADD : EPILOGUE_STORE, stream);
}

KERN_API int swiglu_cuda(const struct gemm *a, void *stream)
{
    return launch_gemm(a, EPILOGUE_SWIGLU, stream);
}
