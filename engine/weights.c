/* weights: a checkpoint's tensors are lent as they lie in the file where a packer can read them so, else
 * copied once into the order that it reads; random ones are lent as a formula (kernels/synthetic.h), so that
 * no copy of them is ever made. */
#include "engine/weights.h"
#include "engine/err.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FULL_NAME_MAX = WEIGHT_NAME_MAX + 64, BLOCK = 64 };

/* Element (row, col) of a matrix is number start + row * row_step + col * col_step of its tensor. */
struct view {
    size_t start, row_step, col_step;
};

static enum dtype dtype_of(const struct tensor *t)
{
    if (strcmp(t->dtype, "F32") == 0)
        return DTYPE_F32;
    if (strcmp(t->dtype, "F8_E4M3") == 0)
        return DTYPE_FP8;
    return strcmp(t->dtype, "F16") == 0 ? DTYPE_F16 : DTYPE_BF16;
}

void weights_init(struct weights *from, struct checkpoint *ckpt, uint64_t seed, int threads)
{
    static const char nested[] = "language_model.";
    *from = (struct weights){.ckpt = ckpt, .prefix = "", .seed = seed, .threads = threads};
    if (ckpt && checkpoint_has(ckpt, "language_model.model.embed_tokens.weight"))
        from->prefix = nested;
}

void weights_deinit(struct weights *from)
{
    for (int i = 0; i < WEIGHTS_SPARE; i++)
        free(from->spare[i]);
    *from = (struct weights){0};
}

/* Experts come by the thousand and are all of a size: pages that are mapped once serve all of them. */
static void *buffer_take(struct weights *from, size_t bytes, size_t *got)
{
    for (int i = 0; i < WEIGHTS_SPARE; i++)
        if (from->spare[i] && from->spare_bytes[i] >= bytes) {
            void *p = from->spare[i];
            *got = from->spare_bytes[i];
            from->spare[i] = NULL;
            return p;
        }
    *got = bytes;
    return malloc(bytes);
}

static void buffer_give(struct weights *from, void *p, size_t bytes)
{
    for (int i = 0; p && i < WEIGHTS_SPARE; i++)
        if (!from->spare[i] || from->spare_bytes[i] < bytes) {
            void *smaller = from->spare[i];
            from->spare[i] = p;
            from->spare_bytes[i] = bytes;
            p = smaller;
            break;
        }
    free(p);
}

static void full_name(const struct weights *from, char out[FULL_NAME_MAX], const char *name, const char *rest)
{
    snprintf(out, FULL_NAME_MAX, "%s%s%s", from->prefix, name, rest);
}

int weights_has(const struct weights *from, const char *name)
{
    char full[FULL_NAME_MAX];
    full_name(from, full, name, "");
    return checkpoint_has(from->ckpt, full);
}

/* What is taken along one side of a matrix: [first, first + stored) of the file, then zeros up to `all`. */
struct span {
    int first, stored, all;
};

static struct span span_of(const struct weight_range *range, int n, int pad)
{
    if (range->n == 0)
        return (struct span){0, n, n + pad};
    const int left = n > range->first ? n - range->first : 0;
    return (struct span){range->first, left < range->stored ? left : range->stored, range->n};
}

static struct span rows_of(const struct weight_want *want)
{
    return span_of(&want->rows, want->n, want->n_pad);
}

static struct span cols_of(const struct weight_want *want)
{
    return span_of(&want->cols, want->k, want->k_pad);
}

int weights_cols(const struct weight_want *want)
{
    return cols_of(want).all;
}

/* The file's row that becomes row i. */
static int row_of(const struct weight_want *want, int i)
{
    if (!want->pairs)
        return i;
    const int head = i / want->pairs * want->pairs, r = i % want->pairs, half = want->pairs / 2;
    return head + (r < half ? 2 * r : 2 * (r - half) + 1);
}

/* Numbers on their way to a copy. */
struct move {
    const struct weight_want *want;
    struct view v;
    const char *data;
    struct span rows, cols;
    size_t line; /* bytes from a row of the copy to the next */
};

/* Where the file has the first number of row `row` of the copy. */
static size_t start_of(const struct move *m, int row)
{
    return m->v.start + (size_t)row_of(m->want, m->rows.first + row) * m->v.row_step +
           (size_t)m->cols.first * m->v.col_step;
}

/* Rows [row, row + rows) of a matrix whose columns lie apart in the file, square by square: a square is read
 * along the file and written along the copy. A constant size makes each element one move. */
static inline __attribute__((always_inline)) void gather(const struct move *m, size_t size, int row, int rows,
                                                         char *to)
{
    char square[BLOCK * BLOCK * 4];
    size_t from[BLOCK];
    const size_t line = m->line;
    for (int i = 0; i < rows; i++)
        from[i] = start_of(m, row + i) * size;
    for (int left = 0; left < m->cols.stored; left += BLOCK) {
        const int cols = m->cols.stored - left < BLOCK ? m->cols.stored - left : BLOCK;
        for (int col = 0; col < cols; col++) {
            const char *at = m->data + (size_t)(left + col) * m->v.col_step * size;
            for (int i = 0; i < rows; i++)
                memcpy(square + ((size_t)i * BLOCK + (size_t)col) * size, at + from[i], size);
        }
        for (int i = 0; i < rows; i++)
            memcpy(to + (size_t)i * line + (size_t)left * size, square + (size_t)i * BLOCK * size,
                   (size_t)cols * size);
    }
}

static void copy_rows(const struct move *m, size_t size, int row, int rows, char *to)
{
    const size_t line = m->line;
    if (m->cols.all > m->cols.stored)
        for (int i = 0; i < rows; i++)
            memset(to + (size_t)i * line, 0, (size_t)m->cols.all * size);
    for (int i = 0; m->v.col_step == 1 && i < rows; i++)
        memcpy(to + (size_t)i * line, m->data + start_of(m, row + i) * size, (size_t)m->cols.stored * size);
    if (m->v.col_step == 1)
        return;
    if (size == 1)
        gather(m, 1, row, rows, to);
    else if (size == 2)
        gather(m, 2, row, rows, to);
    else
        gather(m, 4, row, rows, to);
}

/* The numbers as a packer reads them: row-major, zeros appended. */
static void arrange(const struct weights *from, const struct move *m, size_t size, char *to)
{
#pragma omp parallel for num_threads(from->threads) schedule(static) if (from->threads > 1)
    for (int row = 0; row < m->rows.stored; row += BLOCK)
        copy_rows(m, size, row, m->rows.stored - row < BLOCK ? m->rows.stored - row : BLOCK,
                  to + (size_t)row * m->line);
    for (int row = m->rows.stored; row < m->rows.all; row++)
        memset(to + (size_t)row * m->line, 0, (size_t)m->cols.all * size);
}

/* Element i of a tensor in the file, where nothing is aligned. */
static float element(const struct tensor *t, size_t i)
{
    const enum dtype type = dtype_of(t);
    const char *at = (const char *)t->data + i * dtype_size(type);
    uint16_t half;
    float whole;
    if (type == DTYPE_F32) {
        memcpy(&whole, at, sizeof whole);
        return whole;
    }
    memcpy(&half, at, sizeof half);
    return type == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

/* Scales as people write them: one number, or, where rows is not 0, one a row. *n is how many. */
static int take_scales(struct weights *from, const char *name, int rows, const struct tensor **t, int *n)
{
    const struct tensor *found = checkpoint_peek(from->ckpt, name);
    struct checkpoint_want want = {{(size_t)rows, 1}, rows ? 2 : 0, CHECKPOINT_FLOATS};
    if (found && found->n_dims == 1)
        want =
            (struct checkpoint_want){{rows && found->shape[0] != 1 ? (size_t)rows : 1}, 1, CHECKPOINT_FLOATS};
    else if (found && found->n_dims == 0)
        want.n_dims = 0;
    TRY(checkpoint_take_as(from->ckpt, name, &want, t));
    *n = want.n_dims == 0 ? 1 : (int)want.shape[0];
    for (int i = 0; i < *n; i++)
        if (!(element(*t, (size_t)i) >= 0 && isfinite(element(*t, (size_t)i))))
            FAIL(ERR_FORMAT, "%s: tensor '%s': expected scales from 0 on, found %g at %d", from->ckpt->dir,
                 name, (double)element(*t, (size_t)i), i);
    return 0;
}

/* Of FP8 numbers: a scale for each row of the part, those of appended rows 1. `joint` is what stands between
 * a tensor's name and that of its scale. */
static int read_scales(struct weights *from, const struct weight_want *want, const char *base, char joint,
                       struct weight *w)
{
    const struct tensor *t = NULL;
    char name[FULL_NAME_MAX], rest[16];
    const struct span rows = rows_of(want);
    int n = 0;
    snprintf(rest, sizeof rest, "%cweight_scale", joint);
    full_name(from, name, base, rest);
    TRY_CTX(take_scales(from, name, joint == '.' ? want->n : 0, &t, &n), "the scale of F8_E4M3 '%s'",
            w->tensor->name);
    w->scale = malloc((size_t)rows.all * sizeof *w->scale);
    if (!w->scale)
        FAIL(ERR_MEMORY, "tensor '%s': out of memory for its scales", name);
    for (int i = 0; i < rows.all; i++)
        w->scale[i] = i >= rows.stored ? 1.0f : element(t, n == 1 ? 0 : (size_t)row_of(want, rows.first + i));
    snprintf(rest, sizeof rest, "%cinput_scale", joint);
    full_name(from, name, base, rest);
    if (checkpoint_has(from->ckpt, name)) {
        TRY(take_scales(from, name, 0, &t, &n));
        w->input_scale = element(t, 0);
    }
    return 0;
}

/* A copy of what is taken; where a scale is still to be found, the whole row lies to the right of its share.
 */
static int lend_copy(struct weights *from, const struct weight_want *want, const struct view *v,
                     struct weight *w)
{
    const size_t size = dtype_size(dtype_of(w->tensor));
    const struct span share = cols_of(want), whole = {0, want->k, want->k};
    const int after = want->scaled_here && size > 1 && share.stored < want->k ? want->k : 0;
    const size_t row = (size_t)(share.all + after);
    struct move m = {want, *v, w->tensor->data, rows_of(want), share, row * size};
    w->copy = buffer_take(from, (size_t)m.rows.all * m.line, &w->copy_bytes);
    if (!w->copy)
        FAIL(ERR_MEMORY, "tensor '%s': out of memory for %zu bytes of it", w->tensor->name,
             (size_t)m.rows.all * m.line);
    arrange(from, &m, size, w->copy);
    m.cols = whole;
    if (after)
        arrange(from, &m, size, (char *)w->copy + (size_t)share.all * size);
    w->view = (struct matrix_view){0, row, 1, 0, after};
    return 0;
}

/* From the first to the last number that is taken, in the file. */
static struct read_range range_of(const struct weight_want *want, const struct view *v,
                                  const struct weight *w)
{
    const size_t size = dtype_size(dtype_of(w->tensor));
    const struct span rows = rows_of(want), cols = cols_of(want);
    if (rows.stored == 0 || cols.stored == 0)
        return (struct read_range){w->tensor->data, 0};
    const size_t first = v->start + (size_t)rows.first * v->row_step + (size_t)cols.first * v->col_step;
    const size_t last =
        first + (size_t)(rows.stored - 1) * v->row_step + (size_t)(cols.stored - 1) * v->col_step;
    return (struct read_range){(const char *)w->tensor->data + first * size, (last - first + 1) * size};
}

static int tell_readers(struct weights *from, const struct read_range *range)
{
    if (from->ahead && from->counts)
        return readahead_note(from->ahead, range->at, range->bytes);
    if (from->ahead)
        readahead_next(from->ahead);
    return 0;
}

/* w->tensor is taken. */
static int lend(struct weights *from, const struct weight_want *want, const struct view *v, const char *base,
                char joint, struct weight *w)
{
    const enum dtype type = dtype_of(w->tensor);
    const struct span rows = rows_of(want), cols = cols_of(want);
    const int padded = rows.all > rows.stored || cols.all > cols.stored;
    const void *numbers = w->tensor->data;
    w->used = range_of(want, v, w);
    TRY(tell_readers(from, &w->used));
    w->view =
        (struct matrix_view){v->start + (size_t)rows.first * v->row_step + (size_t)cols.first * v->col_step,
                             v->row_step, v->col_step, cols.first, want->k - cols.first - cols.all};
    if (!from->counts && ((v->col_step != 1 && !from->transposes) || padded || want->pairs)) {
        TRY(lend_copy(from, want, v, w));
        numbers = w->copy;
    }
    w->part = (struct matrix_part){.data = numbers, .dtype = type, .n = rows.all};
    if (type != DTYPE_FP8)
        return 0;
    TRY(read_scales(from, want, base, joint, w));
    w->rounded = (struct scaled){numbers, w->scale};
    w->part.data = &w->rounded;
    return 0;
}

/* Rows of exactly these norms, which a formula does not give. */
static int lend_normed(struct weights *from, const struct weight_want *want, struct weight *out)
{
    const size_t k = (size_t)want->k;
    bf16 *rows = NULL;
    out->copy_bytes = (size_t)want->n * k * sizeof *rows;
    rows = out->copy = buffer_take(from, out->copy_bytes, &out->copy_bytes);
    if (!rows)
        FAIL(ERR_MEMORY, "%s: out of memory for %d random rows", want->name, want->n);
    for (int r = 0; r < want->n; r++) {
        double square = 0;
        for (size_t i = 0; i < k; i++) {
            const double v = bf16_to_f32(synthetic_at(&out->random, (size_t)r * k + i));
            square += v * v;
        }
        const float by = square > 0 ? want->norms[r] / (float)sqrt(square) : 0;
        for (size_t i = 0; i < k; i++)
            rows[(size_t)r * k + i] =
                bf16_from_f32(by * bf16_to_f32(synthetic_at(&out->random, (size_t)r * k + i)));
    }
    out->part = (struct matrix_part){.data = rows, .dtype = DTYPE_BF16, .n = want->n};
    return 0;
}

static void lend_random(struct weights *from, const struct weight_want *want, struct weight *out)
{
    const int k = want->k + want->k_pad;
    const struct span rows = rows_of(want), cols = cols_of(want);
    const float scale = want->spread > 0 ? want->spread : 1.0f / sqrtf((float)k);
    out->random = (struct synthetic){from->seed, from->next++, scale};
    out->part = (struct matrix_part){.data = &out->random, .dtype = DTYPE_SYNTHETIC, .n = rows.all};
    out->view = (struct matrix_view){(size_t)rows.first * (size_t)k + (size_t)cols.first, (size_t)k, 1,
                                     cols.first, k - cols.first - cols.all};
}

static unsigned dtypes_of(const struct weight_want *want)
{
    return CHECKPOINT_FLOATS | (want->rounded ? CHECKPOINT_FP8 : 0u);
}

int weights_matrix(struct weights *from, const struct weight_want *want, struct weight *out)
{
    char name[FULL_NAME_MAX];
    const struct checkpoint_want shape = {{(size_t)want->n, (size_t)want->k}, 2, dtypes_of(want)};
    const struct view v = {0, (size_t)want->k, 1};
    *out = (struct weight){0};
    if (!from->ckpt) {
        lend_random(from, want, out);
        return want->norms ? lend_normed(from, want, out) : 0;
    }
    full_name(from, name, want->name, ".weight");
    TRY(checkpoint_take_as(from->ckpt, name, &shape, &out->tensor));
    return lend(from, want, &v, want->name, '.', out);
}

int weights_expert(struct weights *from, const struct weight_want *want, const struct weight_fused *fused,
                   struct weight *out)
{
    char name[FULL_NAME_MAX], single[FULL_NAME_MAX];
    const size_t n = (size_t)fused->n, k = (size_t)want->k;
    const struct checkpoint_want shape = {{(size_t)fused->count, k, n}, 3, dtypes_of(want)};
    const struct view v = {(size_t)fused->index * k * n + (size_t)fused->first, 1, n};
    if (!from->ckpt)
        return weights_matrix(from, want, out);
    *out = (struct weight){0};
    full_name(from, name, fused->name, "");
    full_name(from, single, want->name, ".weight");
    if (!checkpoint_has(from->ckpt, name)) {
        if (fused->index == 0 && !checkpoint_has(from->ckpt, single))
            FAIL(ERR_FORMAT,
                 "%s: tensor '%s': expected [%d, %d, %d], or one for each expert from '%s' on, found neither",
                 from->ckpt->dir, name, fused->count, want->k, fused->n, single);
        return weights_matrix(from, want, out);
    }
    TRY(checkpoint_take_as(from->ckpt, name, &shape, &out->tensor));
    return lend(from, want, &v, fused->name, '_', out);
}

int weights_vector(struct weights *from, const char *name, int n, float *out)
{
    const struct tensor *t = NULL;
    char full[FULL_NAME_MAX];
    if (!from->ckpt) {
        const uint32_t tensor = from->next++;
        for (int i = 0; i < n; i++) {
            struct philox4 r = philox(from->seed, tensor, 0, PHILOX_SYNTHETIC, (uint32_t)i);
            out[i] = 1.0f + synthetic_normal(r.v[0], 0.1f);
        }
        return 0;
    }
    full_name(from, full, name, "");
    TRY(checkpoint_take(from->ckpt, full, (size_t)n, 0, &t));
    for (int i = 0; i < n; i++)
        out[i] = element(t, (size_t)i);
    checkpoint_release(from->ckpt, t->data, t->bytes);
    return 0;
}

int weights_scalar(struct weights *from, const char *name, float *out)
{
    const struct tensor *t = NULL;
    char full[FULL_NAME_MAX];
    int n = 0;
    full_name(from, full, name, "");
    TRY(take_scales(from, full, 0, &t, &n));
    *out = element(t, 0);
    return 0;
}

void weights_drop(struct weights *from, struct weight *w)
{
    if (w->tensor)
        checkpoint_release(from->ckpt, w->used.at, w->used.bytes);
    buffer_give(from, w->copy, w->copy_bytes);
    free(w->scale);
    *w = (struct weight){0};
}
