/* golden: reading the files of tests/golden, and how far two correct f32 programs may differ.
 *
 * The bound. Let u = 2^-24. A sum of k products in one f32 chain rounds k times; the i-th rounding is off by
 * at most u times the partial sum. With roundings independent and of mean zero (variance u^2 / 3 of the
 * partial sum's square) and partial sums growing like a random walk (square i / k of the final), the sum's
 * relative variance is u^2 / 3 * sum_i i / k = u^2 k / 6; the difference of two programs has twice that, u^2
 * k / 3. A layer chains six such sums: qkv (k = hidden), scores (head_dim), values (the position + 1 keys), o
 * (heads * head_dim), gate and up (hidden), down (ffn), and a dozen elementwise roundings (norms, rotation,
 * softmax, silu, residuals), counted as 12. Norms make a layer depend on directions only, so relative errors
 * of the residual stream add up over layers, in squares: S = sum over layers of (k's + 12 * 3) / 3, plus the
 * head's hidden / 3. A logit is then off by a normal variable of deviation u * sqrt(S) * (root mean square of
 * the row's logits). 6  deviations: of 10^6 values one exceeds them with probability 0.002 3  conditioning:
 * how much more than the average row a row may magnify what enters it (sharp softmax, small norms). This
 * factor is not derived; the tests print the worst share of the bound that was used. */
#ifndef TESTS_GOLDEN_H
#define TESTS_GOLDEN_H
#include "engine/model_config.h"
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct golden {
    unsigned char *bytes; /* owned */
    size_t n, at;
};

/* Fails the test unless the file is there and begins with the eight bytes of magic. */
static inline struct golden golden_open(const char *path, const char *magic)
{
    struct golden g = {0};
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "cannot open %s", path);
    fseek(f, 0, SEEK_END);
    g.n = (size_t)ftell(f);
    rewind(f);
    g.bytes = malloc(g.n);
    ck_assert_uint_eq(fread(g.bytes, 1, g.n, f), g.n);
    fclose(f);
    ck_assert_uint_ge(g.n, 8);
    ck_assert_mem_eq(g.bytes, magic, 8);
    g.at = 8;
    return g;
}

static inline void golden_read(struct golden *g, void *out, size_t bytes)
{
    if (bytes > g->n - g->at)
        ck_abort_msg("golden file ends at byte %zu, %zu more were expected", g->n, bytes);
    memcpy(out, g->bytes + g->at, bytes);
    g->at += bytes;
}

static inline int golden_int(struct golden *g)
{
    uint32_t v;
    golden_read(g, &v, sizeof v);
    ck_assert_uint_le(v, INT32_MAX);
    return (int)v;
}

/* n ints or floats on the heap, the caller's. */
static inline int *golden_ints(struct golden *g, int n)
{
    int *v = malloc((size_t)n * sizeof *v + 1);
    golden_read(g, v, (size_t)n * sizeof *v);
    return v;
}

static inline float *golden_floats(struct golden *g, int n)
{
    float *v = malloc((size_t)n * sizeof *v + 1);
    golden_read(g, v, (size_t)n * sizeof *v);
    return v;
}

/* Everything was read. */
static inline void golden_close(struct golden *g)
{
    ck_assert_uint_eq(g->at, g->n);
    free(g->bytes);
}

static inline double golden_rms(const float *v, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)v[i] * v[i];
    return sqrt(sum / n);
}

static inline double golden_bound(const struct model_config *c, int pos, double rms)
{
    const double q = (double)c->heads * c->head_dim;
    const double layer = 2.0 * c->hidden + c->head_dim + (pos + 1) + q + c->ffn + 12 * 3;
    return 6 * 3 * 0x1p-24 * sqrt((c->layers * layer + c->hidden) / 3) * rms;
}
#endif
