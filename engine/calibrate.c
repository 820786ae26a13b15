/* calibrate: passes of a few rows whose products are watched (struct forward_watch). The largest number of a
 * row is what quantise finds on any backend, and a normed act that lacks 1 / rms gets it here; waiting for
 * each product costs nothing beside loading the model. */
#include "engine/calibrate.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include <math.h>
#include <stdlib.h>

enum { ROWS = BULK_ROWS };

struct calibration {
    struct model *m;
    void *rounded;        /* backend act [ROWS, widest]: what quantise makes beside scales */
    float *scale;         /* backend [ROWS] */
    float *host, *square; /* owned: copies of scales [ROWS], of squares [ROWS, steps] */
    int widest;
};

/* All FP8 matrices of a model without experts; NULL past the last. */
static struct matrix *matrix_of(struct model *m, int i)
{
    if (i >= 4 * m->cfg.layers)
        return NULL;
    struct layer *l = &m->layers[i / 4];
    struct matrix *const all[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    return all[i % 4];
}

/* 1 / rms of a row whose act was left without it. */
static double factor_of(const float *square, int k, float eps)
{
    double sum = 0;
    for (int i = 0; i < (k + 15) / 16; i++)
        sum += (double)square[i];
    return 1 / sqrt(sum / k + (double)eps);
}

/* quantise gives rows of zeros the scale 1. */
static float largest_scale(const struct calibration *c, const struct gemm *a, int lacks)
{
    float most = 0;
    for (int r = 0; r < a->rows; r++) {
        const size_t steps = ((size_t)a->w->k + 15) / 16;
        const double by = lacks ? factor_of(c->square + (size_t)r * steps, a->w->k, a->eps) : 1;
        if (c->host[r] != 1)
            most = fmaxf(most, (float)((double)c->host[r] * by));
    }
    return most;
}

static int see(void *self, const struct gemm *a)
{
    struct calibration *c = self;
    struct backend *be = c->m->be;
    const int lacks = a->square && !be->host_reads; /* the CPU's norms are whole */
    const struct quantise q = {.x = c->rounded,
                               .from = a->x,
                               .scale = c->scale,
                               .rows = a->rows,
                               .k = a->w->k,
                               .threads = be->threads,
                               .form = ACT_F16};
    TRY(be->ops->quantise(be, &q));
    TRY(be->ops->download(be, c->host, c->scale, (size_t)a->rows * sizeof *c->host));
    if (lacks)
        TRY(be->ops->download(be, c->square, a->square,
                              (size_t)a->rows * (((size_t)a->w->k + 15) / 16) * sizeof *c->square));
    TRY(be->ops->sync(be));
    struct matrix *w = NULL;
    for (int i = 0; (w = matrix_of(c->m, i)) && w != a->w;)
        i++;
    if (w)
        w->input_scale = fmaxf(w->input_scale, largest_scale(c, a, lacks));
    return 0;
}

static int run_text(struct forward *f, const int *tokens, int n)
{
    int keep[ROWS];
    for (int at = 0; at < n; at += ROWS) {
        struct forward_row rows[ROWS];
        const int here = n - at < ROWS ? n - at : ROWS;
        for (int i = 0; i < here; i++) {
            rows[i] = (struct forward_row){.token = tokens[at + i], .parent = i - 1};
            keep[i] = i;
        }
        TRY(forward_run(f, rows, here, FORWARD_LOGITS));
        TRY(kv_commit(f->kv, 0, keep, here));
    }
    return 0;
}

static int calibration_init(struct calibration *c, struct model *m)
{
    const struct matrix *w;
    void *scale = NULL;
    *c = (struct calibration){.m = m};
    for (int i = 0; (w = matrix_of(m, i)); i++)
        c->widest = w->k > c->widest ? w->k : c->widest;
    c->host = malloc(ROWS * sizeof *c->host);
    c->square = malloc(ROWS * (((size_t)c->widest + 15) / 16) * sizeof *c->square);
    if (!c->host || !c->square)
        FAIL(ERR_MEMORY, "calibration: out of memory for the scales of %d rows", ROWS);
    TRY(m->be->ops->alloc(m->be, m->be->ops->act_bytes(m->be, ROWS, c->widest), &c->rounded));
    TRY(m->be->ops->alloc(m->be, ROWS * sizeof *c->scale, &scale));
    c->scale = scale;
    return 0;
}

static void calibration_deinit(struct calibration *c)
{
    c->m->be->ops->release(c->m->be, c->rounded);
    c->m->be->ops->release(c->m->be, c->scale);
    free(c->host);
    free(c->square);
}

/* A matrix that saw zeros alone may divide them by anything. */
static void finish(struct model *m, int n)
{
    struct matrix *w;
    float least = INFINITY, most = 0;
    for (int i = 0; (w = matrix_of(m, i)); i++) {
        if (w->input_scale == 0)
            w->input_scale = 1;
        least = fminf(least, w->input_scale);
        most = fmaxf(most, w->input_scale);
    }
    log_info("model: static scales of activations from %d tokens, %.3g to %.3g", n, (double)least,
             (double)most);
}

int model_calibrate(struct model *m, const int *tokens, int n)
{
    struct calibration c;
    struct kv kv = {0};
    struct forward f = {0};
    struct matrix *w;
    const int room = m->cfg.max_positions < CALIBRATE_TOKENS ? m->cfg.max_positions : CALIBRATE_TOKENS;
    if (n < 1)
        FAIL(ERR_LIMIT, "calibration: expected a text of one token at least, found none");
    n = n < room ? n : room;
    for (int i = 0; (w = matrix_of(m, i)); i++)
        w->input_scale = 0;
    int rc = calibration_init(&c, m);
    if (rc == 0)
        rc = kv_init(&kv, m->be, m, 1, n);
    if (rc == 0)
        rc = forward_init(&f, m, &kv, ROWS, ROWS);
    f.watch = (struct forward_watch){see, &c};
    if (rc == 0)
        rc = run_text(&f, tokens, n);
    if (rc == 0)
        finish(m, n);
    forward_deinit(&f);
    kv_deinit(&kv);
    calibration_deinit(&c);
    return rc;
}
