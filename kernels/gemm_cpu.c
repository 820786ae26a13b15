/* The product W x for 1 to any number of rows. One 64-byte line of W is 16 outputs times 2 inputs; a tile of
 * up to TILE rows takes a few panels at once so that enough independent chains hide the latency of a fused
 * multiply-add, and each line read from memory serves every row of the tile. With one row the weights stream
 * at the speed of memory; with 8 the multiply-adds take about as long as the stream and overlap it; more rows
 * come in blocks whose regrouped activations stay in the second-level cache while a group of panels is
 * applied to all of them.
 *
 * Results pass through a small buffer between the product and what is done with it (store, add, swiglu),
 * which keeps the inner loop in one place; the buffer costs 16 stores for every 16 k multiply-adds. */
#include "kernels/gemm.h"
#include "kernels/simd.h"
#include <omp.h>

/* TILE rows share a line of weights; GROUP panels are the unit of work. The accumulators of rows x panels
 * must fit the registers (32, 16, 16 of them) beside two of weights. */
#if defined(KERN_ISA_avx512)
enum { TILE = 8, WIDE_ROWS = 4, WIDE_PANELS = 4, PAIR_ROWS = 8 };
#elif defined(KERN_ISA_avx2)
enum { TILE = 5, WIDE_ROWS = 1, WIDE_PANELS = 4, PAIR_ROWS = 2 };
#else
enum { TILE = 2, WIDE_ROWS = 0, WIDE_PANELS = 4, PAIR_ROWS = 1 };
#endif
enum { GROUP = 4, LINE = 2 * MATRIX_PANEL, AHEAD = 64 /* lines of weights prefetched */ };

enum output { OUTPUT_STORE, OUTPUT_ADD, OUTPUT_SWIGLU };

/* Few rows wait for memory alone: the second-level cache takes more lines in flight than the first. With more
 * rows the multiply-adds are as slow as the stream, and a line must not cost them a trip to the second level.
 */
SIMD_FN void prefetch(const bf16 *at, int rows)
{
    if (rows <= 4)
        __builtin_prefetch(at, 0, 1);
    else
        __builtin_prefetch(at, 0, 3);
}

/* One input of all panels: w holds it as floats, x [rows]. */
SIMD_FN void step(const vreg *w, const float *x, int rows, int regs, vreg *acc)
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        vreg xr = vreg_set1(x[r]);
#pragma GCC unroll 16
        for (int v = 0; v < regs; v++)
            acc[r * regs + v] = vreg_fma(w[v], xr, acc[r * regs + v]);
    }
}

/* x [k][rows], out [rows][GROUP][16]; rows and panels are constants where this is inlined. */
SIMD_FN void product(const bf16 *w, size_t stride, const float *x, int k, int rows, int panels, float *out)
{
    const int regs = panels * V16_REGS;
    vreg acc[TILE * WIDE_PANELS * V16_REGS], wide[WIDE_PANELS * V16_REGS];
    vuint raw[WIDE_PANELS * V16_REGS];
#pragma GCC unroll 64
    for (int i = 0; i < rows * regs; i++)
        acc[i] = (vreg){0};
    for (int i = 0; i < k; i += 2, w += LINE, x += 2 * rows) {
        size_t ahead = AHEAD * LINE + (i + 2 * AHEAD < k ? 0 : (size_t)(panels - 1) * stride);
#pragma GCC unroll 16
        for (int v = 0; v < regs; v++) {
            const bf16 *at = w + (size_t)(v / V16_REGS) * stride + v % V16_REGS * 2 * VREG_LANES;
            if (v % V16_REGS == 0)
                prefetch(at + ahead, rows);
            memcpy(&raw[v], at, sizeof raw[v]);
            wide[v] = (vreg)(raw[v] << 16);
        }
        step(wide, x, rows, regs, acc);
        if (i + 1 == k)
            break; /* the last line's second half is padding, and x has nothing for it */
#pragma GCC unroll 16
        for (int v = 0; v < regs; v++)
            wide[v] = (vreg)(raw[v] & 0xffff0000u);
        step(wide, x + rows, rows, regs, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < regs; v++)
            memcpy(out + r * GROUP * MATRIX_PANEL + v * VREG_LANES, &acc[r * regs + v], sizeof *acc);
    }
}

/* panels <= GROUP for a constant number of rows. */
SIMD_FN void product_rows(const bf16 *w, size_t stride, const float *x, int k, int rows, int panels,
                          float *out)
{
    int p = 0;
    if (rows <= WIDE_ROWS)
        for (; p + WIDE_PANELS <= panels; p += WIDE_PANELS)
            product(w + (size_t)p * stride, stride, x, k, rows, WIDE_PANELS, out + p * MATRIX_PANEL);
    if (rows <= PAIR_ROWS)
        for (; p + 2 <= panels; p += 2)
            product(w + (size_t)p * stride, stride, x, k, rows, 2, out + p * MATRIX_PANEL);
    for (; p < panels; p++)
        product(w + (size_t)p * stride, stride, x, k, rows, 1, out + p * MATRIX_PANEL);
}

#define PRODUCT_OF(n)                                                                                        \
    static void product_##n(const bf16 *w, size_t stride, const float *x, int k, int panels, float *out)     \
    {                                                                                                        \
        product_rows(w, stride, x, k, n, panels, out);                                                       \
    }
PRODUCT_OF(1)
PRODUCT_OF(2)
#if !defined(KERN_ISA_portable)
PRODUCT_OF(3)
PRODUCT_OF(4)
PRODUCT_OF(5)
#endif
#if defined(KERN_ISA_avx512)
PRODUCT_OF(6)
PRODUCT_OF(7)
PRODUCT_OF(8)
#endif

typedef void product_fn(const bf16 *w, size_t stride, const float *x, int k, int panels, float *out);
static product_fn *const product_table[TILE + 1] = {
    NULL,      product_1, product_2,
#if !defined(KERN_ISA_portable)
    product_3, product_4, product_5,
#endif
#if defined(KERN_ISA_avx512)
    product_6, product_7, product_8,
#endif
};

static void finish_swiglu(const float *gate, const float *up, float *y)
{
    struct v16 g = v16_load(gate), one = v16_set1(1.0f);
    struct v16 d = v16_add(one, v16_exp(v16_sub(v16_set1(0.0f), g)));
    V16_EACH g.r[i_] /= d.r[i_];
    v16_store(y, v16_mul(g, v16_load(up)));
}

/* The scales of a tile's outputs and rows, applied to buf [rows][GROUP][16] where there are any. */
static void rescale(const struct gemm *a, enum output output, float *buf, int panel, int panels, int row,
                    int rows)
{
    const int n = a->w->n;
    if (!a->w->scale && !a->row_scale)
        return;
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            float *to = buf + (r * GROUP + p) * MATRIX_PANEL;
            const int first = output == OUTPUT_SWIGLU
                                  ? (panel + p) % 2 * (n / 2) + (panel + p) / 2 * MATRIX_PANEL
                                  : (panel + p) * MATRIX_PANEL;
            const int count = n - first < MATRIX_PANEL ? n - first : MATRIX_PANEL;
            for (int j = 0; a->w->scale && j < count; j++)
                to[j] *= a->w->scale[first + j];
            for (int j = 0; a->row_scale && j < count; j++)
                to[j] *= a->row_scale[row + r];
        }
}

/* buf [rows][GROUP][16] to its place in y, given at row 0 of the tile. */
static void finish(const struct gemm *a, enum output output, const float *buf, int panel, int panels,
                   int rows, float *y)
{
    int n = a->w->n, first = panel * MATRIX_PANEL;
    int count = n - first < panels * MATRIX_PANEL ? n - first : panels * MATRIX_PANEL;
    for (int r = 0; r < rows; r++, buf += GROUP * MATRIX_PANEL) {
        if (output == OUTPUT_SWIGLU) {
            float *to = y + (size_t)r * (n / 2) + first / 2;
            for (int p = 0; p < panels; p += 2, to += MATRIX_PANEL)
                finish_swiglu(buf + p * MATRIX_PANEL, buf + (p + 1) * MATRIX_PANEL, to);
        } else {
            float *to = y + (size_t)r * n + first;
            if (output == OUTPUT_STORE)
                memcpy(to, buf, (size_t)count * sizeof *to);
            else
                for (int j = 0; j < count; j++)
                    to[j] += buf[j];
        }
    }
}

/* Tile t of the block [row, row + rows) becomes dst [k][rows of the tile]. */
static void regroup(const struct gemm *a, int row, int rows, float *dst)
{
    int k = a->w->k;
    for (int t = 0; t < rows; t += TILE) {
        int n = rows - t < TILE ? rows - t : TILE;
        const float *x = (const float *)a->x + (size_t)(row + t) * k;
        float *d = dst + (size_t)t * k;
        if (n == TILE)
            for (int i = 0; i < k; i++)
                for (int r = 0; r < TILE; r++)
                    d[(size_t)i * TILE + r] = x[(size_t)r * k + i];
        else
            for (int i = 0; i < k; i++)
                for (int r = 0; r < n; r++)
                    d[(size_t)i * n + r] = x[(size_t)r * k + i];
    }
}

/* Panels [begin, end) of all rows by one thread. */
static void run_share(const struct gemm *a, enum output output, int begin, int end, float *scratch)
{
    float buf[GROUP * TILE * MATRIX_PANEL] __attribute__((aligned(64)));
    int k = a->w->k, ldy = output == OUTPUT_SWIGLU ? a->w->n / 2 : a->w->n;
    const bf16 *weights = a->w->data;
    size_t stride = (size_t)(k + 1) / 2 * LINE;
    int block = (int)(gemm_scratch(k) / (size_t)(k > 0 ? k : 1)) / TILE * TILE;
    for (int row = 0; row < a->rows; row += block) {
        int rows = a->rows - row < block ? a->rows - row : block;
        const float *x = rows == 1 ? (const float *)a->x + (size_t)row * k : scratch;
        if (rows > 1)
            regroup(a, row, rows, scratch);
        for (int panel = begin; panel < end; panel += GROUP) {
            int panels = end - panel < GROUP ? end - panel : GROUP;
            for (int t = 0; t < rows; t += TILE) {
                int n = rows - t < TILE ? rows - t : TILE;
                product_table[n](weights + (size_t)panel * stride, stride, x + (size_t)t * k, k, panels, buf);
                rescale(a, output, buf, panel, panels, row + t, n);
                finish(a, output, buf, panel, panels, n, (float *)a->y + (size_t)(row + t) * ldy);
            }
        }
    }
}

/* Shares are whole pairs of panels: swiglu needs G and U of the same outputs in one hand. */
static void run(const struct gemm *a, enum output output)
{
    int panels = (a->w->n + MATRIX_PANEL - 1) / MATRIX_PANEL, pairs = (panels + 1) / 2;
    int threads = a->threads < pairs ? a->threads : pairs;
    if (a->rows == 0)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        int begin = (int)((long long)pairs * t / n) * 2, end = (int)((long long)pairs * (t + 1) / n) * 2;
        run_share(a, output, begin, end < panels ? end : panels,
                  a->scratch + (size_t)t * gemm_scratch(a->w->k));
    }
}

void KERN_NAME(gemm)(const struct gemm *a)
{
    run(a, a->accumulate ? OUTPUT_ADD : OUTPUT_STORE);
}

void KERN_NAME(swiglu)(const struct gemm *a)
{
    run(a, OUTPUT_SWIGLU);
}
