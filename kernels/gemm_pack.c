/* matrix_pack: row-major weights of any dtype to panels (gemm.h). Done once at load; it moves each byte once,
 * and each thread writes whole panels, so its first touch also places their pages. */
#include "kernels/gemm_part.h"
#include <assert.h>

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

/* One output: row `row` of the part, to its lane of the panel. */
static void pack_row(const struct matrix_part *p, int row, int k, bf16 *panel, int lane)
{
    size_t start = (size_t)row * (size_t)k;
    for (int i = 0; i < k; i++)
        panel[((size_t)(i / 2) * MATRIX_PANEL + (size_t)lane) * 2 + i % 2] =
            gemm_part_at(p, start + (size_t)i);
}

static void pack_panel(struct matrix *w, const struct matrix_part *parts, int panel, enum matrix_flags flags)
{
    size_t size = ((size_t)w->k + 1) / 2 * 2 * MATRIX_PANEL;
    bf16 *dst = (bf16 *)w->data + (size_t)panel * size;
    memset(dst, 0, size * sizeof(bf16));
    for (int lane = 0; lane < MATRIX_PANEL; lane++) {
        int part = 0, row = panel * MATRIX_PANEL + lane;
        if (flags == MATRIX_INTERLEAVE) {
            part = panel % 2;
            row = panel / 2 * MATRIX_PANEL + lane;
        } else if (row >= w->n) {
            break;
        } else {
            while (row >= parts[part].n)
                row -= parts[part++].n;
        }
        pack_row(&parts[part], row, w->k, dst, lane);
    }
}

void matrix_pack(struct matrix *w, const struct matrix_part *parts, int n_parts, enum matrix_flags flags,
                 int threads)
{
    int n = 0, panels = (w->n + MATRIX_PANEL - 1) / MATRIX_PANEL;
    for (int i = 0; i < n_parts; i++)
        n += parts[i].n;
    assert(n == w->n);
    assert(flags == MATRIX_PLAIN ||
           (n_parts == 2 && parts[0].n == parts[1].n && parts[0].n % MATRIX_PANEL == 0));
    w->bytes = matrix_packed_bytes(w->n, w->k);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int panel = 0; panel < panels; panel++)
        pack_panel(w, parts, panel, flags);
}

float matrix_at(const struct matrix *w, int row, int col)
{
    size_t panel = (size_t)(row / MATRIX_PANEL), lane = (size_t)(row % MATRIX_PANEL),
           pairs = ((size_t)w->k + 1) / 2;
    const bf16 *data = w->data;
    return bf16_to_f32(
        data[((panel * pairs + (size_t)(col / 2)) * MATRIX_PANEL + lane) * 2 + (size_t)col % 2]);
}
