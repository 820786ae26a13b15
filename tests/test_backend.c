/* test_backend: opening, threads, and memory of the CPU backend; what it computes is tested with its kernels.
 */
#include "engine/backend.h"
#include "engine/err.h"
#include <check.h>
#include <sched.h>
#include <string.h>

static struct backend be;

static void setup(void)
{
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
}

static void teardown(void)
{
    backend_close(&be);
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

START_TEST(an_unknown_backend_or_instruction_set_lists_what_there_is)
{
    struct backend b = {.ops = NULL};
    expect_error(backend_open(&b, "tpu", &(struct backend_opts){0}), ERR_CONFIG,
                 "device 'tpu': expected one of: cpu, cuda");
    expect_error(backend_open(&b, "cpu", &(struct backend_opts){.isa = "mmx"}), ERR_CONFIG,
                 "instruction set 'mmx': this machine has: auto, ");
    expect_error(backend_open(&b, "cpu", &(struct backend_opts){.threads = -1}), ERR_CONFIG, "found -1");
    ck_assert_int_eq(backend_open(&b, "cpu", &(struct backend_opts){0}), 0);
    ck_assert_int_ge(b.threads, 1);
    backend_close(&b);
    backend_close(&b);
}
END_TEST

static int all_zero(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return 0;
    return 1;
}

START_TEST(allocations_are_zeroed_aligned_and_returned)
{
    const size_t sizes[] = {0, 1, 63, 64, 1000, (1 << 20) - 1, 1 << 20, 5 << 20};
    void *p[8];
    for (int i = 0; i < 8; i++) {
        ck_assert_int_eq(be.ops->alloc(&be, sizes[i], &p[i]), 0);
        ck_assert_uint_eq((uintptr_t)p[i] % 64, 0);
        ck_assert_int_eq(all_zero(p[i], sizes[i]), 1);
    }
    for (int i = 0; i < 8; i += 2)
        be.ops->release(&be, p[i]);
    be.ops->release(&be, NULL);
    ck_assert_uint_eq(be.allocated, 64 + 64 + (1 << 20) + (5 << 20));
    expect_error(be.ops->alloc(&be, SIZE_MAX, &p[0]), ERR_MEMORY, "cannot allocate");
    expect_error(be.ops->alloc(&be, SIZE_MAX / 2, &p[0]), ERR_MEMORY,
                 "cannot allocate 9223372036854775807 bytes");
}
END_TEST

START_TEST(the_default_is_one_thread_a_core_that_may_be_used)
{
    cpu_set_t all, one;
    struct backend b = {.ops = NULL};
    int first = 0;
    ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    ck_assert_int_eq(backend_open(&b, "cpu", &(struct backend_opts){0}), 0);
    ck_assert_int_eq(b.threads, CPU_COUNT(&all));
    backend_close(&b);
    ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
    ck_assert_int_eq(backend_open(&b, "cpu", &(struct backend_opts){0}), 0);
    ck_assert_int_eq(b.threads, 1);
    ck_assert_ptr_nonnull(strstr(b.device, ", 1 thread)"));
    ck_assert_ptr_nonnull(strstr(b.device, b.isa));
    backend_close(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("backend");
    TCase *opens = tcase_create("opens"), *memory = tcase_create("memory");
    tcase_add_test(opens, an_unknown_backend_or_instruction_set_lists_what_there_is);
    tcase_add_test(opens, the_default_is_one_thread_a_core_that_may_be_used);
    tcase_add_checked_fixture(memory, setup, teardown);
    tcase_add_test(memory, allocations_are_zeroed_aligned_and_returned);
    suite_add_tcase(s, opens);
    suite_add_tcase(s, memory);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
