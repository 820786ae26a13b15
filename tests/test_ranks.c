/* test_ranks: a model cut over ranks of this process against the same model whole, and what a group does when
 * a rank fails. All ranks share the CPU. */
#include "engine/err.h"
#include "engine/log.h"
#include "tests/golden.h"
#include "tests/toy_world.h"

static const struct world_opts cpu = {"cpu", 1, 0, 20};

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void setup(void)
{
    log_set_level(LOG_WARN);
}

START_TEST(ranks_agree_to_the_bit_and_with_the_whole_model_within_rounding)
{
    const struct model_config dense = world_dense(), experts = world_experts();
    world_check(&cpu, &dense, 2 << _i, 1, "dense");
    world_check(&cpu, &experts, 2 << _i, 1, "experts");
}
END_TEST

/* What a strategy drafts leaves the answer alone, in any world. */
START_TEST(speculation_over_ranks_changes_no_token)
{
    const struct model_config dense = world_dense(), experts = world_experts();
    world_check_speculation(&cpu, &dense, 1 << _i);
    world_check_speculation(&cpu, &experts, 1 << _i);
}
END_TEST

/* One rank of eight, nobody to wait for: finite logits, of a model that is not the whole one. */
START_TEST(a_rank_alone_runs_without_the_others)
{
    const struct model_config shape = world_experts();
    struct ranks_model from = {.kind = "cpu",
                               .device = {.threads = 1, .isa = "auto"},
                               .per_device = 1,
                               .shape = &shape,
                               .seed = TOY_SEED,
                               .opts = {.shard = {7, 8}}};
    struct world w = {.ranks = NULL};
    struct world_pass p = {.logits = {calloc((size_t)WORLD_ROWS * (size_t)shape.vocab, sizeof(float))}};
    ok(ranks_open(&w.ranks, 1, &w.be, &w.model, cpu.patience_s));
    ok(ranks_load(w.ranks, &from));
    ck_assert_int_eq(w.model.part.kv_heads, 1);
    ok(ranks_do(w.ranks, world_pass, &p));
    for (int i = 0; i < WORLD_ROWS * shape.vocab; i++)
        ck_assert(isfinite(p.logits[0][i]));
    world_close(&w);
    free(p.logits[0]);
}
END_TEST

static int fail_as_rank_2(void *ctx, struct rank *rank)
{
    (void)ctx;
    if (rank->comm.rank == 2)
        FAIL(ERR_IO, "the disk of rank 2 is gone");
    return comm_barrier(&rank->comm);
}

START_TEST(the_first_failure_is_what_the_caller_hears)
{
    const struct model_config shape = world_dense();
    struct world w;
    world_open(&w, &cpu, 4, &shape);
    ck_assert_int_eq(ranks_do(w.ranks, fail_as_rank_2, NULL), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "the disk of rank 2 is gone"));
    world_close(&w);
}
END_TEST

/* Rank 1 stays away from the sums of a pass. */
static int stay_away(void *ctx, struct rank *rank)
{
    return rank->comm.rank == 1 ? 0 : world_pass(ctx, rank);
}

START_TEST(a_rank_that_stays_away_is_named_within_the_patience)
{
    const struct model_config shape = world_dense();
    const struct ranks_model from = {
        .kind = "cpu", .device = {.threads = 1, .isa = "auto"}, .per_device = 1, .shape = &shape, .seed = 1};
    struct world w = {.ranks = NULL};
    struct world_pass p = {.logits = {NULL}};
    ok(ranks_open(&w.ranks, 2, &w.be, &w.model, 0.2));
    ok(ranks_load(w.ranks, &from));
    ck_assert_int_eq(ranks_do(w.ranks, stay_away, &p), ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(err_text(), "rank 1 of 2 did not come"));
    world_close(&w);
}
END_TEST

START_TEST(a_world_that_does_not_fit_is_refused_with_the_numbers)
{
    const struct model_config shape = toy_config();
    struct ranks_model from = {
        .kind = "cpu", .device = {.threads = 1, .isa = "auto"}, .per_device = 1, .shape = &shape, .seed = 1};
    struct world w = {.ranks = NULL};
    ok(ranks_open(&w.ranks, 4, &w.be, &w.model, cpu.patience_s));
    ck_assert_int_eq(ranks_load(w.ranks, &from), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "2 key/value heads"));
    world_close(&w);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ranks");
    TCase *t = tcase_create("cpu");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_loop_test(t, ranks_agree_to_the_bit_and_with_the_whole_model_within_rounding, 0, 3);
    tcase_add_test(t, a_rank_alone_runs_without_the_others);
    tcase_add_loop_test(t, speculation_over_ranks_changes_no_token, 0, 4);
    tcase_add_test(t, the_first_failure_is_what_the_caller_hears);
    tcase_add_test(t, a_rank_that_stays_away_is_named_within_the_patience);
    tcase_add_test(t, a_world_that_does_not_fit_is_refused_with_the_numbers);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
