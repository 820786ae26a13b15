/* Temperatures are read back from the arms' configurations: a result states how it was made or it is none. */
#include "experiments/source.h"
#include "engine/err.h"
#include "experiments/config.h"
#include "experiments/display.h"
#include "experiments/table.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* "0" or "0, 0.6": the temperatures of the arms in the order of the file; "?" for a configuration that cannot
 * be read. */
static void print_temperatures(const struct trace *t, FILE *out)
{
    double seen[16];
    int n = 0;
    for (int64_t i = 0; i < t->n_arms && n < 16; i++) {
        struct config c = {0};
        int known = 0,
            bad = config_parse(&c, t->arms[i].config, strlen(t->arms[i].config), t->arms[i].label, NULL, 0);
        for (int k = 0; k < n && !bad; k++)
            known |= seen[k] == c.sampling.temperature;
        if (!bad && !known) {
            seen[n] = c.sampling.temperature;
            fprintf(out, "%s%g", n ? ", " : "", seen[n]);
            n++;
        }
        err_clear();
        config_deinit(&c);
    }
    if (!n)
        fputs("?", out);
}

static void print_rules(const struct trace *t, FILE *out)
{
    for (int64_t i = 0; i < t->n_arms; i++) {
        int64_t k = 0;
        while (strcmp(t->arms[k].rule, t->arms[i].rule) != 0)
            k++;
        if (k == i)
            fprintf(out, "%s%s", i ? ", " : "", t->arms[i].rule);
    }
}

static void print_seeds(const struct trace *t, FILE *out)
{
    int64_t lo = t->requests[0].seed, hi = lo;
    for (int64_t i = 1; i < t->n_requests; i++) {
        lo = t->requests[i].seed < lo ? t->requests[i].seed : lo;
        hi = t->requests[i].seed > hi ? t->requests[i].seed : hi;
    }
    fprintf(out, ", seed %" PRId64, lo);
    if (hi != lo)
        fprintf(out, "..%" PRId64, hi);
}

/* One part of the source line; `used` columns of the line are taken. A part that does not fit starts a line.
 */
static int print_part(const char *part, int used, FILE *out)
{
    int w = display_width(part);
    if (used && used + 3 + w > DISPLAY_WIDTH) {
        fputs("\n  ", out);
        used = 2;
    } else if (used) {
        fputs(" | ", out);
        used += 3;
    }
    return used + display_put(part, w, out);
}

/* "greedy, coupled, T 0, 0.6, seed 1", malloc'ed; NULL: no memory. */
static char *sampling_text(const struct trace *t)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    print_rules(t, f);
    fputs(", T ", f);
    print_temperatures(t, f);
    if (t->n_requests)
        print_seeds(t, f);
    if (!fclose(f))
        return text;
    free(text);
    return NULL;
}

/* "AMD EPYC, avx512, 2 threads"; a device that says all that by itself is left alone. Malloc'ed; NULL: no
 * memory. */
static char *device_text(const struct trace_meta *m)
{
    char threads[32], *text = NULL;
    snprintf(threads, sizeof threads, "%d thread%s", m->threads, m->threads == 1 ? "" : "s");
    int has_isa = strstr(m->device, m->isa) != NULL, has_threads = strstr(m->device, threads) != NULL;
    if (asprintf(&text, "%s%s%s%s%s", m->device, has_isa ? "" : ", ", has_isa ? "" : m->isa,
                 has_threads ? "" : ", ", has_threads ? "" : threads) < 0)
        return NULL;
    return text;
}

/* What was measured, on what, how: one line where it fits. */
int source_print(const struct trace *t, FILE *out)
{
    char *sampling = sampling_text(t), *device = device_text(&t->meta), *level = NULL;
    int rc = 0;
    if (!sampling || !device || asprintf(&level, "trace %s", t->meta.trace_level) < 0) {
        level = NULL;
        rc = ERR_SET(ERR_MEMORY, "no memory to describe %s", t->path);
        goto out;
    }
    int used = print_part(t->path, 0, out);
    used = print_part(t->meta.model, used, out);
    used = print_part(device, used, out);
    used = print_part(sampling, used, out);
    print_part(level, used, out);
    fputc('\n', out);
out:
    free(sampling);
    free(device);
    free(level);
    return rc;
}

json_t *source_json(const struct trace *t)
{
    const struct trace_meta *m = &t->meta;
    const struct {
        const char *key, *value;
    } text[] = {{"path", t->path},
                {"status", m->status},
                {"model", m->model},
                {"device", m->device},
                {"isa", m->isa},
                {"host", m->host},
                {"version", m->version},
                {"git_commit", m->git_commit},
                {"build", m->build},
                {"started", m->started},
                {"ended", m->ended},
                {"slice", m->slice},
                {"trace_level", m->trace_level},
                {"config", m->config}};
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, m->fingerprint);
    json_t *o = json_pack("{s:s, s:i}", "fingerprint", fingerprint, "threads", m->threads);
    int bad = !o;
    for (size_t i = 0; i < sizeof text / sizeof *text && !bad; i++)
        bad = json_object_set_new(o, text[i].key, table_json_string(text[i].value)) != 0;
    if (!bad)
        return o;
    json_decref(o);
    return NULL;
}
