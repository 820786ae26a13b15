/* matrix_pack: row-major weights of any dtype to panels (gemm.h). Done once at load; it moves each byte once
 * (FP8 reads it twice: the scale comes first), and each thread writes whole panels, so its first touch also
 * places their pages. */
#include "kernels/gemm_part.h"
#include <assert.h>
#include <math.h>

int matrix_source_n(const struct matrix_source *from)
{
    int n = 0;
    for (int i = 0; i < from->n_parts; i++)
        n += from->parts[i].n;
    return n;
}

size_t matrix_packed_bytes(int n, int k)
{
    return ((size_t)n + MATRIX_PANEL - 1) / MATRIX_PANEL * (((size_t)k + 1) / 2) * 2 * MATRIX_PANEL *
           sizeof(bf16);
}

/* Enough rows for the multiply-adds of a block to outlast the reading of its weights, few enough for half a
 * megabyte of second-level cache: 128 rows for k <= 1024, 8 for k >= 16384. */
size_t gemm_scratch(int k)
{
    int rows = k > 0 ? (1 << 17) / k / 8 * 8 : 8;
    rows = rows > 128 ? 128 : rows < 8 ? 8 : rows;
    return ((size_t)rows * (size_t)k + 15) / 16 * 16;
}

enum { CHUNK = 512 }; /* elements read at once */

/* An element's place in its lane of a panel. */
static size_t place(int i)
{
    return (size_t)(i / 2) * 2 * MATRIX_PANEL + (size_t)(i % 2);
}

static float scale_of(const struct matrix_part *p, const struct matrix_view *v, int row, int k)
{
    bf16 chunk[CHUNK];
    float most = 0;
    for (int at = -v->before; at < k + v->after; at += CHUNK) {
        const int n = k + v->after - at < CHUNK ? k + v->after - at : CHUNK;
        gemm_part_row(p, v, row, at, n, chunk);
        for (int i = 0; i < n; i++)
            most = fmaxf(most, fabsf(bf16_to_f32(chunk[i])));
    }
    return gemm_part_scale(most);
}

/* One output: row `row` of the part, to a lane of a panel. scale NULL: as it is. */
static void pack_row(const struct matrix_part *p, const struct matrix_view *v, int row, int k, float *scale,
                     bf16 *lane)
{
    bf16 chunk[CHUNK];
    const int rounded = p->dtype == DTYPE_FP8;
    if (scale)
        *scale = rounded ? ((const struct scaled *)p->data)->scale[row] : scale_of(p, v, row, k);
    for (int at = 0; at < k; at += CHUNK) {
        const int n = k - at < CHUNK ? k - at : CHUNK;
        gemm_part_row(p, v, row, at, n, chunk);
        for (int i = 0; i < n; i++)
            lane[place(at + i)] =
                scale && !rounded ? bf16_from_f32(fp8_to_f32(fp8_from_f32(bf16_to_f32(chunk[i]) / *scale)))
                                  : chunk[i];
    }
}

static void pack_panel(struct matrix *w, const struct matrix_source *from, int panel)
{
    size_t size = ((size_t)w->k + 1) / 2 * 2 * MATRIX_PANEL;
    bf16 *dst = (bf16 *)w->data + (size_t)panel * size;
    memset(dst, 0, size * sizeof(bf16));
    for (int lane = 0; lane < MATRIX_PANEL; lane++) {
        const int output = from->flags == MATRIX_INTERLEAVE
                               ? panel % 2 * (w->n / 2) + panel / 2 * MATRIX_PANEL + lane
                               : panel * MATRIX_PANEL + lane;
        int part = 0, row = output;
        if (output >= w->n)
            break;
        while (row >= from->parts[part].n)
            row -= from->parts[part++].n;
        const struct matrix_view view = gemm_part_view(from, part);
        pack_row(&from->parts[part], &view, row, w->k, w->form == MATRIX_FP8 ? &w->scale[output] : NULL,
                 dst + (size_t)lane * 2);
    }
}

void matrix_pack_from(struct matrix *w, const struct matrix_source *from, int threads)
{
    int n = 0, panels = (w->n + MATRIX_PANEL - 1) / MATRIX_PANEL;
    const struct matrix_part *parts = from->parts;
    for (int i = 0; i < from->n_parts; i++) {
        n += parts[i].n;
        assert(parts[i].dtype != DTYPE_FP8 || w->form == MATRIX_FP8);
    }
    assert(n == w->n && from->k == w->k);
    assert(from->flags != MATRIX_INTERLEAVE ||
           (from->n_parts == 2 && parts[0].n == parts[1].n && parts[0].n % MATRIX_PANEL == 0));
    w->bytes =
        matrix_packed_bytes(w->n, w->k) + (w->form == MATRIX_FP8 ? (size_t)w->n * sizeof *w->scale : 0);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int panel = 0; panel < panels; panel++)
        pack_panel(w, from, panel);
}

void matrix_pack(struct matrix *w, const struct matrix_part *parts, int n_parts, enum matrix_flags flags,
                 int threads)
{
    matrix_pack_from(w,
                     &(struct matrix_source){
                         .parts = parts, .n_parts = n_parts, .k = w->k, .flags = flags, .form = w->form},
                     threads);
}

float matrix_at(const struct matrix *w, int row, int col)
{
    size_t panel = (size_t)(row / MATRIX_PANEL), lane = (size_t)(row % MATRIX_PANEL),
           pairs = ((size_t)w->k + 1) / 2;
    const bf16 *data = (const bf16 *)w->data + (panel * pairs * MATRIX_PANEL + lane) * 2;
    return bf16_to_f32(data[place(col)]) * (w->scale ? w->scale[row] : 1.0f);
}
