/* bench: how long a step takes on this machine, against the least time that reading its bytes can take.
 * The ceiling is measured in the same run on the same device (the backend's `read`), best of eight, after the
 * steps so that its buffer does not count as their peak memory. A step is one verification pass: `rows` rows
 * behind `context` committed tokens, logits included, then rolled back. Bytes of a step: every weight once,
 * the keys and values of the context once a sequence. */
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "experiments/commands.h"
#include "experiments/stats.h"
#include "kernels/philox.h"
#include <argp.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { MAX_ROWS = 64, MAX_POINTS = 16, MAX_REPEATS = 1000 };

struct bench {
    /* options */
    const char *what, *model, *kind, *isa;
    int threads, repeats, warmup, json, eager;
    int rows[MAX_POINTS], n_rows, context[MAX_POINTS], n_context, prefill;
    /* state */
    struct backend be;
    struct model m;
    struct kv kv;
    struct forward f;
    int *tokens;     /* [cap] */
    double ceiling;  /* bytes a second */
    double peak_mib; /* resident memory of the process before the ceiling is measured */
    double *seconds; /* [repeats] */
};

struct point {
    const char *stage;
    int rows, context;
    double median, p90, bytes;
};

static double now(void)
{
    return 1e-9 * (double)clock_ns();
}

/* A device is asked for many reads a time, so that waiting for it does not count. */
static int measure_ceiling(struct bench *b)
{
    const struct backend_ops *ops = b->be.ops;
    const size_t bytes = (size_t)512 << 20;
    const int reads = b->be.host_reads ? 1 : 16;
    void *data = NULL, *sum = NULL;
    TRY_CTX(ops->alloc(&b->be, bytes, &data), "read ceiling");
    TRY(ops->alloc(&b->be, sizeof(uint64_t), &sum));
    if (b->be.host_reads)
        memset(data, 1, bytes); /* pages that were never written are one and the same */
    TRY(ops->read(&b->be, data, bytes, sum));
    TRY(ops->sync(&b->be));
    for (int i = 0; i < 8; i++) {
        double t = now();
        for (int k = 0; k < reads; k++)
            TRY(ops->read(&b->be, data, bytes, sum));
        TRY(ops->sync(&b->be));
        t = (now() - t) / reads;
        if ((double)bytes / t > b->ceiling)
            b->ceiling = (double)bytes / t;
    }
    ops->release(&b->be, sum);
    ops->release(&b->be, data);
    return 0;
}

static int bench_open(struct bench *b)
{
    int cap = b->prefill + MAX_ROWS;
    for (int i = 0; i < b->n_context; i++)
        if (b->context[i] + MAX_ROWS > cap)
            cap = b->context[i] + MAX_ROWS;
    struct backend_opts opts = {.threads = b->threads, .isa = b->isa, .eager = b->eager};
    TRY(backend_open(&b->be, b->kind, &opts));
    TRY_CTX(model_load(&b->m, &b->be, b->model, NULL), "loading model '%s'", b->model);
    TRY(kv_init(&b->kv, &b->be, &b->m, 1, cap));
    TRY(forward_init(&b->f, &b->m, &b->kv, cap < b->be.prefill_rows ? cap : b->be.prefill_rows, MAX_ROWS));
    b->tokens = malloc((size_t)cap * sizeof *b->tokens);
    b->seconds = malloc((size_t)b->repeats * sizeof *b->seconds);
    if (!b->tokens || !b->seconds)
        FAIL(ERR_MEMORY, "bench: out of memory for %d tokens", cap);
    for (int i = 0; i < cap; i++)
        b->tokens[i] = (int)(philox(1, 0, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % (uint32_t)b->m.cfg.vocab);
    return 0;
}

static void bench_close(struct bench *b)
{
    forward_deinit(&b->f);
    kv_deinit(&b->kv);
    model_deinit(&b->m);
    backend_close(&b->be);
    free(b->tokens);
    free(b->seconds);
}

static void summarise(double *seconds, int n, struct point *p)
{
    stats_sort(seconds, n);
    p->median = stats_percentile(seconds, n, 0.5);
    p->p90 = stats_percentile(seconds, n, 0.9);
}

/* Verify `rows` rows of a chain behind `context` tokens, again and again. */
static int measure_step(struct bench *b, int rows, int context, struct point *p)
{
    const struct model_config *c = &b->m.cfg;
    struct forward_row row[MAX_ROWS];
    for (int i = 0; i < rows; i++)
        row[i] = (struct forward_row){.token = b->tokens[context + i], .slot = 0, .parent = i - 1};
    kv_reset(&b->kv, 0);
    TRY(forward_prefill(&b->f, 0, b->tokens, context));
    for (int i = -b->warmup; i < b->repeats; i++) {
        double t = now();
        TRY(forward_run(&b->f, row, rows, FORWARD_LOGITS));
        TRY(b->be.ops->sync(&b->be));
        t = now() - t;
        TRY(kv_commit(&b->kv, 0, NULL, 0));
        if (i >= 0)
            b->seconds[i] = t;
    }
    size_t kv_token = (size_t)c->layers * 2 * (size_t)c->kv_heads * (size_t)c->head_dim * b->be.ops->kv_bytes(&b->be, b->kv.layers[0].form);
    *p = (struct point){.stage = rows == 1 ? "decode" : "verify",
                        .rows = rows,
                        .context = context,
                        .bytes = (double)b->m.weight_bytes + (double)kv_token * context};
    summarise(b->seconds, b->repeats, p);
    return 0;
}

static int measure_prefill(struct bench *b, struct point *p)
{
    int repeats = b->repeats < 5 ? b->repeats : 5;
    for (int i = -1; i < repeats; i++) {
        kv_reset(&b->kv, 0);
        double t = now();
        TRY(forward_prefill(&b->f, 0, b->tokens, b->prefill));
        TRY(b->be.ops->sync(&b->be));
        t = now() - t;
        if (i >= 0)
            b->seconds[i] = t;
    }
    *p = (struct point){.stage = "prefill", .rows = b->prefill};
    summarise(b->seconds, repeats, p);
    return 0;
}

static double peak_mib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1024;
}

static void print_table(const struct bench *b, const struct point *p, int n)
{
    printf("model   %s, weights a token reads: %.1f MB\n", b->model, 1e-6 * (double)b->m.weight_bytes);
    printf("device  %s\n", b->be.device);
    printf("ceiling %.1f GB/s read by the device, measured in this run\n", 1e-9 * b->ceiling);
    printf("steps   %d warm-up, %d repeats; prefill 1 and %d\n\n", b->warmup, b->repeats,
           b->repeats < 5 ? b->repeats : 5);
    printf("%-8s %5s %8s %11s %9s %9s %8s %9s %8s\n", "stage", "rows", "context", "median ms", "p90 ms",
           "tokens/s", "MB", "floor ms", "of roof");
    for (int i = 0; i < n; i++) {
        printf("%-8s %5d %8d %11.2f %9.2f %9.1f ", p[i].stage, p[i].rows, p[i].context, 1e3 * p[i].median,
               1e3 * p[i].p90, p[i].rows / p[i].median);
        if (p[i].bytes > 0)
            printf("%8.1f %9.2f %7.0f%%\n", 1e-6 * p[i].bytes, 1e3 * p[i].bytes / b->ceiling,
                   100 * p[i].bytes / b->ceiling / p[i].median);
        else
            printf("%8s %9s %8s\n", "-", "-", "-");
    }
    printf("\npeak memory %.0f MiB; weights %.0f MiB, key/value cache %.0f MiB reserved\n", b->peak_mib,
           (double)b->m.weight_bytes / 1048576, (double)b->kv.bytes / 1048576);
}

static void print_json(const struct bench *b, const struct point *p, int n)
{
    json_t *points = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(points, json_pack("{s:s, s:i, s:i, s:f, s:f, s:f}", "stage", p[i].stage, "rows",
                                                p[i].rows, "context", p[i].context, "median_s", p[i].median,
                                                "p90_s", p[i].p90, "bytes", p[i].bytes));
    json_t *out =
        json_pack("{s:i, s:s, s:s, s:i, s:f, s:i, s:i, s:f, s:o}", "schema_version", 1, "model", b->model,
                  "device", b->be.device, "threads", b->be.threads, "read_bytes_per_s", b->ceiling, "warmup",
                  b->warmup, "repeats", b->repeats, "peak_mib", b->peak_mib, "points", points);
    json_dumpf(out, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(out);
}

static int bench_step(struct bench *b)
{
    struct point points[MAX_POINTS * MAX_POINTS + 1];
    int n = 0;
    TRY(bench_open(b));
    for (int c = 0; c < b->n_context; c++)
        for (int r = 0; r < b->n_rows; r++)
            TRY(measure_step(b, b->rows[r], b->context[c], &points[n++]));
    if (b->prefill)
        TRY(measure_prefill(b, &points[n++]));
    b->peak_mib = peak_mib();
    TRY(measure_ceiling(b));
    (b->json ? print_json : print_table)(b, points, n);
    return 0;
}

/* "1,2,8" into whole numbers of [lo, hi]. */
static void parse_list(struct argp_state *state, const char *arg, int lo, int hi, int *out, int *n)
{
    for (*n = 0; *arg; (*n)++) {
        char *end;
        long v = strtol(arg, &end, 10);
        if (end == arg || (*end && *end != ',') || v < lo || v > hi || *n == MAX_POINTS)
            argp_error(state, "expected up to %d whole numbers of [%d, %d] separated by commas, found '%s'",
                       MAX_POINTS, lo, hi, arg);
        out[*n] = (int)v;
        arg = *end ? end + 1 : end;
    }
}

static int parse_one(struct argp_state *state, const char *arg, int lo, int hi)
{
    int out[MAX_POINTS] = {0}, n;
    parse_list(state, arg, lo, hi, out, &n);
    if (n != 1)
        argp_error(state, "expected one whole number of [%d, %d], found '%s'", lo, hi, arg);
    return out[0];
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case 'm':
        b->model = arg;
        break;
    case 'r':
        parse_list(state, arg, 1, MAX_ROWS, b->rows, &b->n_rows);
        break;
    case 'c':
        parse_list(state, arg, 1, 1 << 20, b->context, &b->n_context);
        break;
    case 'p':
        b->prefill = parse_one(state, arg, 0, 1 << 20);
        break;
    case 't':
        b->threads = parse_one(state, arg, 0, 1024);
        break;
    case 'n':
        b->repeats = parse_one(state, arg, 1, MAX_REPEATS);
        break;
    case 'i':
        b->isa = arg;
        break;
    case 'e':
        b->eager = 1;
        break;
    case 'd':
        b->kind = arg;
        break;
    case 'j':
        b->json = 1;
        break;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0 || strcmp(arg, "step"))
            argp_error(state, "expected 'step', found '%s'", arg);
        b->what = arg;
        break;
    case ARGP_KEY_END:
        if (!b->what)
            argp_error(state, "expected what to measure: step");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int command_bench(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"model", 'm', "DIR", 0, "Hugging Face directory (default models/smollm2-135m-instruct)", 0},
        {"rows", 'r', "LIST", 0, "rows a step verifies (default 1,2,4,8,16,32,64)", 0},
        {"context", 'c', "LIST", 0, "committed tokens before them (default 128,1024)", 0},
        {"prefill", 'p', "N", 0, "prompt of N tokens (default 512, 0: none)", 0},
        {"device", 'd', "KIND", 0, "cpu or cuda (default cpu)", 0},
        {"eager", 'e', 0, 0, "cuda: enqueue each operation instead of a recorded pass", 0},
        {"threads", 't', "N", 0, "CPU threads (default 0: all cores)", 0},
        {"repeats", 'n', "N", 0, "measured steps a point (default 30)", 0},
        {"isa", 'i', "NAME", 0, "auto, avx512, avx2 or portable", 0},
        {"json", 'j', 0, 0, "print JSON", 0},
        {0}};
    static const struct argp argp = {
        options, parse_option,
        "step",  "Measure a decoding step against the time that reading its bytes takes.",
        0,       0,
        0};
    struct bench b = {.model = "models/smollm2-135m-instruct",
                      .kind = "cpu",
                      .isa = "auto",
                      .repeats = 30,
                      .warmup = 3,
                      .prefill = 512,
                      .rows = {1, 2, 4, 8, 16, 32, 64},
                      .n_rows = 7,
                      .context = {128, 1024},
                      .n_context = 2};
    argp_parse(&argp, argc, argv, 0, NULL, &b);
    int rc = bench_step(&b);
    bench_close(&b);
    return rc;
}
