/* bench on a GPU: stamps, counted launches and the library to compare with, by way of the program. No time is
 * asserted but that it passed. The program is looked for beside this one first. */
#include "engine/json.h"
#include "tests/cuda_suite.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT = 1 << 18, LAYERS = 30 }; /* of smollm2-135m */

static char program[512] = SPECBED_PROGRAM;
static char out[MAX_TEXT];

static void find_program(const char *self)
{
    char beside[512];
    const char *slash = strrchr(self, '/');
    if (!slash)
        return;
    snprintf(beside, sizeof beside, "%.*s/specbed", (int)(slash - self < 400 ? slash - self : 0), self);
    if (access(beside, X_OK) == 0)
        memcpy(program, beside, sizeof program);
}

/* Both streams into `out`; the exit code as pclose has it. */
static int run(const char *args)
{
    char command[2048];
    snprintf(command, sizeof command, "%s -q %s 2>&1", program, args);
    FILE *f = popen(command, "r");
    if (!f)
        return -1;
    out[fread(out, 1, sizeof out - 1, f)] = 0;
    return pclose(f);
}

static json_t *bench_json(const char *args)
{
    json_t *o = NULL;
    char all[512];
    snprintf(all, sizeof all, "bench %s -d cuda -s smollm2-135m -n 3 --warmup 1 --json", args);
    const int status = run(all);
    ck_assert_msg(status == 0, "status %d of '%s': %s", status, all, out);
    ck_assert_msg(json_parse(out, strlen(out), "bench", &o) == 0, "%s", out);
    return o;
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    ck_assert_msg(json_is_number(v), "expected a number at '%s'", key);
    return json_number_value(v);
}

/* Launches of a recorded pass are those of its operations one by one; every product has a rival. */
static void check_stages(const json_t *stages, double launches)
{
    double sum = 0;
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *s = json_array_get(stages, i);
        const char *name = json_string_value(json_object_get(s, "name"));
        ck_assert_msg(number(s, "median_s") > 0 && number(s, "launches") >= 1,
                      "stage '%s': %g s, %g launches", name, number(s, "median_s"), number(s, "launches"));
        if (strcmp(json_string_value(json_object_get(s, "part")), "pass") == 0) {
            ck_assert_msg(json_object_get(s, "in_pass_s") != NULL, "'%s' has no time in its pass", name);
            sum += number(s, "count") * number(s, "launches");
        }
        if (json_is_number(json_object_get(s, "n")))
            ck_assert_msg(json_is_number(json_object_get(s, "rival_s")), "'%s' has no rival: %s", name,
                          "is cuBLASLt installed?");
    }
    ck_assert_msg(sum == launches, "the operations have %g launches, the recorded pass %g", sum, launches);
}

START_TEST(a_step_is_timed_on_the_device_and_taken_apart)
{
    json_t *o = bench_json("step -r 1,8 -c 300 -p 600 --stages");
    const json_t *points = json_object_get(o, "points");
    ck_assert_uint_eq(json_array_size(points), 3);
    ck_assert_double_gt(number(o, "read_bytes_per_s"), 0);
    ck_assert_double_gt(number(o, "clock_mhz"), 0);
    ck_assert_double_gt(number(o, "cache_bytes"), 0);
    ck_assert_double_gt(number(o, "empty_s"), 0);
    for (size_t i = 0; i < 2; i++) {
        const json_t *p = json_array_get(points, i);
        ck_assert_double_gt(number(p, "median_s"), 0);
        ck_assert_double_ge(number(p, "launches"), 3 + 4 * LAYERS + 2);
        ck_assert_double_ge(number(p, "launches_per_layer"), 4);
        ck_assert_double_eq_tol(number(p, "idle_s"), number(p, "launches") * number(o, "empty_s"), 1e-9);
        printf("%g rows: %g of %g MHz, held back by %s; %.3f us a kernel without work\n", number(p, "rows"),
               json_number_value(json_object_get(p, "ran_mhz")), number(o, "clock_mhz"),
               json_is_string(json_object_get(p, "slowed_by"))
                   ? json_string_value(json_object_get(p, "slowed_by"))
                   : "(not known)",
               1e6 * number(o, "empty_s"));
        check_stages(json_object_get(p, "stages"), number(p, "launches"));
    }
    json_decref(o);
}
END_TEST

START_TEST(eager_passes_have_the_launches_that_recorded_ones_have)
{
    json_t *recorded = bench_json("step -r 8 -c 300 -p 0"),
           *eager = bench_json("step -r 8 -c 300 -p 0 --eager");
    const json_t *a = json_array_get(json_object_get(recorded, "points"), 0);
    const json_t *b = json_array_get(json_object_get(eager, "points"), 0);
    ck_assert_double_ge(number(a, "launches"), number(b, "launches")); /* an operation may be several */
    json_decref(recorded);
    json_decref(eager);
}
END_TEST

START_TEST(kernels_run_with_fp8_and_in_bulk)
{
    json_t *o = bench_json("kernels -r 1,64,256 -c 300 --weights fp8 --activations fp8 --kv fp8");
    const json_t *passes = json_object_get(o, "passes");
    ck_assert_uint_eq(json_array_size(passes), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *p = json_array_get(passes, i);
        check_stages(json_object_get(p, "stages"), number(p, "launches"));
    }
    json_decref(o);
}
END_TEST

/* A layer of each kind of Maverick: the experts' own kernels, with the bytes of those that rows chose. */
START_TEST(experts_are_timed_with_the_bytes_that_they_read)
{
    json_t *o = NULL;
    const int status = run("bench kernels -r 1,8 -c 300 -d cuda -s maverick --layers 2 --weights fp8 -n 3 "
                           "--warmup 1 --json");
    ck_assert_msg(status == 0, "status %d: %s", status, out);
    ck_assert_msg(json_parse(out, strlen(out), "bench", &o) == 0, "%s", out);
    for (size_t i = 0; i < 2; i++) {
        const json_t *p = json_array_get(json_object_get(o, "passes"), i),
                     *stages = json_object_get(p, "stages");
        int found = 0;
        for (size_t k = 0; k < json_array_size(stages); k++) {
            const json_t *s = json_array_get(stages, k);
            if (strcmp(json_string_value(json_object_get(s, "name")), "moe") != 0)
                continue;
            const double experts = number(s, "experts");
            found = 1;
            printf("%g rows: %g experts, %.2f us, %.0f GB/s, %.1f%% of the ceiling\n", number(p, "rows"),
                   experts, 1e6 * number(s, "median_s"), 1e-9 * number(s, "bytes_per_s"),
                   100 * number(s, "of_roof"));
            ck_assert_double_ge(experts, 1);
            ck_assert_double_le(experts, number(p, "rows"));
            ck_assert_double_ge(number(s, "bytes"), (1 + experts) * 3.0 * 5120 * 8192);
        }
        ck_assert(found);
    }
    json_decref(o);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc > 0)
        find_program(argv[0]);
    if (run("list devices") != 0 || !strstr(out, "cuda 0: ")) {
        printf("skipped: no GPU to run on: %s\n", out);
        return CUDA_SUITE_SKIPPED;
    }
    Suite *s = suite_create("cuda bench");
    TCase *t = tcase_create("bench");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, a_step_is_timed_on_the_device_and_taken_apart);
    tcase_add_test(t, eager_passes_have_the_launches_that_recorded_ones_have);
    tcase_add_test(t, kernels_run_with_fp8_and_in_bulk);
    tcase_add_test(t, experts_are_timed_with_the_bytes_that_they_read);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
