/* run: configuration, model, result file, then the cells of the sweep one after the other, then the table. */
#include "experiments/run.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/analyze.h"
#include "experiments/commands.h"
#include "experiments/config_whole.h"
#include "experiments/run_cell.h"
#include "experiments/run_plan.h"
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* How often the user asked to stop. A signal handler can reach nothing but a global. */
static volatile sig_atomic_t stop_requests;

static void on_signal(int number)
{
    (void)number;
    stop_requests++;
}

/* Every cell is checked before the first one runs; with --dry-run this is all. */
static int check_cells(const struct run *r)
{
    int n = config_cells(&r->cfg);
    for (int i = 0; i < n; i++) {
        struct config cfg = {0};
        struct workload w = {0};
        char *label = NULL;
        int rc = config_cell(&r->cfg, i, &cfg, &label);
        if (!rc && strcmp(cfg.trace.level, r->cfg.trace.level) != 0)
            rc = ERR_SET(ERR_CONFIG,
                         "sweep: trace.level: expected one level a file, found several; make two runs");
        if (!rc && config_scores(&cfg) != config_scores(&r->cfg))
            rc = ERR_SET(ERR_CONFIG,
                         "sweep: workload.mode: expected one mode a file, found both; make two runs");
        if (!rc)
            rc = workload_load(&w, &cfg, r->opts->slice, r->opts->of);
        if (!rc && r->opts->dry_run) {
            int64_t requests = run_count_requests(&w, &cfg);
            printf("cell %d of %d: %s: %d prompts, %lld requests, at most %lld tokens\n", i + 1, n, label,
                   w.n, (long long)requests, (long long)(requests * cfg.workload.max_tokens));
        }
        workload_deinit(&w);
        config_deinit(&cfg);
        free(label);
        TRY(rc);
    }
    return 0;
}

/* The folder a result goes to may be new; those above it may not. */
static int make_folder(const char *path)
{
    const char *end = strrchr(path, '/');
    if (!end || end == path)
        return 0;
    char *name = strndup(path, (size_t)(end - path));
    if (!name)
        FAIL(ERR_MEMORY, "out of memory for the name of the result's folder");
    int rc = 0;
    if (mkdir(name, 0777) && errno != EEXIST)
        rc = ERR_SET(ERR_IO, "%s: cannot create the folder of the result file: %s", name, strerror(errno));
    free(name);
    return rc;
}

static int choose_path(struct run *r)
{
    const struct run_opts *o = r->opts;
    int n;
    if (!o->out && strchr(r->cfg.name, '/'))
        FAIL(ERR_CONFIG, "name: '%s' cannot name a file; choose the result file with -o", r->cfg.name);
    if (o->out)
        n = asprintf(&r->path, "%s", o->out);
    else if (o->of > 1)
        n = asprintf(&r->path, "results/%s-%d-of-%d.h5", r->cfg.name, o->slice, o->of);
    else
        n = asprintf(&r->path, "results/%s.h5", r->cfg.name);
    if (n < 0 || asprintf(&r->slice, "%d/%d", o->slice, o->of) < 0)
        FAIL(ERR_MEMORY, "out of memory for the name of the result file");
    TRY(record_may_open(r->path, o->mode));
    return make_folder(r->path);
}

static int log_config(const struct config *cfg)
{
    char *text = config_dump(cfg);
    if (!text)
        FAIL(ERR_MEMORY, "out of memory while printing the configuration");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        log_info("%s", line);
    free(text);
    return 0;
}

/* The file says which model and device it is about, so those of the first cell come before it. */
static int open_record(struct run *r)
{
    struct config first = {0};
    struct trace_meta meta = {0};
    char *label = NULL;
    int rc = config_cell(&r->cfg, 0, &first, &label);
    if (!rc)
        rc = run_model_open(&r->with, &first);
    if (!rc)
        rc = run_model_meta(&r->with, &r->cfg, r->slice, &meta);
    if (!rc)
        rc = record_open(&r->record, r->path, &meta, r->opts->mode);
    trace_meta_deinit(&meta);
    config_deinit(&first);
    free(label);
    return rc;
}

/* What each rank would load; of a rank alone, that one. */
static int plan_ranks(const struct config *cfg)
{
    struct shard shard;
    TRY(config_shard(cfg, &shard.rank, &shard.world));
    if (shard.world > 1)
        return run_plan(cfg, shard);
    shard.world = cfg->device.world;
    for (shard.rank = 0; shard.rank < shard.world; shard.rank++)
        TRY(run_plan(cfg, shard));
    return 0;
}

static int run_all(struct run *r)
{
    TRY(check_cells(r));
    if (r->opts->dry_run)
        return plan_ranks(&r->cfg);
    TRY(choose_path(r));
    TRY(log_config(&r->cfg));
    TRY(open_record(r));
    int rc = 0;
    for (int i = 0; !rc && i < config_cells(&r->cfg) && stop_requests == 0; i++)
        rc = run_cell(r, i);
    struct record *record = r->record;
    const int stopped = stop_requests > 0; /* what comes later finds the run done, and says nothing else */
    r->record = NULL;
    int closed = record_close(record, rc || stopped ? "interrupted" : "complete");
    if (rc)
        log_warn("run: failed; %s holds what was finished, --resume continues it", r->path);
    TRY(rc);
    TRY(closed);
    TRY(r->opts->no_table ? 0 : analyze_print(r->path, stdout));
    log_info("run: results in %s", r->path);
    if (stopped)
        FAIL(ERR_STOP, "interrupted: %s holds what was finished; the same command with --resume continues",
             r->path);
    return 0;
}

int run_experiment(const struct run_opts *opts)
{
    struct run r = {.opts = opts, .started = clock_ns(), .stop = &stop_requests};
    struct sigaction stop = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old_int, old_term;
    struct sigaction ignore = {.sa_handler = SIG_IGN},
                     old_size; /* a file size limit becomes an error of write */
    stop_requests = 0;
    progress_init(&r.progress, opts->no_progress);
    sigaction(SIGINT, &stop, &old_int);
    sigaction(SIGTERM, &stop, &old_term);
    sigaction(SIGXFSZ, &ignore, &old_size);
    int rc = config_load(&r.cfg, opts->config, opts->sets, opts->n_sets);
    if (!rc)
        rc = run_all(&r);
    sigaction(SIGINT, &old_int, NULL);
    sigaction(SIGTERM, &old_term, NULL);
    sigaction(SIGXFSZ, &old_size, NULL);
    run_model_close(&r.with);
    run_model_close(&r.reference);
    config_deinit(&r.cfg);
    free(r.path);
    free(r.slice);
    return rc;
}

struct run_call {
    struct run_opts opts;
    const char **sets; /* owned [opts.n_sets] */
};

static int add_set(struct run_call *c, const char *text)
{
    const char **grown = realloc(c->sets, (size_t)(c->opts.n_sets + 1) * sizeof *grown);
    if (!grown)
        return ENOMEM;
    grown[c->opts.n_sets++] = text;
    c->opts.sets = c->sets = grown;
    return 0;
}

static error_t parse_slice(struct run_opts *o, const char *text, struct argp_state *state)
{
    char end;
    if (sscanf(text, "%d/%d%c", &o->slice, &o->of, &end) != 2 || o->of < 1 || o->slice < 0 ||
        o->slice >= o->of) {
        argp_error(state, "--slice: expected i/n with 0 <= i < n, like 0/4, found '%s'", text);
        return EINVAL;
    }
    return 0;
}

enum {
    KEY_SET = 's',
    KEY_OUTPUT = 'o',
    KEY_RESUME = 256,
    KEY_FORCE,
    KEY_SLICE,
    KEY_DRY_RUN,
    KEY_NO_PROGRESS
};
static const struct argp_option options[] = {
    {"set", KEY_SET, "KEY=VALUE", 0,
     "Change an option of the file; may be repeated. `specbed list options` has them all", 0},
    {"output", KEY_OUTPUT, "FILE", 0, "Result file; results/NAME.h5 by default", 0},
    {"resume", KEY_RESUME, NULL, 0, "Continue the result file; answers that it has are not repeated", 0},
    {"force", KEY_FORCE, NULL, 0, "Replace the result file", 0},
    {"slice", KEY_SLICE, "I/N", 0, "Only prompts I, I + N, I + 2N, ...: one of N jobs", 0},
    {"dry-run", KEY_DRY_RUN, NULL, 0,
     "Check everything but the weights and print the cells and what would be loaded", 0},
    {"no-progress", KEY_NO_PROGRESS, NULL, 0, "No progress on stderr", 0},
    {0},
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct run_call *c = state->input;
    switch (key) {
    case KEY_SET:
        return add_set(c, arg);
    case KEY_OUTPUT:
        c->opts.out = arg;
        return 0;
    case KEY_RESUME:
        c->opts.mode = RECORD_RESUME;
        return 0;
    case KEY_FORCE:
        c->opts.mode = RECORD_FORCE;
        return 0;
    case KEY_SLICE:
        return parse_slice(&c->opts, arg, state);
    case KEY_DRY_RUN:
        c->opts.dry_run = 1;
        return 0;
    case KEY_NO_PROGRESS:
        c->opts.no_progress = 1;
        return 0;
    case ARGP_KEY_ARG:
        if (c->opts.config)
            argp_error(state, "expected one experiment file, found '%s' as well", arg);
        c->opts.config = arg;
        return 0;
    case ARGP_KEY_END:
        if (!c->opts.config)
            argp_error(state, "expected an experiment file, found none");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_run(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "CONFIG",
        .doc = "Run an experiment or a sweep and record every step.\vInterrupting (Ctrl-C) finishes the "
               "active requests; "
               "twice drops them. A run that ended early, killed or not, is continued with --resume."};
    struct run_call c = {.opts = {.of = 1}};
    int rc = argp_parse(&argp, argc, argv, 0, NULL, &c);
    if (rc)
        rc = ERR_SET(ERR_CONFIG, "cannot read the command line: %s", strerror(rc));
    else
        rc = run_experiment(&c.opts);
    free(c.sets);
    return rc;
}
