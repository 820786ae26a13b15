/* bench: what it prints is complete and adds up, and the operations that it times are those of a pass. No
 * time is asserted. */
#include "engine/forward.h"
#include "engine/json.h"
#include "engine/log.h"
#include "experiments/bench_tap.h"
#include "tests/expect.h"
#include "tests/toy.h"
#include "tests/toy_dir.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MAX_TEXT = 1 << 16,
    LAYERS = 2,
    HIDDEN = 32,
    TOKEN_BYTES = LAYERS * 2 * 16 * 4
}; /* of the model of toy_dir */

static struct toy_dir dir;
static char out[MAX_TEXT];

static void make_dir(void)
{
    ck_assert_int_eq(toy_dir_make(&dir, SPECBED_GOLDEN_DIR), 0);
}

static void remove_dir(void)
{
    toy_dir_remove(&dir);
}

/* `specbed -q bench ARGS` on one thread; fills out with both streams and returns the exit code. */
static int bench(const char *args)
{
    char command[1024];
    snprintf(command, sizeof command, "%s -q bench -t 1 -n 2 --warmup 1 %s 2>&1", SPECBED_PROGRAM, args);
    FILE *f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    out[fread(out, 1, sizeof out - 1, f)] = 0;
    const int status = pclose(f);
    ck_assert_msg(WIFEXITED(status), "ended by a signal: %s", out);
    return WEXITSTATUS(status);
}

static int bench_toy(const char *what, const char *args)
{
    char all[400];
    snprintf(all, sizeof all, "%s -m %s %s", what, dir.model, args);
    return bench(all);
}

/* The caller's. */
static json_t *bench_json(const char *what, const char *args)
{
    json_t *o = NULL;
    char all[192];
    snprintf(all, sizeof all, "--json %s", args);
    const int code = bench_toy(what, all);
    ck_assert_msg(code == 0, "exit code %d: %s", code, out);
    ck_assert_msg(json_parse(out, strlen(out), "bench", &o) == 0, "%s", out);
    return o;
}

static void holds(const char *part)
{
    ck_assert_msg(strstr(out, part) != NULL, "expected '%s' in: %s", part, out);
}

static void has_keys(const json_t *o, const char *const *keys, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(json_object_get(o, keys[i]) != NULL, "expected the key '%s'", keys[i]);
    ck_assert_msg(json_object_size(o) == n, "expected %zu keys, found %zu", n, json_object_size(o));
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    ck_assert_msg(json_is_number(v), "expected a number at '%s'", key);
    return json_number_value(v);
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    ck_assert_msg(s != NULL, "expected a text at '%s'", key);
    return s;
}

/* What heads either report, and one key with the results. */
static void check_head(const json_t *o, const char *what, const char *results)
{
    const char *const keys[] = {
        "schema_version",   "what",       "model",   "weights", "activations", "kv",
        "device",           "isa",        "index",   "threads", "clock_mhz",   "memory_mhz",
        "cache_bytes",      "recorded",   "warmup",  "repeats", "peak_mib",    "weight_bytes",
        "read_bytes_per_s", "device_mib", "empty_s", "layers",  "shard",       results};
    has_keys(o, keys, sizeof keys / sizeof *keys);
    ck_assert_int_eq((int)number(o, "schema_version"), 3);
    ck_assert_str_eq(text(o, "what"), what);
    ck_assert_int_eq((int)number(o, "threads"), 1);
    ck_assert_int_eq((int)number(o, "warmup"), 1);
    ck_assert_int_eq((int)number(o, "repeats"), 2);
    ck_assert(json_is_null(json_object_get(o, "empty_s"))); /* calls have nothing between them */
    ck_assert(json_is_null(json_object_get(o, "shard")));
}

/* Floor, share and rate follow from bytes, time and ceiling. */
static void check_stage(const json_t *s, double ceiling)
{
    static const char *const keys[] = {
        "part",    "name",     "moves",   "rows",          "context",   "n",      "k",
        "count",   "launches", "bytes",   "rotated_bytes", "median_s",  "p90_s",  "bytes_per_s",
        "of_roof", "floor_s",  "rival_s", "rival_ratio",   "in_pass_s", "experts"};
    has_keys(s, keys, sizeof keys / sizeof *keys);
    const double bytes = number(s, "bytes"), median = number(s, "median_s");
    ck_assert_double_gt(bytes, 0);
    ck_assert_double_ge(number(s, "rotated_bytes"), bytes * number(s, "count"));
    ck_assert_double_le(median, number(s, "p90_s"));
    ck_assert_double_eq_tol(number(s, "floor_s") * ceiling, bytes, 1e-6 * bytes);
    ck_assert_double_eq_tol(number(s, "of_roof") * median * ceiling, bytes, 1e-6 * bytes);
    ck_assert(json_is_null(json_object_get(s, "rival_s")));
    ck_assert_int_eq(json_is_number(json_object_get(s, "experts")), strcmp(text(s, "name"), "moe") == 0);
    ck_assert(strcmp(text(s, "part"), "pass") == 0 || json_is_null(json_object_get(s, "in_pass_s")));
}

static const json_t *stage_named(const json_t *stages, const char *name)
{
    for (size_t i = 0; i < json_array_size(stages); i++)
        if (strcmp(text(json_array_get(stages, i), "name"), name) == 0)
            return json_array_get(stages, i);
    return NULL;
}

static void check_count(const json_t *stages, const char *name, int count)
{
    const json_t *s = stage_named(stages, name);
    ck_assert_msg(s != NULL, "expected a stage '%s'", name);
    ck_assert_msg((int)number(s, "count") == count, "'%s': expected %d a pass, found %d", name, count,
                  (int)number(s, "count"));
}

START_TEST(a_step_has_a_point_for_every_row_count_and_context)
{
    static const char *const keys[] = {"stage",          "rows",
                                       "context",        "median_s",
                                       "p90_s",          "host_median_s",
                                       "host_p90_s",     "bytes",
                                       "floor_s",        "of_roof",
                                       "rows_ratio",     "launches",
                                       "stages",         "launches_per_layer",
                                       "launch_s",       "idle_s",
                                       "experts",        "ran_mhz",
                                       "ran_memory_mhz", "slowed_by"};
    json_t *o = bench_json("step", "-r 1,5 -c 20,40 -p 0,70,130");
    const json_t *points = json_object_get(o, "points");
    check_head(o, "step", "points");
    ck_assert_uint_eq(json_array_size(points), 6);
    for (size_t i = 0; i < 6; i++) {
        const json_t *p = json_array_get(points, i);
        has_keys(p, keys, sizeof keys / sizeof *keys);
        ck_assert_str_eq(text(p, "stage"), i > 3 ? "prefill" : i % 2 ? "verify" : "decode");
        ck_assert_int_eq((int)number(p, "rows"), i == 5 ? 130 : i == 4 ? 70 : i % 2 ? 5 : 1);
        ck_assert_int_eq((int)number(p, "context"), i > 3 ? 0 : i / 2 ? 40 : 20);
        ck_assert_double_gt(number(p, "host_median_s"), 0);
        ck_assert_uint_eq(json_array_size(json_object_get(p, "stages")), 0);
        if (i > 3)
            continue;
        ck_assert_double_le(number(p, "median_s"), number(p, "p90_s"));
        ck_assert_double_eq(number(p, "bytes"),
                            number(o, "weight_bytes") + TOKEN_BYTES * number(p, "context"));
        ck_assert_int_eq((int)number(p, "launches"), 3 + LAYERS * 8 + 2);
        ck_assert_double_eq(number(p, "launches_per_layer"), 8);
        ck_assert_double_eq_tol(number(p, "launch_s") * number(p, "launches"), number(p, "median_s"), 1e-9);
        ck_assert(json_is_null(json_object_get(p, "experts")) &&
                  json_is_null(json_object_get(p, "slowed_by")));
        if (i % 2 == 0)
            ck_assert_double_eq(number(p, "rows_ratio"), 1);
    }
    json_decref(o);
}
END_TEST

START_TEST(a_step_is_taken_apart_into_stages)
{
    json_t *o = bench_json("step", "-r 3 -c 20 -p 0 --stages");
    const json_t *p = json_array_get(json_object_get(o, "points"), 0), *stages = json_object_get(p, "stages");
    double launches = 0;
    ck_assert_uint_eq(json_array_size(json_object_get(o, "points")), 1);
    ck_assert(json_is_null(json_object_get(p, "rows_ratio")));
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *s = json_array_get(stages, i);
        check_stage(s, number(o, "read_bytes_per_s"));
        if (strcmp(text(s, "part"), "pass") == 0)
            launches += number(s, "count") * number(s, "launches");
    }
    ck_assert_double_eq(launches, number(p, "launches"));
    json_decref(o);
}
END_TEST

START_TEST(kernels_lists_every_operation_of_a_pass)
{
    static const char *const each_layer[] = {"qkv", "attention", "o+residual", "swiglu", "down+residual"};
    static const char *const once[] = {"embed",  "rmsnorm",    "rope_table", "head",  "logits",
                                       "accept", "node_stats", "plan",       "commit"};
    static const char *const keys[] = {"rows",      "context", "median_s",       "p90_s",
                                       "launches",  "sum_s",   "stages",         "idle_s",
                                       "in_pass_s", "ran_mhz", "ran_memory_mhz", "slowed_by"};
    json_t *o = bench_json("kernels", "-r 1,64 -c 30");
    const json_t *passes = json_object_get(o, "passes");
    check_head(o, "kernels", "passes");
    ck_assert_uint_eq(json_array_size(passes), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *p = json_array_get(passes, i), *stages = json_object_get(p, "stages");
        has_keys(p, keys, sizeof keys / sizeof *keys);
        ck_assert_int_eq((int)number(p, "rows"), i ? 64 : 1);
        for (size_t k = 0; k < 5; k++)
            check_count(stages, each_layer[k], LAYERS);
        for (size_t k = 0; k < sizeof once / sizeof *once; k++)
            check_count(stages, once[k], 1);
        ck_assert_uint_eq(json_array_size(stages), i ? 15 : 14);
        ck_assert_int_eq(stage_named(stages, "ngram") != NULL, (int)i); /* one row has no tree */
        ck_assert_double_eq(number(stage_named(stages, "head"), "n"), TOY_DIR_VOCAB);
        ck_assert_double_eq(number(stage_named(stages, "head"), "k"), HIDDEN);
        double sum = 0;
        for (size_t k = 0; k < json_array_size(stages); k++) {
            const json_t *s = json_array_get(stages, k);
            check_stage(s, number(o, "read_bytes_per_s"));
            if (strcmp(text(s, "part"), "pass") == 0)
                sum += number(s, "count") * number(s, "median_s");
        }
        ck_assert_double_eq_tol(number(p, "sum_s"), sum, 1e-9 * sum);
    }
    json_decref(o);
}
END_TEST

/* The last layer of a prefill pass ends with its keys and values. */
START_TEST(kernels_of_many_rows_are_those_of_prefill)
{
    json_t *o = bench_json("kernels", "-r 100 -c 10");
    const json_t *stages = json_object_get(json_array_get(json_object_get(o, "passes"), 0), "stages");
    check_count(stages, "qkv", LAYERS);
    check_count(stages, "attention", LAYERS - 1);
    check_count(stages, "swiglu", LAYERS - 1);
    ck_assert_ptr_null(stage_named(stages, "head"));
    ck_assert_ptr_null(stage_named(stages, "logits"));
    ck_assert_ptr_null(stage_named(stages, "accept"));
    json_decref(o);
}
END_TEST

/* Every second layer of this small model has experts, one of which is added to the shared one in each row. */
START_TEST(layers_of_experts_have_stages_and_read_those_that_rows_chose)
{
    static const int rows[] = {1, 8, 64, 100};
    char args[400];
    json_t *o = NULL;
    snprintf(args, sizeof args, "kernels --json -r 1,8,64,100 -c 20 -m %s/llama4/maverick",
             SPECBED_GOLDEN_DIR);
    const int code = bench(args);
    ck_assert_msg(code == 0, "exit code %d: %s", code, out);
    ck_assert_msg(json_parse(out, strlen(out), "bench", &o) == 0, "%s", out);
    const json_t *passes = json_object_get(o, "passes");
    double before = 0;
    for (size_t i = 0; i < 4; i++) {
        const json_t *stages = json_object_get(json_array_get(passes, i), "stages"),
                     *moe = stage_named(stages, "moe");
        check_count(stages, "swiglu", 4);
        check_count(stages, "route", rows[i] > 64 ? 3 : 4); /* prefill leaves the last layer early */
        check_count(stages, "moe", rows[i] > 64 ? 3 : 4);
        check_count(stages, "temperature", 1);
        check_stage(moe, number(o, "read_bytes_per_s"));
        const double experts = number(moe, "experts"), one = number(moe, "bytes") / (1 + experts);
        ck_assert_double_ge(experts, i ? before : 1);
        ck_assert_double_le(experts, i ? 8 : 1);
        ck_assert_double_eq(one, 3.0 * 16 * 32 * 2); /* three matrices of an expert */
        before = experts;
    }
    ck_assert_double_gt(before, 1);
    json_decref(o);
}
END_TEST

START_TEST(a_step_says_how_many_experts_it_reads)
{
    char args[400];
    json_t *o = NULL;
    snprintf(args, sizeof args, "step --json -r 1,6 -c 20 -p 0 -m %s/llama4/maverick", SPECBED_GOLDEN_DIR);
    ck_assert_msg(bench(args) == 0, "%s", out);
    ck_assert_msg(json_parse(out, strlen(out), "bench", &o) == 0, "%s", out);
    const json_t *one = json_array_get(json_object_get(o, "points"), 0),
                 *six = json_array_get(json_object_get(o, "points"), 1);
    ck_assert_double_eq(number(one, "experts"), 1);
    ck_assert_double_gt(number(six, "experts"), 1);
    ck_assert_double_eq(number(six, "bytes") - number(one, "bytes"),
                        (number(six, "experts") - 1) * 4 * 3.0 * 16 * 32 * 2);
    json_decref(o);
}
END_TEST

/* The last of what is said wins; a file of experiments counts as said where it stands. */
START_TEST(a_file_of_experiments_names_model_and_device)
{
    char path[] = "/tmp/specbed-bench-XXXXXX", args[200];
    const int fd = mkstemp(path);
    FILE *f = fdopen(fd, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f,
            "model: {path: %s, weights: fp8, kv: fp8}\ndevice: {isa: portable}\nworkload: {dataset: [x]}\n",
            dir.model);
    fclose(f);
    snprintf(args, sizeof args, "step -r 1 -c 8 -p 0 --config %s --kv bf16", path);
    ck_assert_msg(bench(args) == 0, "%s", out);
    holds("weights fp8, activations bf16, cache bf16");
    holds("portable");
    snprintf(args, sizeof args, "step --config %s.none", path);
    ck_assert_int_eq(bench(args), 2);
    holds("--config: ");
    unlink(path);
}
END_TEST

START_TEST(fp8_activations_are_a_stage_of_their_own)
{
    json_t *o = bench_json("kernels", "-r 2 -c 10 --weights fp8 --activations fp8 --kv fp8");
    const json_t *stages = json_object_get(json_array_get(json_object_get(o, "passes"), 0), "stages");
    ck_assert_str_eq(text(o, "weights"), "fp8");
    ck_assert_str_eq(text(o, "activations"), "fp8");
    ck_assert_str_eq(text(o, "kv"), "fp8");
    check_count(stages, "quantise", 4 * LAYERS);
    json_decref(o);
}
END_TEST

START_TEST(tables_name_their_columns_and_what_they_depend_on)
{
    static const char *const head[] = {"model  ", "device  cpu 0: ", "ceiling ", "1 warm-up, 2 measured",
                                       "memory  "};
    static const char *const step[] = {"median ms", "p90 ms",  "tokens/s",     "floor ms",
                                       "of roof",   "x 1 row", "launches",     "with host",
                                       "decode",    "prefill", "sum of stages"};
    static const char *const kernels[] = {
        "operation",  "us",  "GB/s",          "of roof",       "floor us",
        "library us", "qkv", "down+residual", "sum of stages", "the whole pass"};
    ck_assert_msg(bench_toy("step", "-r 1 -c 20 -p 8 --stages") == 0, "%s", out);
    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        holds(head[i]);
    for (size_t i = 0; i < sizeof step / sizeof *step; i++)
        holds(step[i]);
    ck_assert_msg(bench_toy("kernels", "-r 1 -c 20") == 0, "%s", out);
    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        holds(head[i]);
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        holds(kernels[i]);
}
END_TEST

START_TEST(what_makes_no_sense_is_told)
{
    static const struct {
        const char *args, *part;
        int code;
    } cases[] = {
        {"", "expected what to measure: step or kernels", 2},
        {"steps", "expected step or kernels, found 'steps'", 2},
        {"step kernels", "expected one of step and kernels, found another: 'kernels'", 2},
        {"step --weights int4", "--weights: expected bf16 or fp8, found 'int4'", 2},
        {"step --kv f32", "--kv: expected bf16 or fp8, found 'f32'", 2},
        {"step -r 65", "--rows: expected at most 64 rows a step, found 65", 2},
        {"step -r 0", "--rows: expected up to 16 whole numbers of [1, 8192]", 2},
        {"step -r 1,,2", "found '1,,2'", 2},
        {"step -c ''", "--context: expected up to 16 whole numbers", 2},
        {"step -c 1x", "found '1x'", 2},
        {"step -r 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "expected up to 16 whole numbers", 2},
        {"step -n 1025", "--repeats: expected a whole number of [1, 1024], found '1025'", 2},
        {"step -g -1", "--index: expected a whole number of [0, 1023], found '-1'", 2},
        {"kernels -p 8", "--prefill: goes with step, not with kernels", 2},
        {"kernels --stages", "--stages: goes with step, not with kernels", 2},
        {"step -m x -s llama-3.1-8b", "--model and --synthetic: expected one of them", 2},
        {"step -s llama-9", "model shape 'llama-9': expected one of ", 2},
        {"step -d tpu", "device 'tpu': expected one of: cpu, cuda", 2},
        {"step --shard 8/8", "--shard: expected RANK/WORLD, a rank of [0, world)", 2},
        {"step --shard -1/8", "found '-1/8'", 2},
        {"step --shard 1/", "found '1/'", 2},
        {"step --shard 1/8x", "found '1/8x'", 2},
        {"step --shard 0/9", "in a world of [1, 8], found '0/9'", 2},
        {"step -m x --layers 3", "--layers: goes with random weights (--synthetic)", 2},
        {"step -s smollm2-135m --layers 31", "--layers: expected at most the 30 layers of", 2},
        {"step --expert-skew 2", "--expert-skew: expected a number from 0 to 1.5", 2},
        {"step -m nowhere", "loading model 'nowhere'", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = bench(cases[i].args);
        ck_assert_msg(code == cases[i].code, "'%s' gave exit code %d: %s", cases[i].args, code, out);
        holds(cases[i].part);
    }
    ck_assert_int_eq(bench_toy("step", "--activations fp8"), 2);
    holds("expected model.weights fp8 beside it");
    ck_assert_int_eq(bench_toy("step", "-c 9000 -r 1 -p 0"), 1);
    holds("expected a position below the model's context of 8192");
}
END_TEST

/* A tap over the toy model, and a pass of three rows behind ten tokens. */
struct tapped {
    struct tap tap;
    struct model m;
    struct kv kv;
    struct forward f;
};

static void open_tapped(struct tapped *t)
{
    const struct backend_opts opts = {.threads = 1, .isa = "portable"};
    const struct model_config cfg = toy_config();
    const struct forward_row rows[3] = {{5, 0, -1}, {6, 0, 0}, {7, 0, 0}};
    const int text[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&t->tap.be, "cpu", &opts), 0);
    ck_assert_int_eq(model_synthetic(&t->m, &t->tap.be, &cfg, TOY_SEED, NULL), 0);
    ck_assert_int_eq(kv_init(&t->kv, &t->tap.be, &t->m, 1, 64), 0);
    ck_assert_int_eq(forward_init(&t->f, &t->m, &t->kv, 16, 8), 0);
    ck_assert_int_eq(forward_prefill(&t->f, 0, text, 10), 0);
    ck_assert_int_eq(forward_run(&t->f, rows, 3, FORWARD_LOGITS), 0);
}

static void close_tapped(struct tapped *t)
{
    forward_deinit(&t->f);
    kv_deinit(&t->kv);
    model_deinit(&t->m);
    backend_close(&t->tap.be);
    tap_deinit(&t->tap);
}

START_TEST(a_tap_computes_nothing_and_its_list_is_the_pass)
{
    static float logits[3 * TOY_VOCAB];
    struct tapped t = {0};
    open_tapped(&t);
    memcpy(logits, t.f.logits, sizeof logits);
    memset(t.f.logits, 0, sizeof logits);
    const size_t before = t.tap.be.launches;
    for (int again = 0; again < 2; again++) {
        tap_open(&t.tap);
        ck_assert_int_eq(forward_enqueue(&t.f, &t.f.rows, 64, FORWARD_LOGITS), 0);
        tap_close(&t.tap);
        ck_assert_int_eq(t.tap.n, 3 + 5 * t.m.cfg.layers + 2);
    }
    ck_assert_uint_eq(t.tap.be.launches, before);
    for (int i = 0; i < 3 * TOY_VOCAB; i++)
        EXPECT(t.f.logits[i] == 0);
    for (int i = 0; i < t.tap.n; i++)
        ck_assert_int_eq(operation_enqueue(&t.tap.list[i], &t.tap.be), 0);
    ck_assert_uint_gt(t.tap.be.launches, before);
    ck_assert_mem_eq(t.f.logits, logits, sizeof logits);
    close_tapped(&t);
}
END_TEST

START_TEST(stamps_lie_in_the_order_they_were_set)
{
    const struct backend_opts opts = {.threads = 1, .isa = "auto"};
    struct backend be = {0};
    int64_t ns[3];
    ck_assert_int_eq(backend_open(&be, "cpu", &opts), 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(be.ops->mark(&be, i), 0);
    ck_assert_int_eq(be.ops->sync(&be), 0);
    ck_assert_int_eq(be.ops->marks(&be, 3, ns), 0);
    ck_assert(ns[0] <= ns[1] && ns[1] <= ns[2]);
    ck_assert_int_eq(be.ops->mark(&be, BACKEND_MARKS - 1), 0);
    backend_close(&be);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bench");
    TCase *program = tcase_create("program"), *tap = tcase_create("tap");
    tcase_add_unchecked_fixture(program, make_dir, remove_dir);
    tcase_add_test(program, a_step_has_a_point_for_every_row_count_and_context);
    tcase_add_test(program, a_step_is_taken_apart_into_stages);
    tcase_add_test(program, kernels_lists_every_operation_of_a_pass);
    tcase_add_test(program, kernels_of_many_rows_are_those_of_prefill);
    tcase_add_test(program, layers_of_experts_have_stages_and_read_those_that_rows_chose);
    tcase_add_test(program, a_step_says_how_many_experts_it_reads);
    tcase_add_test(program, a_file_of_experiments_names_model_and_device);
    tcase_add_test(program, fp8_activations_are_a_stage_of_their_own);
    tcase_add_test(program, tables_name_their_columns_and_what_they_depend_on);
    tcase_add_test(program, what_makes_no_sense_is_told);
    tcase_add_test(tap, a_tap_computes_nothing_and_its_list_is_the_pass);
    tcase_add_test(tap, stamps_lie_in_the_order_they_were_set);
    suite_add_tcase(s, program);
    suite_add_tcase(s, tap);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
