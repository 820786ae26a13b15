/* test_comm: ranks as threads exchange, wait and give up together. */
#include "engine/comm.h"
#include "engine/err.h"
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 200, TEXT = 1024 };

struct rank {
    struct comm comm;
    int absent, fails; /* does not come at all; says why it gave up and leaves */
    int rc, wrong;     /* of its last call; exchanged values that were not the expected */
    char text[TEXT];
};

static void *run_rank(void *p)
{
    struct rank *r = p;
    if (r->fails) {
        ERR_SET(ERR_MEMORY, "no room for the cache");
        comm_fail(&r->comm);
    }
    for (int i = 0; i < ROUNDS && !r->absent && !r->fails && r->rc == 0; i++) {
        const int mine = 1000 * i + r->comm.rank;
        int all[COMM_WORLD_MAX] = {0};
        r->rc = comm_exchange(&r->comm, &mine, sizeof mine, all);
        for (int q = 0; r->rc == 0 && q < r->comm.world; q++)
            r->wrong += all[q] != 1000 * i + q;
    }
    strncpy(r->text, err_text(), TEXT - 1);
    return NULL;
}

static void run_group(struct rank *ranks, int world, double patience_s)
{
    struct comm_group *g = NULL;
    pthread_t thread[COMM_WORLD_MAX];
    ck_assert_int_eq(comm_group_open(&g, world, patience_s), 0);
    for (int p = 0; p < world; p++) {
        ranks[p].comm = comm_of(g, p);
        ck_assert_int_eq(pthread_create(&thread[p], NULL, run_rank, &ranks[p]), 0);
    }
    for (int p = 0; p < world; p++)
        pthread_join(thread[p], NULL);
    comm_group_close(g);
}

START_TEST(every_rank_gets_what_every_rank_gave)
{
    struct rank ranks[COMM_WORLD_MAX] = {0};
    run_group(ranks, _i, 20);
    for (int p = 0; p < _i; p++) {
        ck_assert_msg(ranks[p].rc == 0, "%s", ranks[p].text);
        ck_assert_int_eq(ranks[p].wrong, 0);
    }
}
END_TEST

START_TEST(a_rank_that_never_comes_is_named)
{
    struct rank ranks[COMM_WORLD_MAX] = {[2] = {.absent = 1}};
    run_group(ranks, 4, 0.2);
    for (int p = 0; p < 4; p++) {
        ck_assert_int_eq(ranks[p].rc, p == 2 ? 0 : ERR_DEVICE);
        if (p != 2)
            ck_assert_msg(strstr(ranks[p].text, "rank 2 of 4 did not come") != NULL, "%s", ranks[p].text);
    }
}
END_TEST

/* The patience is longer than the test may take: only the failure can wake them. */
START_TEST(a_rank_that_gives_up_wakes_the_others_with_its_reason)
{
    struct rank ranks[COMM_WORLD_MAX] = {[1] = {.fails = 1}};
    run_group(ranks, 4, 3600);
    for (int p = 0; p < 4; p++)
        if (p != 1) {
            ck_assert_int_eq(ranks[p].rc, ERR_DEVICE);
            ck_assert_msg(strstr(ranks[p].text, "rank 1 of 4 gave up: no room for the cache") != NULL, "%s",
                          ranks[p].text);
        }
}
END_TEST

START_TEST(a_failed_group_stays_failed)
{
    struct comm_group *g = NULL;
    ck_assert_int_eq(comm_group_open(&g, 1, 1), 0);
    const struct comm c = comm_of(g, 0);
    ck_assert_int_eq(comm_barrier(&c), 0);
    ck_assert_int_eq(comm_check(&c), 0);
    comm_fail(&c);
    ck_assert_int_eq(comm_check(&c), ERR_DEVICE);
    ck_assert_int_eq(comm_barrier(&c), ERR_DEVICE);
    comm_group_close(g);
}
END_TEST

START_TEST(a_rank_alone_hears_itself)
{
    const struct comm c = {NULL, 1, 4};
    int all[4] = {0};
    ck_assert_int_eq(comm_exchange(&c, &(int){7}, sizeof(int), all), 0);
    for (int p = 0; p < 4; p++)
        ck_assert_int_eq(all[p], 7);
    ck_assert_int_eq(comm_check(&c), 0);
}
END_TEST

START_TEST(a_world_out_of_range_is_a_sentence)
{
    struct comm_group *g = NULL;
    ck_assert_int_eq(comm_group_open(&g, 9, 1), ERR_CONFIG);
    ck_assert_msg(strstr(err_text(), "expected 1 to 8 ranks, found 9") != NULL, "%s", err_text());
    ck_assert_int_eq(comm_group_open(&g, 0, 1), ERR_CONFIG);
    ck_assert_ptr_null(g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("comm");
    TCase *t = tcase_create("ranks");
    tcase_set_timeout(t, 30);
    tcase_add_loop_test(t, every_rank_gets_what_every_rank_gave, 1, COMM_WORLD_MAX + 1);
    tcase_add_test(t, a_rank_that_never_comes_is_named);
    tcase_add_test(t, a_rank_that_gives_up_wakes_the_others_with_its_reason);
    tcase_add_test(t, a_failed_group_stays_failed);
    tcase_add_test(t, a_rank_alone_hears_itself);
    tcase_add_test(t, a_world_out_of_range_is_a_sentence);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
