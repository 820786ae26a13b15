/* A variant's configuration is a whole experiment file; the sweep over none and its strategy gives it a plain
 * arm under the same conditions, minutes rather than hours apart. */
#include "experiments/whatif_backtest.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/run.h"
#include "experiments/summary.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct folder {
    char path[64], config[96], result[96];
};

static int folder_make(struct folder *f)
{
    snprintf(f->path, sizeof f->path, "/tmp/specbed-back-test-XXXXXX");
    if (!mkdtemp(f->path))
        FAIL(ERR_IO, "%s: cannot make a folder for the back-test", f->path);
    snprintf(f->config, sizeof f->config, "%s/variant.yaml", f->path);
    snprintf(f->result, sizeof f->result, "%s/variant.h5", f->path);
    return 0;
}

static void folder_remove(const struct folder *f)
{
    unlink(f->config);
    unlink(f->result);
    rmdir(f->path);
}

static int write_config(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    int bad = !f || fputs(text, f) < 0;
    if (f)
        bad |= fclose(f) != 0;
    if (bad)
        FAIL(ERR_IO, "%s: cannot write the configuration of a variant", path);
    return 0;
}

static int run_variant(const struct folder *f, const struct whatif_variant *v)
{
    char sweep[128];
    const char *sets[] = {sweep, "trace.level=steps"};
    snprintf(sweep, sizeof sweep, "sweep.draft.strategy=[none, %s]", v->strategy);
    const struct run_opts opts = {.config = f->config,
                                  .sets = sets,
                                  .n_sets = 2,
                                  .out = f->result,
                                  .mode = RECORD_FORCE,
                                  .of = 1,
                                  .no_progress = 1,
                                  .no_table = 1};
    return run_experiment(&opts);
}

static int measure(const struct trace *t, const struct whatif_variant *v, const struct stats_resampling *how,
                   struct whatif_measured *out)
{
    struct summary s;
    const struct summary_opts opts = {.by = SUMMARY_BY_NONE, .resampling = *how};
    TRY(summary_init(&s, t, &opts));
    for (int i = 0; i < s.n; i++) {
        const struct summary_row *r = &s.rows[i];
        if (strcmp(t->arms[r->arm].strategy, v->strategy) != 0)
            continue;
        out->steps = r->sums.steps;
        out->tokens = r->sums.tokens;
        out->speedup = r->speedup;
    }
    summary_deinit(&s);
    out->exact = out->steps == v->steps && out->tokens == v->tokens;
    out->inside = out->speedup.value >= v->speedup.lo && out->speedup.value <= v->speedup.hi;
    return 0;
}

static int back_test(const struct folder *f, const struct whatif_variant *v,
                     const struct stats_resampling *how, struct whatif_measured *out)
{
    struct trace t = {0};
    log_info("back-test: running '%s'", v->label);
    TRY(write_config(f->config, v->config));
    TRY_CTX(run_variant(f, v), "running variant '%s'", v->label);
    TRY(trace_read(&t, f->result, TRACE_READ_LEAN));
    int rc = measure(&t, v, how, out);
    trace_deinit(&t);
    return rc;
}

int whatif_backtest(const struct whatif *w, const struct stats_resampling *how, int n,
                    struct whatif_measured *out, int *made)
{
    struct folder f;
    int drafting = 0, seen = 0, rc = 0;
    for (int i = 0; i < w->n; i++)
        drafting += w->variants[i].draft.kind != WHATIF_NONE;
    n = n < drafting ? n : drafting;
    *made = 0;
    TRY(folder_make(&f));
    for (int i = 0; i < w->n && !rc && *made < n; i++) {
        if (w->variants[i].draft.kind == WHATIF_NONE || seen++ * n / drafting < *made)
            continue;
        out[*made] = (struct whatif_measured){.variant = i};
        rc = back_test(&f, &w->variants[i], how, &out[*made]);
        *made += !rc;
    }
    folder_remove(&f);
    return rc;
}
