/* gemm_cuda, swiglu_cuda, residual_cuda, qkv_cuda: products for 1 to 64 rows a block, weights read once from
 * memory for all of them. The sums are gemm_core.cuh, what becomes of them gemm_epilogue.cuh.
 *
 * order    K in loads of 16 bytes a lane (BF16: 16 inputs, FP8: 32), dealt in turn to slices; their number is
 * a function of (n, k, form) alone (gemm_log2_slices). A slice adds its loads in order, 8 slices (an octet)
 * are added in order, octets pairwise. Which blocks and warps compute them is free: nothing depends on rows.
 *
 * launch   grid [cluster, blocks of 64 rows, tiles / tiles a block], so n <= 16 * 65535; a cluster's blocks
 * split the slices. Where more than 16 rows have a norm, finish_norm goes ahead
 *
 * moves    2 n k bytes of weights (FP8: n k) once a 64 rows, past the first level cache and first to leave
 * the second; each block also reads its slices of the acts, 32 bytes a row and 16 inputs, from the caches:
 * blocks of many rows take several tiles, so that this is no more than the weights; with a norm also 4 bytes
 * of squares a row and 16 inputs
 *
 * roof     memory: 2 rows flops for 2 bytes. 4096 x 4096: 33.6 MB, 11 us at 3 TB/s; 576 x 576: 0.66 MB, the
 * launch is the cost */
#include "kernels/gemm_core.cuh"
#include "kernels/gemm_epilogue.cuh"

enum { FINISH_WARPS = 4, FEW_ROWS = 16 };

__device__ static float4 add(float4 a, float4 b)
{
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
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

/* The block's sum of unit `warp`, from the slices' parts [SLICES][UNITS][LANES]. */
template <class S> __device__ static float4 block_sum(const float4 *part, int unit)
{
    const float4 *at = part + unit * LANES + threadIdx.x % LANES;
    float4 octet[S::SLICES / OCTET];
#pragma unroll
    for (int o = 0; o < S::SLICES / OCTET; o++) {
        octet[o] = at[o * OCTET * S::UNITS * LANES];
#pragma unroll
        for (int i = 1; i < OCTET; i++)
            octet[o] = add(octet[o], at[(o * OCTET + i) * S::UNITS * LANES]);
    }
    return S::SLICES == OCTET ? octet[0] : add(octet[0], octet[S::SLICES / OCTET - 1]);
}

/* The cluster's sums, in its first block: those of the others, [cluster - 1][MT][UNITS][LANES], are pairwise
 * added to its own. */
template <class S> __device__ static float4 cluster_sum(float4 own, const float4 *others, int cluster)
{
    const int block = S::MT * S::UNITS * LANES;
    own = add(own, others[0]);
    return cluster == 2 ? own : add(own, add(others[block], others[2 * block]));
}

/* `blocks` of a cluster hand their sums to the first; all threads of all of them come here. */
template <class S> __device__ static void cluster_reduce(float4 *sum, float4 *others, int cluster, int rank)
{
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    float4 *at = others + warp * LANES + lane;
    cluster_wait(); /* the first block runs */
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        if (rank > 0 && warp < S::UNITS)
            store_first(at + ((rank - 1) * S::MT + m) * S::UNITS * LANES, sum[m]);
    cluster_arrive();
    if (rank > 0)
        return;
    cluster_wait();
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        if (warp < S::UNITS)
            sum[m] = cluster_sum<S>(sum[m], at + m * S::UNITS * LANES, cluster);
}

/* The arguments with what E says about them; BF16 has no scales. */
template <int F, int E> __device__ static inline struct gemm_args args_known(const struct gemm_args &args)
{
    struct gemm_args p = args;
    if (E != EPILOGUE_ANY)
        p.epilogue = (enum epilogue)E;
    if (E == EPILOGUE_ADD || E == EPILOGUE_RESIDUAL)
        p.square = NULL;
    if (F == MATRIX_BF16)
        p.scale = p.row_scale = NULL;
    return p;
}

/* E: how a tile ends, or EPILOGUE_ANY: told by args. A kernel that knows is a fraction of the instructions,
 * and in a chain of small kernels fetching those is a third of the time (SmolLM2's layers: 231 us against 274
 * on an H100). */
template <class S, int E>
static __global__ void __launch_bounds__(S::WARPS *LANES, S::BLOCKS) gemm_kernel(const struct gemm_args args)
{
    const struct gemm_args p = args_known<S::FORM, E>(args);
    launch_trigger();
    extern __shared__ float4 part[]; /* [SLICES][UNITS][LANES], then what a cluster's other blocks send */
    __shared__ float2 factor[S::NT * ACT_ROWS];
    __shared__ uint32_t box[S::EARLY ? S::UNITS * S::MT : 1][NEEDS * LANES];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, slice = warp % S::SLICES,
              group = warp / S::SLICES;
    const int cluster = (1 << p.log2_slices) / S::SLICES, rank = blockIdx.x, first = blockIdx.z * S::TILES;
    /* this warp ends unit `warp` of each round: tiles ended + m, rows from `row` on */
    const int ends = rank == 0 && warp < S::UNITS, ended = first + warp / S::NT * S::MT;
    const int row = blockIdx.y * ROW_BLOCK + warp % S::NT * ACT_ROWS + lane % 4 * 2;
    float4 sum[S::MT][S::NT] = {}, v[S::MT];
    struct tile_needs needs[S::MT];
    if (cluster > 1)
        cluster_arrive_relaxed(); /* this block runs: its memory may be written */
    for (int m = 0; ends && m < S::MT; m++)
        needs_prefetch(p, ended + m);
    slice_sums<S>(p, first + group * S::MT, rank * S::SLICES + slice, rank == 0, factor, sum, [&] {
        for (int m = 0; S::EARLY && ends && m < S::MT; m++)
            needs_request(p, ended + m, row, box[warp * S::MT + m]);
    });
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        if (!S::EARLY && ends)
            needs_of(p, ended + m, row, &needs[m]);
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
        if (m > 0)
            __syncthreads();
#pragma unroll
        for (int t = 0; t < S::NT; t++)
            part[(slice * S::UNITS + group * S::NT + t) * LANES + lane] = sum[m][t];
        __syncthreads();
        if (warp < S::UNITS)
            v[m] = block_sum<S>(part, warp);
    }
    if (cluster > 1)
        cluster_reduce<S>(v, part + S::SLICES * S::UNITS * LANES, cluster, rank);
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        if (ends && ended + m < p.tiles) {
            if (S::EARLY)
                needs_take(p, box[warp * S::MT + m], &needs[m]);
            tile_end(p, ended + m, row, v[m], needs[m], factor);
        }
}

/* Slices of K: an octet, or 2 or 4 where one cannot hold its whole share of K in flight and there are too few
 * tiles to fill the device. */
static int gemm_log2_slices(int tiles, int loads)
{
    enum { IN_FLIGHT = 8, FULL = 528 };
    int log2 = 0;
    while (1 << log2 < MAX_CLUSTER && loads > (OCTET * IN_FLIGHT) << log2 && tiles << (log2 + 1) <= FULL)
        log2++;
    return 3 + log2;
}

template <class S> static int launch_shape(const struct gemm_args *p, void *stream)
{
    const unsigned cluster = (1u << p->log2_slices) / S::SLICES, sums = S::SLICES + (cluster - 1) * S::MT;
    const struct launch l = {.grid = dim3(cluster, (unsigned)((p->rows + ROW_BLOCK - 1) / ROW_BLOCK),
                                          (unsigned)((p->tiles + S::TILES - 1) / S::TILES)),
                             .block = dim3(S::WARPS * LANES),
                             .shared = sums * S::UNITS * LANES * sizeof(float4),
                             .cluster = cluster,
                             .stream = stream};
    /* a norm's sums ahead of an addition: nobody asks for it in a hurry */
    if (p->square && (p->epilogue == EPILOGUE_ADD || p->epilogue == EPILOGUE_RESIDUAL))
        return launch_kernel(&l, gemm_kernel<S, EPILOGUE_ANY>, *p);
    if constexpr (S::NT == 1)
        switch (p->epilogue) {
        case EPILOGUE_STORE:
            return launch_kernel(&l, gemm_kernel<S, EPILOGUE_STORE>, *p);
        case EPILOGUE_ADD:
            return launch_kernel(&l, gemm_kernel<S, EPILOGUE_ADD>, *p);
        case EPILOGUE_SWIGLU:
            return launch_kernel(&l, gemm_kernel<S, EPILOGUE_SWIGLU>, *p);
        case EPILOGUE_RESIDUAL:
            return launch_kernel(&l, gemm_kernel<S, EPILOGUE_RESIDUAL>, *p);
        default:
            return launch_kernel(&l, gemm_kernel<S, EPILOGUE_ROTARY>, *p);
        }
    return launch_kernel(&l, gemm_kernel<S, EPILOGUE_ANY>, *p);
}

/* 1 / rms of each row: many rows' squares are too much for every block to add up. */
static __global__ void __launch_bounds__(FINISH_WARPS *LANES)
    finish_norm(const float *square, float *inverse_rms, int rows, int k, int steps, float eps)
{
    const int row = blockIdx.x * FINISH_WARPS + threadIdx.x / LANES;
    float sum = 0;
    launch_trigger();
    launch_wait();
    if (row >= rows)
        return;
    norm_sums<1, 8>(square + (size_t)row * (size_t)steps, 0, 1, steps, &sum);
    if (threadIdx.x % LANES == 0)
        inverse_rms[row] = norm_factor(sum, k, eps);
}

static int launch_finish(const struct gemm_args *p, void *stream)
{
    const struct launch l = {.grid = dim3((unsigned)((p->rows + FINISH_WARPS - 1) / FINISH_WARPS)),
                             .block = dim3(FINISH_WARPS * LANES),
                             .stream = stream};
    return launch_kernel(&l, finish_norm, p->square, p->inverse_rms, p->rows, p->k, p->steps, p->eps);
}

/* Constants by rows: NT, MT, slices and groups a block, weights and acts in flight, blocks an SM. Few rows: a
 * tile a block, all its weights in flight. Many: 4 tiles a block wherever that leaves enough blocks, or the
 * acts' way through the second level cache costs more than the weights; of very many tiles two, and two
 * blocks an SM that take turns. */
template <int F> static int launch_rows(const struct gemm_args *p, void *stream)
{
    enum { ENOUGH = 64, MANY_TILES = 512 };
    const int nt = (p->rows < ROW_BLOCK ? p->rows + ACT_ROWS - 1 : ROW_BLOCK) / ACT_ROWS,
              fp8 = F == MATRIX_FP8;
    const int wide = (p->tiles / 4) << (p->log2_slices - 3) >= ENOUGH, pairs = p->tiles >= MANY_TILES;
    const int flat = p->loads <= (OCTET << (p->log2_slices - 3)) * (fp8 ? 4 : 8); /* a slice has no more */
    if (nt <= 1 && flat && p->log2_slices <= 4)
        return p->log2_slices > 3 ? launch_shape<gemm_shape<F, 1, 1, 16, 1, fp8 ? 4 : 8, 8, 2, 1>>(p, stream)
                                  : launch_shape<gemm_shape<F, 1, 1, 8, 1, fp8 ? 4 : 8, 8, 4, 1>>(p, stream);
    if (nt <= 1)
        return p->log2_slices > 3 ? launch_shape<gemm_shape<F, 1, 1, 16, 1, 8, fp8 ? 2 : 4, 2>>(p, stream)
                                  : launch_shape<gemm_shape<F, 1, 1, 8, 1, 8, fp8 ? 2 : 4, 4>>(p, stream);
    if (nt <= 2 && flat && p->log2_slices <= 3)
        return launch_shape<gemm_shape<F, 2, 1, 8, 1, fp8 ? 4 : 8, 8, 3, 1>>(p, stream);
    if (nt <= 2)
        return p->log2_slices > 3 ? launch_shape<gemm_shape<F, 2, 1, 16, 1, fp8 ? 5 : 6, 2, 2>>(p, stream)
                                  : launch_shape<gemm_shape<F, 2, 1, 8, 1, 8, 2, 3>>(p, stream);
    if (nt <= 4 && pairs)
        return launch_shape<gemm_shape<F, 4, 2, 8, 1, fp8 ? 3 : 4, fp8 ? 1 : 2, 2>>(p, stream);
    if (nt <= 4)
        return wide ? launch_shape<gemm_shape<F, 4, 2, 8, 2, fp8 ? 3 : 4, fp8 ? 1 : 2, 1>>(p, stream)
                    : launch_shape<gemm_shape<F, 4, 1, 8, 1, fp8 ? 4 : 8, 2, 2>>(p, stream);
    if (pairs)
        return launch_shape<gemm_shape<F, 8, 2, 8, 1, 2, 1, 2>>(p, stream);
    return wide ? launch_shape<gemm_shape<F, 8, 4, 8, 1, fp8 ? 2 : 4, 2, 1>>(p, stream)
                : launch_shape<gemm_shape<F, 8, 1, 8, 1, fp8 ? 3 : 4, 1, 2>>(p, stream);
}

static struct gemm_args args_of(const struct gemm *a, enum epilogue epilogue)
{
    const struct matrix *w = a->w;
    struct gemm_args p = gemm_args_of(w, a->rows);
    p.w = (const uint4 *)w->data;
    p.scale = w->scale;
    p.x = (const uint2 *)a->x;
    p.y = a->y;
    p.square = a->square;
    p.inverse_rms = a->square && a->rows > FEW_ROWS ? a->scratch : NULL;
    p.row_scale = a->row_scale;
    p.log2_slices = gemm_log2_slices(p.tiles, p.loads);
    p.eps = a->eps;
    p.epilogue = epilogue;
    p.y_form = a->y_form;
    return p;
}

static int launch_gemm(const struct gemm_args *p, enum matrix_form form, void *stream)
{
    if (p->inverse_rms) {
        const int rc = launch_finish(p, stream);
        if (rc)
            return rc;
    }
    return form == MATRIX_FP8 ? launch_rows<MATRIX_FP8>(p, stream) : launch_rows<MATRIX_BF16>(p, stream);
}

KERN_API int gemm_cuda(const struct gemm *a, void *stream)
{
    const struct gemm_args p = args_of(a, a->accumulate ? EPILOGUE_ADD : EPILOGUE_STORE);
    return launch_gemm(&p, a->w->form, stream);
}

KERN_API int swiglu_cuda(const struct gemm *a, void *stream)
{
    const struct gemm_args p = args_of(a, EPILOGUE_SWIGLU);
    return launch_gemm(&p, a->w->form, stream);
}

KERN_API int residual_cuda(const struct residual *a, void *stream)
{
    struct gemm_args p = args_of(&a->product, EPILOGUE_RESIDUAL);
    p.gain = a->norm.w;
    p.normed = a->norm.y.act;
    p.normed_square = a->norm.y.square;
    p.y_form = a->norm.y.form;
    return launch_gemm(&p, a->product.w->form, stream);
}

KERN_API int qkv_cuda(const struct qkv *a, void *stream)
{
    struct gemm_args p = args_of(&a->product, EPILOGUE_ROTARY);
    const uint64_t head_tiles = (uint64_t)a->rope.kv.head_dim / TILE;
    p.raw = a->rope.qk_norm > 0;
    p.cos_sin = a->rope.rotate && !p.raw ? a->rope.cos_sin : NULL;
    p.temperature = p.raw ? NULL : a->rope.temperature;
    p.slot = a->rope.rows->slot;
    p.cell = a->rope.rows->cell;
    p.kv = a->rope.kv;
    p.heads = a->rope.heads;
    p.per_head = head_tiles > 1 ? (uint32_t)((((uint64_t)1 << 32) + head_tiles - 1) / head_tiles) : 0;
    const int rc = launch_gemm(&p, a->product.w->form, stream);
    return rc || !p.raw ? rc : rope_cuda(&a->rope, stream);
}
