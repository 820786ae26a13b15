/* Memory: nothing is allocated between open and close, and every allocation of an open may fail. The linker
 * sends all calls of the project's code to the __wrap_ functions below (see CMakeLists.txt). */
#include "engine/err.h"
#include "tests/expect.h"
#include "tests/toy_loop.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_int calls;     /* since the last reset */
static atomic_int fail_from; /* this call and all after it fail; 0: none */

/* Names that the linker's --wrap dictates. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
int __real_posix_memalign(void **p, size_t align, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
int __wrap_posix_memalign(void **p, size_t align, size_t n);

static int fails(void)
{
    int call = ++calls;
    return fail_from > 0 && call >= fail_from;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return fails() ? NULL : __real_aligned_alloc(align, n);
}

int __wrap_posix_memalign(void **p, size_t align, size_t n)
{
    return fails() ? ENOMEM : __real_posix_memalign(p, align, n);
}

enum { REQUESTS = 8 };
static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS];

static void setup(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
}

static void teardown(void)
{
    toy_close(&toy);
}

static struct spec_opts opts_of(const struct toy_draft *d, const char *rule)
{
    struct spec_opts o = toy_spec_opts(d);
    o.rule = accept_rule_find(rule);
    o.sampling.temperature = 0.8f;
    o.sampling.top_p = 0.9f;
    o.slots = 3;
    o.max_nodes = 12;
    o.reference = toy_reference;
    o.reference_ctx = plain;
    return o;
}

/* Allocations of a whole run between open and close. */
static int count_run(struct spec *s)
{
    static int prompt[REQUESTS][TOY_PROMPT];
    int n[REQUESTS];
    for (int i = 0; i < REQUESTS; i++)
        n[i] = toy_prompt(i, prompt[i]);
    calls = 0;
    for (int next = 0, done = 0; done < REQUESTS;) {
        for (; next < REQUESTS && spec_free_slots(s) > 0; next++) {
            const struct spec_request r = {prompt[next], n[next], TOY_ANSWER / 2, (uint32_t)next, NULL};
            EXPECT_MSG(spec_submit(s, &r) == 0, "%s", err_text());
        }
        struct spec_step step;
        EXPECT_MSG(spec_step(s, &step) == 0, "%s", err_text());
        done += step.n_finished;
    }
    return calls;
}

START_TEST(nothing_is_allocated_after_open)
{
    for (int i = 0; drafts_all[i]; i++)
        for (const struct accept_rule *rule = accept_rules; rule->name; rule++) {
            struct toy_draft d = toy_draft(drafts_all[i]->name, NULL);
            if (drafts_all[i] == &draft_ngram)
                d = toy_draft("ngram", "branches=3", NULL);
            struct spec_opts o = opts_of(&d, rule->name);
            struct spec *s = NULL;
            ck_assert_msg(spec_open(&s, &toy.model, &o) == 0, "%s", err_text());
            int n = count_run(s);
            ck_assert_msg(n == 0, "draft %s, rule %s: %d allocations", d.ops->name, rule->name, n);
            spec_close(s);
        }
}
END_TEST

static int allocating_observe(void *self, const struct draft_seen *seen, int n)
{
    void *p = malloc(8 + (size_t)n);
    (void)self, (void)seen;
    free(p);
    return p ? 0 : ERR_MEMORY;
}

START_TEST(a_draft_that_allocates_in_a_step_is_caught)
{
    struct draft_ops wrong = draft_oracle;
    wrong.observe = allocating_observe;
    struct toy_draft d = {.ops = &wrong, .option = {1}};
    struct spec_opts o = opts_of(&d, "greedy");
    struct spec *s = NULL;
    ck_assert_int_eq(spec_open(&s, &toy.model, &o), 0);
    ck_assert_int_gt(count_run(s), 0);
    spec_close(s);
}
END_TEST

/* Every allocation of an open fails once, and those after it: an error each time, and no leak
 * (AddressSanitizer looks). */
START_TEST(every_allocation_of_an_open_may_fail)
{
    for (int i = 0; drafts_all[i]; i++) {
        struct toy_draft d = toy_draft(drafts_all[i]->name, NULL);
        struct spec_opts o = opts_of(&d, "greedy");
        int failed = 0, rc;
        struct spec *s = NULL;
        size_t before = toy.be.allocated;
        do {
            calls = 0;
            fail_from = failed + 1;
            rc = spec_open(&s, &toy.model, &o);
            fail_from = 0;
            EXPECT(rc == 0 || (rc == ERR_MEMORY && !s && *err_text()));
            EXPECT(rc == 0 ? calls <= failed : toy.be.allocated == before); /* none failed unnoticed */
            failed += rc != 0;
        } while (rc);
        ck_assert_int_gt(failed, 15);
        ck_assert_int_eq(count_run(s), 0);
        spec_close(s);
    }
}
END_TEST

START_TEST(every_allocation_of_a_draft_may_fail)
{
    for (int i = 0; drafts_all[i]; i++) {
        struct toy_draft d = toy_draft(drafts_all[i]->name, NULL);
        struct draft_env env = {.be = &toy.be,
                                .target = &toy.model,
                                .slots = 2,
                                .cap = 50,
                                .vocab = TOY_VOCAB,
                                .max_depth = 4,
                                .max_nodes = 6,
                                .head = "synthetic",
                                .option = d.option,
                                .reference = toy_reference,
                                .reference_ctx = plain};
        int failed = 0, rc;
        do {
            void *self = &env;
            calls = 0;
            fail_from = failed + 1;
            rc = d.ops->open(&self, &env);
            fail_from = 0;
            EXPECT(rc == 0 || (rc == ERR_MEMORY && !self));
            failed += rc != 0;
            d.ops->close(self);
        } while (rc);
        ck_assert(d.ops == &draft_none ? failed == 0 : failed > 0);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("alloc");
    TCase *c = tcase_create("alloc");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, nothing_is_allocated_after_open);
    tcase_add_test(c, a_draft_that_allocates_in_a_step_is_caught);
    tcase_add_test(c, every_allocation_of_an_open_may_fail);
    tcase_add_test(c, every_allocation_of_a_draft_may_fail);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
