/* Cache layout, rope, attention and moving cells on every instruction set of this machine. Cells that no row
 * may see hold NaN, so that a look at one shows. */
#include "kernels/cpu.h"
#include "kernels/fp8.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_NODES = 24, MAX_POSITIONS = 160, CAP = 208, SLOTS = 2, MAX_THREADS = 4 };

static const struct {
    int heads, kv_heads, dim;
} shapes[] = {{1, 1, 16}, {9, 3, 64}, {8, 1, 128}, {5, 1, 16}, {4, 2, 80}, {2, 2, 64}, {6, 3, 32}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void *alloc(size_t floats)
{
    void *p = aligned_alloc(64, (floats * sizeof(float) + 64) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static float value(uint32_t stream, uint32_t a, uint32_t b)
{
    return 4 * philox_uniform(philox(13, stream, a, 0, b).v[0]) - 2;
}

static struct kv_layer kv_new(int kv_heads, int dim)
{
    struct kv_layer kv = {.slots = SLOTS, .kv_heads = kv_heads, .head_dim = dim, .cap = CAP};
    size_t n = (size_t)SLOTS * (size_t)kv_heads * CAP * (size_t)dim;
    kv.k = alloc(n);
    kv.v = alloc(n);
    for (size_t i = 0; i < n; i++)
        kv_key(&kv, 0, 0, 0)[i] = kv_value(&kv, 0, 0, 0)[i] = NAN;
    return kv;
}

static void kv_free(struct kv_layer *kv)
{
    free(kv->k);
    free(kv->v);
}

/* The key and value that token `token` has at a position, in a cell of slot 1. */
static void kv_set(const struct kv_layer *kv, int cell, int token)
{
    for (int h = 0; h < kv->kv_heads; h++) {
        float *k = kv_key(kv, 1, h, cell), *v = kv_value(kv, 1, h, cell);
        for (int d = 0; d < kv->head_dim; d++) {
            k[d * KV_BLOCK] = value(1, (uint32_t)token, (uint32_t)(h * 1000 + d));
            v[d] = value(2, (uint32_t)token, (uint32_t)(h * 1000 + d));
        }
    }
}

static void kv_erase(const struct kv_layer *kv, int cell)
{
    for (int h = 0; h < kv->kv_heads; h++)
        for (int d = 0; d < kv->head_dim; d++)
            kv_key(kv, 1, h, cell)[d * KV_BLOCK] = kv_value(kv, 1, h, cell)[d] = NAN;
}

/* --- attention over trees
 * --------------------------------------------------------------------------------------- */

/* A committed text and a random tree after it; node i's row, cells anywhere behind the text. */
struct tree {
    int committed, n;
    int parent[MAX_NODES], depth[MAX_NODES]; /* parent -1: the text's last token */
    int token[MAX_NODES], slot[MAX_NODES], pos[MAX_NODES], cell[MAX_NODES], base[MAX_NODES],
        path_off[MAX_NODES];
    int path[MAX_NODES * MAX_NODES];
};

static uint32_t draw(uint32_t seed, uint32_t i, uint32_t below)
{
    return philox(17, seed, 0, 0, i).v[0] % below;
}

static void tree_init(struct tree *t, uint32_t seed, int committed, int n)
{
    int taken[CAP] = {0}, offset = 0;
    t->committed = committed;
    t->n = n;
    for (int i = 0; i < n; i++) {
        t->parent[i] = (int)draw(seed, (uint32_t)i, (uint32_t)i + 1) - 1;
        t->depth[i] = t->parent[i] < 0 ? 0 : t->depth[t->parent[i]] + 1;
        int cell = committed + (int)draw(seed, 100 + (uint32_t)i, CAP - (uint32_t)committed);
        while (taken[cell])
            cell = cell + 1 < CAP ? cell + 1 : committed;
        taken[cell] = 1;
        t->token[i] = 500 + i;
        t->slot[i] = 1;
        t->cell[i] = cell;
        t->pos[i] = committed + t->depth[i];
        t->base[i] = committed;
        t->path_off[i] = offset;
        for (int node = i, d = t->depth[i]; d >= 0; node = t->parent[node], d--)
            t->path[offset + d] = t->cell[node];
        offset += t->depth[i] + 1;
    }
}

static struct rows tree_rows(const struct tree *t, int first, int n)
{
    return (struct rows){n,
                         t->token + first,
                         t->slot + first,
                         t->pos + first,
                         t->cell + first,
                         t->base + first,
                         t->path_off + first,
                         t->path};
}

struct setup {
    struct attention a;
    struct kv_layer tree_kv, chain_kv;
    float *qkv, *y, *expected, *scratch;
    size_t row; /* floats of y a row */
};

static void setup_init(struct setup *s, int shape, const struct tree *t)
{
    int heads = shapes[shape].heads, kv_heads = shapes[shape].kv_heads, dim = shapes[shape].dim;
    size_t in = (size_t)(heads + 2 * kv_heads) * (size_t)dim;
    s->row = (size_t)heads * (size_t)dim;
    s->tree_kv = kv_new(kv_heads, dim);
    s->chain_kv = kv_new(kv_heads, dim);
    s->qkv = alloc(MAX_NODES * in);
    s->y = alloc(MAX_NODES * s->row);
    s->expected = alloc(MAX_NODES * s->row);
    s->scratch = alloc(MAX_THREADS * attention_scratch(heads, kv_heads, dim, CAP));
    for (size_t i = 0; i < MAX_NODES * in; i++)
        s->qkv[i] = value(3, 0, (uint32_t)i);
    for (int p = 0; p < t->committed; p++)
        kv_set(&s->tree_kv, p, p);
    for (int i = 0; i < t->n; i++)
        kv_set(&s->tree_kv, t->cell[i], t->token[i]);
    s->a =
        (struct attention){.qkv = s->qkv, .kv = s->tree_kv, .y = s->y, .scratch = s->scratch, .heads = heads};
    s->a.scale = 1 / sqrtf((float)dim);
    s->a.threads = 1;
}

static void setup_deinit(struct setup *s)
{
    kv_free(&s->tree_kv);
    kv_free(&s->chain_kv);
    free(s->qkv);
    free(s->y);
    free(s->expected);
    free(s->scratch);
}

/* Row i alone, its sequence laid out as plain text: cell = position, no path. What lies before its chunk is
 * not there. */
static void attend_as_chain(struct setup *s, const struct cpu_kernels *cpu, const struct tree *t, int i)
{
    struct tree chain = {.slot = {1}, .pos = {t->pos[i]}, .cell = {t->pos[i]}, .base = {t->pos[i] + 1}};
    struct rows rows = tree_rows(&chain, 0, 1);
    struct attention a = s->a;
    for (int p = 0; p < t->committed; p++)
        kv_set(&s->chain_kv, p, p);
    for (int node = i; node >= 0; node = t->parent[node])
        kv_set(&s->chain_kv, t->pos[node], t->token[node]);
    for (int p = 0; p < attention_first(a.chunk, t->pos[i]); p++)
        kv_erase(&s->chain_kv, p);
    a.rows = &rows;
    a.kv = s->chain_kv;
    a.qkv += (size_t)i * (size_t)(a.heads + 2 * a.kv.kv_heads) * (size_t)a.kv.head_dim;
    a.y = s->expected + (size_t)i * s->row;
    cpu->attention(&a);
}

static void attend_rows(struct setup *s, const struct cpu_kernels *cpu, const struct tree *t, int first,
                        int n, int threads)
{
    struct rows rows = tree_rows(t, first, n);
    struct attention a = s->a;
    a.rows = &rows;
    a.threads = threads;
    a.qkv += (size_t)first * (size_t)(a.heads + 2 * a.kv.kv_heads) * (size_t)a.kv.head_dim;
    a.y = (float *)a.y + (size_t)first * s->row;
    cpu->attention(&a);
}

static void expect_chain(const struct setup *s, const struct cpu_kernels *cpu, const struct tree *t,
                         int threads)
{
    for (int i = 0; i < t->n; i++)
        ck_assert_msg(
            memcmp(s->y + (size_t)i * s->row, s->expected + (size_t)i * s->row, s->row * sizeof(float)) == 0,
            "%s, %d threads: node %d at depth %d after %d differs from its sequence as a chain", cpu->name,
            threads, i, t->depth[i], t->committed);
}

static void check_nodes(int shape, uint32_t seed, int committed, int chunk)
{
    for (int i = 0; cpu_kernels_at(i); i++) {
        const struct cpu_kernels *cpu = cpu_kernels_at(i);
        struct tree t;
        struct setup s;
        tree_init(&t, seed, committed, 2 + (int)draw(seed, 999, MAX_NODES - 1));
        setup_init(&s, shape, &t);
        s.a.chunk = chunk;
        for (int node = 0; node < t.n; node++)
            attend_as_chain(&s, cpu, &t, node);
        for (int threads = 1; threads <= MAX_THREADS; threads++) {
            attend_rows(&s, cpu, &t, 0, t.n, threads);
            expect_chain(&s, cpu, &t, threads);
            memset(s.y, 0, (size_t)t.n * s.row * sizeof(float));
            for (int r = 0, size = 1; r < t.n; r += size, size++)
                attend_rows(&s, cpu, &t, r, t.n - r < size ? t.n - r : size, threads);
            expect_chain(&s, cpu, &t, threads);
        }
        setup_deinit(&s);
    }
}

START_TEST(a_node_sees_exactly_its_sequence_bit_for_bit)
{
    static const int committed[] = {0, 1, 15, 16, 17, 31, 64, 100, 129};
    for (uint32_t c = 0; c < 9; c++)
        check_nodes(_i, c, committed[c], 0);
}
END_TEST

/* Trees that begin before, at and after a border, and cross one or several. */
START_TEST(a_node_sees_exactly_its_chunk_bit_for_bit)
{
    static const struct {
        int committed, chunk;
    } cases[] = {{0, 1},   {30, 2},  {33, 3},  {16, 16},  {47, 16},
                 {63, 64}, {64, 64}, {99, 25}, {118, 40}, {60, 200}};
    for (uint32_t c = 0; c < sizeof cases / sizeof *cases; c++)
        check_nodes(_i, 20 + c, cases[c].committed, cases[c].chunk);
}
END_TEST

/* A chunk that begins at a multiple of KV_BLOCK is a text of its own, to the bit. */
START_TEST(a_chunk_is_a_text_of_its_own)
{
    enum { FROM = 48, N = 21 };
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct tree t = {
            .committed = FROM + N, .n = 1, .slot = {1}, .pos = {FROM + N - 1}, .base = {FROM + N}};
        struct setup s;
        setup_init(&s, _i, &t);
        s.a.chunk = FROM;
        attend_rows(&s, cpu_kernels_at(i), &t, 0, 1, 1);
        memcpy(s.expected, s.y, s.row * sizeof(float));
        t.pos[0] = N - 1;
        t.base[0] = N;
        for (int p = 0; p < N; p++)
            kv_set(&s.tree_kv, p, FROM + p);
        attend_rows(&s, cpu_kernels_at(i), &t, 0, 1, 1);
        ck_assert_mem_eq(s.y, s.expected, s.row * sizeof(float));
        setup_deinit(&s);
    }
}
END_TEST

/* Error of one output over sum p |v|: a score is off by (dim + 3) eps sum |q k| scale (products, scale,
 * difference from the maximum, itself off as much); weights by that and 2 ulp of exp; both sums by one eps an
 * addition. */
static double relative_bound(const struct setup *s, const struct tree *t, int i, int h)
{
    int dim = s->a.kv.head_dim, group = s->a.heads / s->a.kv.kv_heads;
    int first = attention_first(s->a.chunk, t->pos[i]), n = t->pos[i] + 1 - first;
    const float *q =
        s->qkv + ((size_t)i * (size_t)(s->a.heads + 2 * s->a.kv.kv_heads) + (size_t)h) * (size_t)dim;
    struct rows rows = tree_rows(t, 0, t->n);
    double largest = 0;
    for (int p = first; p <= t->pos[i]; p++) {
        const float *k = kv_key(&s->tree_kv, 1, h / group, rows_cell(&rows, i, p));
        double size = 0;
        for (int d = 0; d < dim; d++)
            size += fabs((double)q[d] * k[d * KV_BLOCK]);
        largest = fmax(largest, size * s->a.scale);
    }
    return 0x1p-24 * (2 * (2 * (dim + 3) * largest + 4) + n + n / 16 + 8);
}

START_TEST(it_is_within_its_bound_of_the_reference)
{
    struct tree t;
    struct setup s;
    tree_init(&t, 50, 120, MAX_NODES);
    setup_init(&s, _i % N_SHAPES, &t);
    s.a.chunk = _i < N_SHAPES ? 0 : 61; /* its border at 122 lies in the tree */
    int dim = s.a.kv.head_dim;
    struct rows rows = tree_rows(&t, 0, t.n);
    struct attention ref = s.a;
    ref.rows = &rows;
    ref.y = s.expected;
    attention_ref(&ref);
    for (int i = 0; cpu_kernels_at(i); i++) {
        double worst = 0;
        int at = 0;
        attend_rows(&s, cpu_kernels_at(i), &t, 0, t.n, 2);
        for (int j = 0; j < t.n * (int)s.row; j++) {
            int row = j / (int)s.row, h = j % (int)s.row / dim;
            double bound = relative_bound(&s, &t, row, h) * 2; /* |v| <= 2, so sum p |v| <= 2 */
            double share = fabs((double)s.y[j] - s.expected[j]) / bound;
            if (!(share <= worst)) {
                worst = share;
                at = j;
            }
        }
        printf("%s: worst at %d, %.1f %% of the bound\n", cpu_kernels_at(i)->name, at, 100 * worst);
        ck_assert_msg(worst <= 1, "%s: output %d is %.9g, expected %.9g", cpu_kernels_at(i)->name, at,
                      s.y[at], s.expected[at]);
    }
    setup_deinit(&s);
}
END_TEST

/* Equal keys give equal weights: with 2^m positions the output is the mean of the values, exact for small
 * integers. */
START_TEST(small_integers_are_exact)
{
    struct tree t = {.committed = 64, .n = 1, .slot = {1}, .pos = {63}, .base = {64}};
    struct setup s;
    setup_init(&s, _i, &t);
    int dim = s.a.kv.head_dim, kv_heads = s.a.kv.kv_heads;
    for (int p = 0; p < 64; p++)
        for (int h = 0; h < kv_heads; h++)
            for (int d = 0; d < dim; d++) {
                kv_key(&s.tree_kv, 1, h, p)[d * KV_BLOCK] = (float)(d % 3);
                kv_value(&s.tree_kv, 1, h, p)[d] = (float)((p * 7 + d + h) % 32);
            }
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        struct rows rows = tree_rows(&t, 0, 1);
        struct attention a = s.a;
        a.rows = &rows;
        (i < 0 ? attention_ref : cpu_kernels_at(i)->attention)(&a);
        for (int h = 0; h < a.heads; h++)
            for (int d = 0; d < dim; d++) {
                int sum = 0;
                for (int p = 0; p < 64; p++)
                    sum += (p * 7 + d + h / (a.heads / kv_heads)) % 32;
                if (s.y[h * dim + d] != (float)sum / 64)
                    ck_abort_msg("head %d component %d is %g, expected %g", h, d, s.y[h * dim + d],
                                 (float)sum / 64);
            }
    }
    setup_deinit(&s);
}
END_TEST

/* Scores so far apart that all exponentials but one underflow: the value of that position, nothing else. */
START_TEST(an_overwhelming_key_takes_all)
{
    struct tree t = {.committed = 40, .n = 1, .slot = {1}, .pos = {39}, .base = {40}};
    struct setup s;
    setup_init(&s, 1, &t);
    int dim = s.a.kv.head_dim;
    for (int d = 0; d < dim; d++) {
        for (int h = 0; h < s.a.heads; h++)
            s.qkv[h * dim + d] = 1e4f;
        for (int h = 0; h < s.a.kv.kv_heads; h++)
            kv_key(&s.tree_kv, 1, h, 21)[d * KV_BLOCK] = 1e4f;
    }
    for (int i = 0; cpu_kernels_at(i); i++) {
        attend_rows(&s, cpu_kernels_at(i), &t, 0, 1, 1);
        for (int h = 0; h < s.a.heads; h++)
            ck_assert_mem_eq(s.y + h * dim, kv_value(&s.tree_kv, 1, h / 3, 21), (size_t)dim * sizeof(float));
    }
    setup_deinit(&s);
}
END_TEST

/* A row of nobody leaves its output, whose meaning is none, and the others as they are without it. */
START_TEST(attention_passes_over_rows_of_nobody)
{
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct tree t;
        struct setup s;
        tree_init(&t, 3, 40, MAX_NODES);
        setup_init(&s, _i, &t);
        attend_rows(&s, cpu_kernels_at(i), &t, 0, t.n, 1);
        memcpy(s.expected, s.y, (size_t)t.n * s.row * sizeof(float));
        memset(s.y, 0, (size_t)t.n * s.row * sizeof(float));
        for (int r = 1; r < t.n; r += 2) {
            t.slot[r] = -1;
            memset(s.expected + (size_t)r * s.row, 0, s.row * sizeof(float));
        }
        attend_rows(&s, cpu_kernels_at(i), &t, 0, t.n, 2);
        ck_assert_mem_eq(s.y, s.expected, (size_t)t.n * s.row * sizeof(float));
        setup_deinit(&s);
    }
}
END_TEST

/* --- rope
 * ---------------------------------------------------------------------------------------------------------
 */

enum { ROPE_ROWS = 20 };

struct rope_case {
    struct tree t; /* rows in odd cells of slot i % SLOTS */
    float *qkv, *table, inv_freq[64];
    struct kv_layer kv;
    size_t row;
    int heads;
    int nope; /* nothing is rotated */
    float qk_norm;
    float qk_gain[2 * 128];       /* likewise */
    float temperature[ROPE_ROWS]; /* in use if the first is not 0 */
};

static void rope_case_init(struct rope_case *c, int shape)
{
    int dim = shapes[shape].dim;
    *c = (struct rope_case){.heads = shapes[shape].heads, .kv = kv_new(shapes[shape].kv_heads, dim)};
    c->row = (size_t)(c->heads + 2 * c->kv.kv_heads) * (size_t)dim;
    c->qkv = alloc(ROPE_ROWS * c->row);
    c->table = alloc(ROPE_ROWS * (size_t)dim);
    for (size_t i = 0; i < ROPE_ROWS * c->row; i++)
        c->qkv[i] = value(4, 0, (uint32_t)i);
    for (int j = 0; j < dim / 2; j++)
        c->inv_freq[j] = powf(10000, -2.0f * (float)j / (float)dim);
    for (int i = 0; i < ROPE_ROWS; i++) {
        c->t.slot[i] = i % SLOTS;
        c->t.cell[i] = 2 * i + 1;
        c->t.pos[i] = 37 * i;
    }
    struct rows rows = tree_rows(&c->t, 0, ROPE_ROWS);
    rope_table(&rows, c->inv_freq, dim, c->table);
}

static void rope_case_deinit(struct rope_case *c)
{
    kv_free(&c->kv);
    free(c->qkv);
    free(c->table);
}

static void rope_run(struct rope_case *c, void (*f)(const struct rope *), int first, int n, int threads)
{
    struct rows rows = tree_rows(&c->t, first, n);
    struct rope a = {.rows = &rows,
                     .kv = c->kv,
                     .heads = c->heads,
                     .threads = threads,
                     .rotate = !c->nope,
                     .qk_norm = c->qk_norm};
    if (c->qk_gain[0] != 0)
        a.qk_gain = c->qk_gain;
    if (c->temperature[0] != 0)
        a.temperature = c->temperature + first;
    a.qkv = c->qkv + (size_t)first * c->row;
    a.cos_sin = c->table + (size_t)first * (size_t)c->kv.head_dim;
    f(&a);
}

START_TEST(the_rope_table_holds_cosines_then_sines)
{
    struct rope_case c;
    rope_case_init(&c, _i);
    int half = c.kv.head_dim / 2;
    for (int r = 0; r < ROPE_ROWS; r++)
        for (int j = 0; j < half; j++) {
            float angle = (float)c.t.pos[r] * c.inv_freq[j];
            ck_assert_double_eq_tol(c.table[r * 2 * half + j], cos(angle), 0x1p-23);
            ck_assert_double_eq_tol(c.table[r * 2 * half + half + j], sin(angle), 0x1p-23);
        }
    rope_case_deinit(&c);
}
END_TEST

/* A rotation of |x| <= 2 has two products and a sum: 3 eps of at most 4. */
START_TEST(rope_is_within_its_bound_and_fills_the_cells)
{
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct rope_case c, ref;
        rope_case_init(&c, _i);
        rope_case_init(&ref, _i);
        int dim = c.kv.head_dim;
        rope_run(&ref, rope_ref, 0, ROPE_ROWS, 1);
        rope_run(&c, cpu_kernels_at(i)->rope, 0, ROPE_ROWS, 2);
        for (int r = 0; r < ROPE_ROWS; r++) {
            const float *q = c.qkv + (size_t)r * c.row, *v = q + (c.heads + c.kv.kv_heads) * dim;
            const float *expected = ref.qkv + (size_t)r * c.row;
            for (int j = 0; j < (int)c.row; j++)
                if (!(fabsf(q[j] - expected[j]) <= 3 * 4 * 0x1p-24f))
                    ck_abort_msg("row %d element %d is %g, expected %g", r, j, q[j], expected[j]);
            for (int h = 0; h < c.kv.kv_heads; h++) {
                const float *k = kv_key(&c.kv, c.t.slot[r], h, c.t.cell[r]);
                ck_assert_mem_eq(kv_value(&c.kv, c.t.slot[r], h, c.t.cell[r]), v + h * dim,
                                 (size_t)dim * sizeof(float));
                for (int d = 0; d < dim; d++)
                    if (k[d * KV_BLOCK] != q[(c.heads + h) * dim + d])
                        ck_abort_msg("row %d kv head %d component %d did not reach its cell", r, h, d);
            }
        }
        rope_case_deinit(&c);
        rope_case_deinit(&ref);
    }
}
END_TEST

/* The layers of Llama 4: rotated and normed; not rotated, with a temperature. Qwen3's: normed with gains from
 * 0.5 to 1.5, then rotated. */
enum { NORMED_LAYERS = 3 };
static void rope_case_of_norms(struct rope_case *c, int i)
{
    rope_case_init(c, i / NORMED_LAYERS);
    if (i % NORMED_LAYERS != 1) {
        c->qk_norm = 1e-5f;
        for (int d = 0; i % NORMED_LAYERS == 2 && d < 2 * c->kv.head_dim; d++)
            c->qk_gain[d] = 0.5f + (float)(d * 7 % 32) / 32;
        return;
    }
    c->nope = 1;
    for (int r = 0; r < ROPE_ROWS; r++)
        c->temperature[r] = 1 + 0.1f * (float)r;
}

/* Of a norm: the rotation's 3 eps, of at most 4, times at most 1 / rms; the squares' sum, its root and the
 * two factors (dim / 16 + 4 + 4) eps of the result. A temperature costs one eps. Before a rotation that error
 * is one of two components of at most 2 * 2 * 1.5, each of which reaches the result. */
START_TEST(norms_and_temperatures_are_within_their_bound)
{
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct rope_case c, ref;
        rope_case_of_norms(&c, _i);
        rope_case_of_norms(&ref, _i);
        const int dim = c.kv.head_dim;
        rope_run(&ref, rope_ref, 0, ROPE_ROWS, 1);
        rope_run(&c, cpu_kernels_at(i)->rope, 0, ROPE_ROWS, 2);
        for (int j = 0; j < ROPE_ROWS * (int)c.row; j++) {
            const int r = j / (int)c.row, h = j % (int)c.row / dim;
            const double factor =
                c.qk_norm > 0 ? 2 : 1; /* 1 / rms: of uniform values in +-2 it is near 0.87 */
            const double of = c.qk_gain[0] != 0 ? 2 * 6 : fabs((double)ref.qkv[j]);
            const double bound = 0x1p-24 * (3 * 4 * factor + (dim / 16 + 8) * of);
            if (!(fabs((double)c.qkv[j] - ref.qkv[j]) <= bound))
                ck_abort_msg("row %d head %d element %d is %.9g, expected %.9g", r, h, j, c.qkv[j],
                             ref.qkv[j]);
            if (h >= c.heads && h < c.heads + c.kv.kv_heads &&
                kv_key(&c.kv, c.t.slot[r], h - c.heads, c.t.cell[r])[j % dim * KV_BLOCK] != c.qkv[j])
                ck_abort_msg("row %d head %d: what reached the cache is not the key", r, h);
        }
        rope_case_deinit(&c);
        rope_case_deinit(&ref);
    }
}
END_TEST

START_TEST(normed_heads_have_a_mean_square_of_1)
{
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        struct rope_case c;
        rope_case_of_norms(&c, _i * NORMED_LAYERS);
        const int dim = c.kv.head_dim;
        rope_run(&c, i < 0 ? rope_ref : cpu_kernels_at(i)->rope, 0, ROPE_ROWS, 1);
        for (int r = 0; r < ROPE_ROWS; r++)
            for (int h = 0; h < c.heads + c.kv.kv_heads; h++) {
                double sum = 0;
                for (int d = 0; d < dim; d++)
                    sum += pow(c.qkv[(size_t)r * c.row + (size_t)(h * dim + d)], 2);
                ck_assert_double_eq_tol(sum / dim, 1, 1e-4); /* eps is 1e-5 of a mean square above 0.5 */
            }
        rope_case_deinit(&c);
    }
}
END_TEST

/* Without rotation keys stay as they are, and queries are multiplied by their row's temperature, once. */
START_TEST(a_layer_without_rotation_only_scales_queries)
{
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        struct rope_case c, was;
        rope_case_of_norms(&c, _i * NORMED_LAYERS + 1);
        rope_case_of_norms(&was, _i * NORMED_LAYERS + 1);
        rope_run(&c, i < 0 ? rope_ref : cpu_kernels_at(i)->rope, 0, ROPE_ROWS, 2);
        for (int j = 0; j < ROPE_ROWS * (int)c.row; j++) {
            const int r = j / (int)c.row, query = j % (int)c.row < c.heads * c.kv.head_dim;
            const float expected = query ? was.qkv[j] * c.temperature[r] : was.qkv[j];
            if (c.qkv[j] != expected)
                ck_abort_msg("row %d element %d is %.9g, expected %.9g", r, j, c.qkv[j], expected);
        }
        rope_case_deinit(&c);
        rope_case_deinit(&was);
    }
}
END_TEST

/* Values computed apart from this program: scale 0.1, floor 8192. */
START_TEST(the_temperature_rises_every_8192_positions)
{
    int pos[] = {0, 8190, 8191, 16382, 16383, 1048575};
    const double expected[] = {1, 1, 1.0693147, 1.0693147, 1.1098612, 1.4859812};
    enum { N = sizeof pos / sizeof *pos };
    float out[N];
    rope_temperature(&(struct temperature){
        .rows = &(struct rows){.n = N, .pos = pos}, .scale = 0.1f, .floor = 8192, .out = out});
    for (int i = 0; i < N; i++)
        ck_assert_double_eq_tol(out[i], expected[i], 2e-7);
}
END_TEST

/* Cells of form FP8 hold what the same rotation writes to wide ones, rounded; the queries do not change. */
START_TEST(fp8_cells_hold_the_rounded_keys_and_values)
{
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        void (*const rope)(const struct rope *) = i < 0 ? rope_ref : cpu_kernels_at(i)->rope;
        struct rope_case wide, fp8;
        int changed = 0;
        rope_case_init(&wide, _i);
        rope_case_init(&fp8, _i);
        fp8.kv.form = KV_FP8;
        rope_run(&wide, rope, 0, ROPE_ROWS, 2);
        rope_run(&fp8, rope, 0, ROPE_ROWS, 2);
        ck_assert_mem_eq(fp8.qkv, wide.qkv, ROPE_ROWS * wide.row * sizeof(float));
        size_t n = (size_t)SLOTS * (size_t)wide.kv.kv_heads * CAP * (size_t)wide.kv.head_dim;
        for (size_t j = 0; j < 2 * n; j++) {
            float was = ((const float *)(j < n ? wide.kv.k : wide.kv.v))[j % n],
                  got = ((const float *)(j < n ? fp8.kv.k : fp8.kv.v))[j % n];
            if (isnan(was) ? !isnan(got) : got != fp8_to_f32(fp8_from_f32(was)))
                ck_abort_msg("element %zu of the %s is %.9g, expected %.9g in FP8", j % n,
                             j < n ? "keys" : "values", got, was);
            changed += !isnan(was) && got != was;
        }
        ck_assert_int_gt(changed, 0);
        rope_case_deinit(&wide);
        rope_case_deinit(&fp8);
    }
}
END_TEST

/* Slot -1: no cell is written, and the other rows do not notice. */
START_TEST(rows_of_nobody_touch_no_cell)
{
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        void (*const rope)(const struct rope *) = i < 0 ? rope_ref : cpu_kernels_at(i)->rope;
        struct rope_case some, all;
        rope_case_init(&some, _i);
        rope_case_init(&all, _i);
        for (int r = 0; r < ROPE_ROWS; r += 3)
            some.t.slot[r] = -1;
        rope_run(&some, rope, 0, ROPE_ROWS, 2);
        for (int r = 0; r < ROPE_ROWS; r++)
            if (r % 3 != 0)
                rope_run(&all, rope, r, 1, 1);
        size_t n = (size_t)SLOTS * (size_t)all.kv.kv_heads * CAP * (size_t)all.kv.head_dim;
        ck_assert_mem_eq(some.kv.k, all.kv.k, n * sizeof(float));
        ck_assert_mem_eq(some.kv.v, all.kv.v, n * sizeof(float));
        rope_case_deinit(&some);
        rope_case_deinit(&all);
    }
}
END_TEST

START_TEST(rope_writes_no_other_cell)
{
    struct rope_case c;
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        rope_case_init(&c, _i);
        rope_run(&c, i < 0 ? rope_ref : cpu_kernels_at(i)->rope, 0, ROPE_ROWS, 2);
        size_t written = 0, n = (size_t)SLOTS * (size_t)c.kv.kv_heads * CAP * (size_t)c.kv.head_dim;
        for (size_t j = 0; j < n; j++)
            written +=
                (size_t)!isnan(kv_key(&c.kv, 0, 0, 0)[j]) + (size_t)!isnan(kv_value(&c.kv, 0, 0, 0)[j]);
        ck_assert_uint_eq(written, (size_t)(2 * ROPE_ROWS * c.kv.kv_heads * c.kv.head_dim));
        rope_case_deinit(&c);
    }
}
END_TEST

START_TEST(a_row_of_rope_is_the_same_in_every_batch)
{
    for (int i = 0; cpu_kernels_at(i); i++)
        for (int threads = 1; threads <= MAX_THREADS; threads++)
            for (int size = 2; size <= ROPE_ROWS; size += threads == 1 ? 1 : 9) {
                struct rope_case batch, alone;
                rope_case_of_norms(&batch, _i);
                rope_case_of_norms(&alone, _i);
                for (int r = 0; r < ROPE_ROWS; r++)
                    rope_run(&alone, cpu_kernels_at(i)->rope, r, 1, 1);
                for (int r = 0; r < ROPE_ROWS; r += size)
                    rope_run(&batch, cpu_kernels_at(i)->rope, r, ROPE_ROWS - r < size ? ROPE_ROWS - r : size,
                             threads);
                ck_assert_mem_eq(batch.qkv, alone.qkv, ROPE_ROWS * batch.row * sizeof(float));
                rope_case_deinit(&batch);
                rope_case_deinit(&alone);
            }
}
END_TEST

/* --- moving cells
 * ------------------------------------------------------------------------------------------------- */

START_TEST(moved_cells_hold_what_their_sources_held)
{
    struct kv_layer kv = kv_new(shapes[_i].kv_heads, shapes[_i].dim),
                    expected = kv_new(kv.kv_heads, kv.head_dim);
    int src[] = {30, 33, 34, 47, 48, 80},
        n = 6; /* the first stays where it is, the rest close up across blocks */
    for (int cell = 0; cell < CAP; cell++) {
        kv_set(&kv, cell, cell);
        kv_set(&expected, cell, cell >= 30 && cell < 30 + n ? src[cell - 30] : cell);
    }
    kv_move_ref(&(struct kv_move){.kv = kv, .slot = 1, .dst = 30, .n = n, .src = src});
    size_t bytes = (size_t)SLOTS * (size_t)kv.kv_heads * CAP * (size_t)kv.head_dim * sizeof(float);
    ck_assert_mem_eq(kv.k, expected.k, bytes);
    ck_assert_mem_eq(kv.v, expected.v, bytes);
    kv_free(&kv);
    kv_free(&expected);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("attention");
    TCase *c = tcase_create("attention");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, a_node_sees_exactly_its_sequence_bit_for_bit, 0, N_SHAPES);
    tcase_add_loop_test(c, a_node_sees_exactly_its_chunk_bit_for_bit, 0, N_SHAPES);
    tcase_add_loop_test(c, a_chunk_is_a_text_of_its_own, 0, N_SHAPES);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, 2 * N_SHAPES);
    tcase_add_loop_test(c, small_integers_are_exact, 0, N_SHAPES);
    tcase_add_test(c, an_overwhelming_key_takes_all);
    tcase_add_loop_test(c, attention_passes_over_rows_of_nobody, 0, N_SHAPES);
    tcase_add_loop_test(c, the_rope_table_holds_cosines_then_sines, 0, N_SHAPES);
    tcase_add_loop_test(c, rope_is_within_its_bound_and_fills_the_cells, 0, N_SHAPES);
    tcase_add_loop_test(c, fp8_cells_hold_the_rounded_keys_and_values, 0, N_SHAPES);
    tcase_add_loop_test(c, rows_of_nobody_touch_no_cell, 0, N_SHAPES);
    tcase_add_loop_test(c, rope_writes_no_other_cell, 0, N_SHAPES);
    tcase_add_loop_test(c, norms_and_temperatures_are_within_their_bound, 0, NORMED_LAYERS * N_SHAPES);
    tcase_add_loop_test(c, normed_heads_have_a_mean_square_of_1, 0, N_SHAPES);
    tcase_add_loop_test(c, a_layer_without_rotation_only_scales_queries, 0, N_SHAPES);
    tcase_add_test(c, the_temperature_rises_every_8192_positions);
    tcase_add_loop_test(c, a_row_of_rope_is_the_same_in_every_batch, 0, NORMED_LAYERS * N_SHAPES);
    tcase_add_loop_test(c, moved_cells_hold_what_their_sources_held, 0, N_SHAPES);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
