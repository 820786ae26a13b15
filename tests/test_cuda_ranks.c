/* test_cuda_ranks: ranks on GPUs: all of them on one, and one a GPU where there are two. */
#include "engine/err.h"
#include "engine/log.h"
#include "tests/cuda_suite.h"
#include "tests/toy_world.h"
#include <time.h>

/* Sums cut in parts end up on the other side of a rounding to BF16 now and then: golden_bound with 2^-9 in
 * place of 2^-24. */
#define BF16_SLACK 0x1p15

enum { AGAIN = 10, LOST_S = 10 };

static const struct world_opts shared[] = {{"cuda", 8, 0, 4}, {"cuda", 8, 1, 4}}, apart = {"cuda", 1, 0, 4};

static int two_gpus(void)
{
    int devices = 0;
    cuda_ok(cudaGetDeviceCount(&devices), "counting devices");
    if (devices < 2)
        printf("one GPU: ranks apart are not tested\n");
    return devices >= 2;
}

START_TEST(ranks_of_one_gpu_agree_and_are_near_the_whole)
{
    const struct model_config dense = world_dense(), experts = world_experts();
    const struct world_opts *o = &shared[_i / 3];
    world_check(o, &dense, 2 << _i % 3, BF16_SLACK, o->eager ? "dense, eager" : "dense");
    world_check(o, &experts, 2 << _i % 3, BF16_SLACK, o->eager ? "experts, eager" : "experts");
}
END_TEST

START_TEST(speculation_over_ranks_of_one_gpu_changes_no_token)
{
    const struct model_config dense = world_dense(), experts = world_experts();
    world_check_speculation(&shared[0], &dense, 2 << _i);
    world_check_speculation(&shared[0], &experts, 2 << _i);
}
END_TEST

START_TEST(ranks_of_two_gpus_agree_and_change_no_token)
{
    const struct model_config dense = world_dense(), experts = world_experts();
    if (!two_gpus())
        return;
    for (int i = 0; i < AGAIN; i++) {
        world_check(&apart, &dense, 2, BF16_SLACK, "dense, two GPUs");
        world_check(&apart, &experts, 2, BF16_SLACK, "experts, two GPUs");
    }
    world_check_speculation(&apart, &dense, 2);
    world_check_speculation(&apart, &experts, 2);
}
END_TEST

/* Rank 1 never comes to the sums: the others hear of it in seconds. */
static int stay_away(void *ctx, struct rank *rank)
{
    return rank->comm.rank == 1 ? 0 : world_pass(ctx, rank);
}

static void lose_a_rank(const struct world_opts *o)
{
    const struct model_config shape = world_dense();
    const struct ranks_model from = {
        .kind = "cuda", .per_device = o->ranks_per_gpu, .shape = &shape, .seed = TOY_SEED};
    struct world w = {.ranks = NULL};
    struct world_pass p = {.logits = {NULL}};
    const time_t start = time(NULL);
    ck_assert_int_eq(ranks_open(&w.ranks, 2, &w.be, &w.model, 1), 0);
    ck_assert_msg(ranks_load(w.ranks, &from) == 0, "%s", err_text());
    ck_assert_int_eq(ranks_do(w.ranks, stay_away, &p), ERR_DEVICE);
    printf("a lost rank: %s\n", err_text());
    ck_assert_ptr_nonnull(strstr(err_text(), "rank 1"));
    world_close(&w);
    ck_assert_int_le((int)(time(NULL) - start), LOST_S);
}

START_TEST(a_rank_that_stays_away_ends_in_an_error)
{
    lose_a_rank(&shared[0]);
    if (two_gpus())
        lose_a_rank(&apart);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("cuda ranks"))
        return CUDA_SUITE_SKIPPED;
    log_set_level(LOG_WARN);
    Suite *s = suite_create("cuda ranks");
    TCase *t = tcase_create("ranks");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, ranks_of_one_gpu_agree_and_are_near_the_whole, 0, 6);
    tcase_add_loop_test(t, speculation_over_ranks_of_one_gpu_changes_no_token, 0, 3);
    tcase_add_test(t, ranks_of_two_gpus_agree_and_change_no_token);
    tcase_add_test(t, a_rank_that_stays_away_ends_in_an_error);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
