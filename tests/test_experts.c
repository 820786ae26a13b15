/* test_experts: what steps say of experts: each layer's different ones are those that the step's rows chose,
 * and rows of steps choose as a plain pass over the text does. */
#include "engine/err.h"
#include "engine/log.h"
#include "tests/expect.h"
#include "tests/toy_experts.h"
#include <stdio.h>
#include <string.h>

static const char *const models[] = {"maverick", "scout", "text"};

static void load(struct backend *be, struct model *m, int i)
{
    char path[512];
    snprintf(path, sizeof path, "%s/llama4/%s", SPECBED_GOLDEN_DIR, models[i]);
    EXPECT_MSG(backend_open(be, "cpu", &(struct backend_opts){.threads = 1}) == 0, "%s", err_text());
    EXPECT_MSG(model_load(m, be, path, NULL) == 0, "%s", err_text());
}

/* Trees of several rows that chose several experts, or nothing was tested. */
static void expect_drafts(const struct toy_experts *x)
{
    int most_rows = 0, most = 0;
    for (int i = 0; i < x->steps; i++)
        for (int l = 0; l < x->layers; l++) {
            most_rows = x->rows[i] > most_rows ? x->rows[i] : most_rows;
            most = x->distinct[i][l] > most ? x->distinct[i][l] : most;
        }
    ck_assert_int_ge(most_rows, 2 * TOY_EXPERTS_SLOTS);
    ck_assert_int_gt(most, x->top_k);
}

START_TEST(a_steps_experts_are_those_its_rows_chose)
{
    static struct toy_experts full, brief;
    struct backend be;
    struct model m;
    load(&be, &m, _i);
    toy_experts_run(&m, TRACE_FULL, &full);
    expect_drafts(&full);
    toy_experts_run(&m, TRACE_STEPS, &brief);
    ck_assert_int_eq(brief.steps, full.steps);
    ck_assert_mem_eq(brief.rows, full.rows, sizeof full.rows);
    ck_assert_mem_eq(brief.distinct, full.distinct, sizeof full.distinct);
    model_deinit(&m);
    backend_close(&be);
}
END_TEST

START_TEST(a_dense_models_steps_have_none)
{
    struct toy t;
    struct spec *s = NULL;
    struct spec_step step;
    const struct toy_draft draft = toy_draft("none", NULL);
    const struct spec_opts o = toy_spec_opts(&draft);
    const int prompt[] = {1, 2, 3};
    ck_assert_int_eq(toy_open(&t, 1), 0);
    ck_assert_int_eq(spec_open(&s, &t.model, &o), 0);
    ck_assert_int_eq(spec_submit(s, &(struct spec_request){prompt, 3, 2, 0, NULL}), 0);
    ck_assert_int_eq(spec_step(s, &step), 0);
    ck_assert_int_eq(step.n_records, 1);
    ck_assert_int_eq(step.records[0].expert_layers, 0);
    ck_assert_ptr_null(step.records[0].chosen);
    spec_close(s);
    toy_close(&t);
}
END_TEST

int main(void)
{
    log_set_level(LOG_WARN);
    Suite *s = suite_create("experts");
    TCase *c = tcase_create("experts");
    tcase_add_loop_test(c, a_steps_experts_are_those_its_rows_chose, 0, sizeof models / sizeof *models);
    tcase_add_test(c, a_dense_models_steps_have_none);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
