/* bench: the command: its options, and opening what is measured. */
#include "experiments/bench.h"
#include "engine/err.h"
#include "experiments/bench_project.h"
#include "experiments/commands.h"
#include "experiments/config_whole.h"
#include "kernels/philox.h"
#include <argp.h>
#include <stdlib.h>
#include <string.h>

enum { LOOP_ROOM = 1 << 16 }; /* tokens behind any context, for steps of the decode loop */
static const char default_dir[] = "models/smollm2-135m-instruct";

static int most(const struct bench_list *list)
{
    int out = 0;
    for (int i = 0; i < list->n; i++)
        out = list->at[i] > out ? list->at[i] : out;
    return out;
}

/* Random weights know no limit of their own, so that any context can be timed. */
static int open_model(struct bench *b, int cap)
{
    struct model_config cfg;
    if (!b->shape) {
        TRY_CTX(model_load(&b->m, &b->tap.be, b->dir, &b->numbers), "loading model '%s'", b->dir);
        return 0;
    }
    TRY(model_config_named(&cfg, b->shape));
    if (b->layers > cfg.layers)
        FAIL(ERR_CONFIG, "--layers: expected at most the %d layers of '%s', found %d", cfg.layers, b->shape,
             b->layers);
    cfg.layers = b->layers ? b->layers : cfg.layers;
    if (cfg.max_positions < cap + LOOP_ROOM)
        cfg.max_positions = cap + LOOP_ROOM;
    TRY_CTX(model_synthetic(&b->m, &b->tap.be, &cfg, (uint64_t)b->seed, &b->numbers), "making model '%s'",
            b->shape);
    return 0;
}

/* One rank of a larger world: the others are not there, and nobody waits for them. */
static int join_alone(struct bench *b)
{
    const struct comm alone = {NULL, b->numbers.shard.rank, b->numbers.shard.world};
    return alone.world > 1 ? b->tap.be.ops->join(&b->tap.be, &alone, 0) : 0;
}

static int bench_open(struct bench *b)
{
    const int behind = most(&b->context) + most(&b->rows), prompt = most(&b->prefill) + BENCH_ROWS;
    const int cap = behind > prompt ? behind : prompt, wide = most(&b->rows);
    struct backend *be = &b->tap.be;
    const struct backend_opts opts = {
        .threads = b->threads, .isa = b->isa, .eager = b->eager, .device = b->index};
    TRY(backend_open(be, b->kind, &opts));
    TRY(join_alone(b));
    TRY(open_model(b, cap));
    TRY(kv_init(&b->kv, be, &b->m, 1, cap));
    const int block = be->prefill_rows > wide ? be->prefill_rows : wide;
    TRY(forward_init(&b->f, &b->m, &b->kv, cap < block ? cap : block, BENCH_ROWS < cap ? BENCH_ROWS : cap));
    b->tokens = malloc((size_t)cap * sizeof *b->tokens);
    b->ns = malloc(((size_t)b->repeats + 1) * sizeof *b->ns);
    b->seconds = malloc((size_t)b->repeats * sizeof *b->seconds);
    b->experts = calloc((size_t)b->f.moe_layers * (size_t)b->f.max_rows * (size_t)b->m.cfg.top_k + 1,
                        sizeof *b->experts);
    if (!b->tokens || !b->ns || !b->seconds || !b->experts)
        FAIL(ERR_MEMORY, "bench: out of memory for %d tokens", cap);
    for (int i = 0; i < cap; i++)
        b->tokens[i] = (int)(philox(1, 0, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % (uint32_t)b->m.cfg.vocab);
    return be->host_reads ? 0 : bench_time_empty(b);
}

static void bench_close(struct bench *b)
{
    tap_close(&b->tap);
    forward_deinit(&b->f);
    kv_deinit(&b->kv);
    model_deinit(&b->m);
    backend_close(&b->tap.be);
    tap_deinit(&b->tap);
    free(b->tokens);
    free(b->ns);
    free(b->seconds);
    free(b->experts);
    config_deinit(&b->config);
}

/* "1,2,8" into whole numbers of [lo, hi]. */
static void parse_list(struct argp_state *state, const char *name, const char *arg, int lo, int hi,
                       struct bench_list *out)
{
    const char *at = arg;
    out->n = 0;
    do {
        char *end;
        const long v = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || v < lo || v > hi || out->n == BENCH_LIST)
            argp_error(state,
                       "--%s: expected up to %d whole numbers of [%d, %d] separated by commas, found '%s'",
                       name, BENCH_LIST, lo, hi, arg);
        out->at[out->n++] = (int)v;
        at = *end ? end + 1 : end;
    } while (*at);
}

static int parse_one(struct argp_state *state, const char *name, const char *arg, int lo, int hi)
{
    char *end;
    const long v = strtol(arg, &end, 10);
    if (end == arg || *end || v < lo || v > hi)
        argp_error(state, "--%s: expected a whole number of [%d, %d], found '%s'", name, lo, hi, arg);
    return (int)v;
}

static double parse_real(struct argp_state *state, const char *name, const char *arg, double lo, double hi)
{
    char *end;
    const double v = strtod(arg, &end);
    if (end == arg || *end || !(v >= lo && v <= hi))
        argp_error(state, "--%s: expected a number from %g to %g, found '%s'", name, lo, hi, arg);
    return v;
}

/* The last of those allowed is `last`. */
static enum model_numbers parse_numbers(struct argp_state *state, const char *name, const char *arg,
                                        enum model_numbers last)
{
    static const char *const words[] = {"bf16", "fp8", "fp8-static"};
    for (int i = 0; i <= (int)last; i++)
        if (strcmp(arg, words[i]) == 0)
            return (enum model_numbers)i;
    argp_error(state, "--%s: expected %s, found '%s'", name,
               last == MODEL_FP8 ? "bf16 or fp8" : "bf16, fp8 or fp8-static", arg);
    return MODEL_BF16;
}

/* "RANK/WORLD". */
static struct shard parse_shard(struct argp_state *state, const char *arg)
{
    char *end = NULL, *last = NULL;
    const long rank = strtol(arg, &end, 10), world = *end == '/' ? strtol(end + 1, &last, 10) : 0;
    if (end == arg || !last || last == end + 1 || *last || world < 1 || world > COMM_WORLD_MAX || rank < 0 ||
        rank >= world)
        argp_error(state,
                   "--shard: expected RANK/WORLD, a rank of [0, world) in a world of [1, %d], found '%s'",
                   COMM_WORLD_MAX, arg);
    return (struct shard){(int)rank, (int)world};
}

/* What a file of experiments says of the model and the device; options behind it win. */
static int take_config(struct bench *b, const char *path)
{
    struct config *c = &b->config;
    config_deinit(c);
    TRY(config_load(c, path, NULL, 0));
    TRY(config_shard(c, &b->numbers.shard.rank, &b->numbers.shard.world));
    const struct shard shard = b->numbers.shard;
    b->numbers = config_numbers(c);
    b->numbers.shard = shard;
    b->dir = c->model.synthetic[0] || !c->model.path[0] ? NULL : c->model.path;
    b->shape = c->model.synthetic[0] ? c->model.synthetic : NULL;
    b->seed = c->model.synthetic_seed;
    b->kind = c->device.kind;
    b->isa = c->device.isa;
    b->index = c->device.index;
    b->threads = c->device.threads;
    b->eager = !c->device.graph;
    return 0;
}

static void parse_config(struct argp_state *state, struct bench *b, const char *path)
{
    if (take_config(b, path))
        argp_error(state, "--config: %s", err_text());
}

static const struct {
    const char *name;
    int (*measure)(struct bench *b);
    int open; /* 1: with a backend and a model open */
} subjects[] = {{"step", bench_step, 1}, {"kernels", bench_kernels, 1}, {"comm", bench_comm, 0}};
enum { SUBJECTS = sizeof subjects / sizeof *subjects };

static void parse_subject(struct argp_state *state, struct bench *b, const char *arg)
{
    for (int i = 0; i < SUBJECTS; i++)
        if (strcmp(arg, subjects[i].name) == 0) {
            if (b->what)
                argp_error(state, "expected one of step, kernels and comm, found another: '%s'", arg);
            b->what = subjects[i].name;
            return;
        }
    argp_error(state, "expected step, kernels or comm, found '%s'", arg);
}

/* A group has no model: its rows are messages. */
static void finish_comm(struct argp_state *state, struct bench *b)
{
    static const struct bench_list rows = {{1, 2, 4, 8, 16, 32, 64, 512, 4096}, 9};
    if (b->dir || b->shape || b->context.n || b->prefill.n || b->stages || b->project)
        argp_error(
            state,
            "comm: expected none of --model, --synthetic, --context, --prefill, --stages and --project");
    if (b->gpus > b->world)
        argp_error(state, "--gpus: expected at most the %d of --world, found %d", b->world, b->gpus);
    if (!b->rows.n)
        b->rows = rows;
    if (!b->gpus)
        b->gpus = b->world;
}

/* What was not said, and what does not go together. */
static void finish_options(struct argp_state *state, struct bench *b)
{
    static const struct bench_list step_rows = {{1, 2, 4, 8, 16, 32, 64}, 7}, step_context = {{128, 1024}, 2},
                                   step_prefill = {{512}, 1}, kernel_rows = {{1, 8, 64}, 3},
                                   kernel_context = {{1024}, 1};
    if (!b->what)
        argp_error(state, "expected what to measure: step, kernels or comm");
    if (strcmp(b->what, "comm") == 0) {
        finish_comm(state, b);
        return;
    }
    const int step = strcmp(b->what, "step") == 0;
    if (b->dir && b->shape)
        argp_error(state, "--model and --synthetic: expected one of them");
    if (!step && (b->prefill.n || b->stages))
        argp_error(state, "--%s: goes with step, not with kernels", b->stages ? "stages" : "prefill");
    if (b->layers && !b->shape)
        argp_error(state, "--layers: goes with random weights (--synthetic), not with a checkpoint");
    struct projection known;
    if (b->project && (!step || b->json))
        argp_error(state, "--project: goes with step and its table, not with kernels or --json");
    if (b->project && projection_named(b->project, &known))
        argp_error(state, "%s", err_text());
    if (step && most(&b->rows) > BENCH_ROWS)
        argp_error(state, "--rows: expected at most %d rows a step, found %d", BENCH_ROWS, most(&b->rows));
    if (!b->dir && !b->shape)
        b->dir = default_dir;
    if (!b->rows.n)
        b->rows = step ? step_rows : kernel_rows;
    if (!b->context.n)
        b->context = step ? step_context : kernel_context;
    if (step && !b->prefill.n)
        b->prefill = step_prefill;
}

enum {
    KEY_WEIGHTS = 1000,
    KEY_ACTIVATIONS,
    KEY_KV,
    KEY_STAGES,
    KEY_WARMUP,
    KEY_PROJECT,
    KEY_AL,
    KEY_DRAFT,
    KEY_COLLECTIVE,
    KEY_CONFIG,
    KEY_SHARD,
    KEY_LAYERS,
    KEY_SKEW,
    KEY_WORLD,
    KEY_GPUS,
    KEY_COST
};

/* A cost table is JSON of the points that analyze --what-if asks for. */
static void ask_json(struct argp_state *state, struct bench *b, int key)
{
    b->json = 1;
    if (key != KEY_COST)
        return;
    parse_list(state, "rows", "1,2,3,4,5,6,7,8,9,10,12,16,24,32,48,64", 1, BENCH_BULK_ROWS, &b->rows);
    parse_list(state, "context", "64,256,1024", 1, 1 << 20, &b->context);
    parse_list(state, "prefill", "0", 0, 1 << 20, &b->prefill);
}

/* What is measured, and what it is projected to. */
static error_t parse_model_option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case 'm':
        b->dir = arg;
        b->shape = b->shape == b->config.model.synthetic ? NULL : b->shape;
        break;
    case 's':
        b->shape = arg;
        b->dir = b->dir == b->config.model.path ? NULL : b->dir;
        break;
    case KEY_CONFIG:
        parse_config(state, b, arg);
        break;
    case KEY_SHARD:
        b->numbers.shard = parse_shard(state, arg);
        break;
    case KEY_LAYERS:
        b->layers = parse_one(state, "layers", arg, 1, 1024);
        break;
    case KEY_SKEW:
        b->numbers.expert_skew = (float)parse_real(state, "expert-skew", arg, 0, 1.5);
        break;
    case KEY_WEIGHTS:
        b->numbers.weights = parse_numbers(state, "weights", arg, MODEL_FP8);
        break;
    case KEY_ACTIVATIONS:
        b->numbers.activations = parse_numbers(state, "activations", arg, MODEL_FP8_STATIC);
        break;
    case KEY_KV:
        b->numbers.kv = parse_numbers(state, "kv", arg, MODEL_FP8);
        break;
    case KEY_PROJECT:
        b->project = arg;
        break;
    case KEY_AL:
        b->al = parse_real(state, "al", arg, 1, 1000);
        break;
    case KEY_DRAFT:
        b->draft_ms = parse_real(state, "draft-ms", arg, 0, 1000);
        break;
    case KEY_COLLECTIVE:
        b->collective_us = parse_real(state, "collective-us", arg, 0.01, 1e6);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case 'r':
        parse_list(state, "rows", arg, 1, BENCH_BULK_ROWS, &b->rows);
        break;
    case 'c':
        parse_list(state, "context", arg, 1, 1 << 20, &b->context);
        break;
    case 'p':
        parse_list(state, "prefill", arg, 0, 1 << 20, &b->prefill);
        break;
    case 'd':
        b->kind = arg;
        break;
    case 'g':
        b->index = parse_one(state, "index", arg, 0, 1023);
        break;
    case 'e':
        b->eager = 1;
        break;
    case KEY_WORLD:
        b->world = parse_one(state, "world", arg, 1, COMM_WORLD_MAX);
        break;
    case KEY_GPUS:
        b->gpus = parse_one(state, "gpus", arg, 1, COMM_WORLD_MAX);
        break;
    case KEY_STAGES:
        b->stages = 1;
        break;
    case 't':
        b->threads = parse_one(state, "threads", arg, 0, 1024);
        break;
    case 'n':
        b->repeats = parse_one(state, "repeats", arg, 1, BENCH_REPEATS);
        break;
    case KEY_WARMUP:
        b->warmup = parse_one(state, "warmup", arg, 1, 10000);
        break;
    case 'i':
        b->isa = arg;
        break;
    case 'j':
    case KEY_COST:
        ask_json(state, b, key);
        break;
    case ARGP_KEY_ARG:
        parse_subject(state, b, arg);
        break;
    case ARGP_KEY_END:
        finish_options(state, b);
        break;
    default:
        return parse_model_option(key, arg, state);
    }
    return 0;
}

static const struct argp_option options[] = {
    {"model", 'm', "DIR", 0, "Hugging Face directory (default models/smollm2-135m-instruct)", 0},
    {"synthetic", 's', "NAME", 0, "random weights of a published shape instead: llama-3.1-8b, maverick, ...",
     0},
    {"config", KEY_CONFIG, "FILE", 0,
     "what an experiment file says of model and device; options after it win", 0},
    {"shard", KEY_SHARD, "R/W", 0, "one rank alone of a group of W, its collectives replaced by copies", 0},
    {"layers", KEY_LAYERS, "N", 0, "of --synthetic, the first N layers (default all)", 0},
    {"expert-skew", KEY_SKEW, "X", 0, "of --synthetic, as synthetic.expert_skew (default 0: experts alike)",
     0},
    {"weights", KEY_WEIGHTS, "NUMBERS", 0, "bf16 or fp8 (default bf16)", 0},
    {"activations", KEY_ACTIVATIONS, "NUMBERS", 0, "bf16, fp8 or fp8-static (default bf16)", 0},
    {"kv", KEY_KV, "NUMBERS", 0, "bf16 or fp8, of the cache (default bf16)", 0},
    {"rows", 'r', "LIST", 0, "rows a pass has (default 1,2,4,8,16,32,64; kernels: 1,8,64)", 0},
    {"context", 'c', "LIST", 0, "committed tokens before them (default 128,1024; kernels: 1024)", 0},
    {"prefill", 'p', "LIST", 0, "step: prompts of so many tokens (default 512; 0: none)", 0},
    {"stages", KEY_STAGES, 0, 0, "step: each operation alone as well", 0},
    {"project", KEY_PROJECT, "NAME", 0, "step: below the table, what the passes would take on b200x8", 0},
    {"al", KEY_AL, "N", 0, "project: tokens a step, the bonus included (default 1)", 0},
    {"draft-ms", KEY_DRAFT, "N", 0, "project: drafting a step (default 0)", 0},
    {"collective-us", KEY_COLLECTIVE, "N", 0, "project: one all-reduce (default 8.7)", 0},
    {"world", KEY_WORLD, "N", 0, "comm: ranks (default 2)", 0},
    {"gpus", KEY_GPUS, "N", 0, "comm: how many GPUs, from --index on, they are on (default one each)", 0},
    {"device", 'd', "KIND", 0, "cpu or cuda (default cpu)", 0},
    {"index", 'g', "N", 0, "which GPU (default 0)", 0},
    {"eager", 'e', 0, 0, "cuda: enqueue each operation instead of a recorded pass", 0},
    {"threads", 't', "N", 0, "CPU threads (default 0: all cores)", 0},
    {"repeats", 'n', "N", 0, "measured passes a point (default 30)", 0},
    {"warmup", KEY_WARMUP, "N", 0, "passes before them (default 5)", 0},
    {"isa", 'i', "NAME", 0, "auto, avx512, avx2 or portable", 0},
    {"json", 'j', 0, 0, "print JSON", 0},
    {"cost-table", KEY_COST, 0, 0,
     "step: JSON over the rows and contexts that analyze --what-if asks for; -r and -c after it win", 0},
    {0}};

int command_bench(int argc, char **argv)
{
    static const struct argp argp = {
        options,
        parse_option,
        "step|kernels|comm",
        "Measures a decoding step, or each of its operations, against the time that reading "
        "its bytes takes; or the sums over a group of ranks.",
        0,
        0,
        0};
    struct bench b = {.kind = "cpu", .isa = "auto", .repeats = 30, .warmup = 5, .seed = 1, .world = 2};
    if (argp_parse(&argp, argc, argv, 0, NULL, &b))
        FAIL(ERR_CONFIG, "bench: the arguments make no sense; see --help");
    int i = 0;
    while (strcmp(b.what, subjects[i].name) != 0)
        i++;
    int rc = subjects[i].open ? bench_open(&b) : 0;
    if (rc == 0)
        rc = subjects[i].measure(&b);
    bench_close(&b);
    return rc;
}
