/* test_bpe: merging against the definition, carried out literally, on random rules and rows short and long.
 */
#include "engine/bpe.h"
#include "engine/err.h"
#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { N_RULES = 300, N_IDS = 40, ROW_MAX = 200 };

struct rules {
    int left[N_RULES], right[N_RULES], id[N_RULES], n;
};

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* The definition: find the rule of lowest rank that applies anywhere, apply it at its leftmost place, repeat.
 */
static int merge_literally(const struct rules *r, int *ids, int n)
{
    for (int rank = 0; rank < r->n; rank++)
        for (int i = 0; i + 1 < n; i++)
            if (ids[i] == r->left[rank] && ids[i + 1] == r->right[rank]) {
                ids[i] = r->id[rank];
                memmove(ids + i + 1, ids + i + 2, (size_t)(n - i - 2) * sizeof *ids);
                n--;
                rank = -1;
                break;
            }
    return n;
}

static int has_pair(const struct rules *r, int left, int right)
{
    for (int i = 0; i < r->n; i++)
        if (r->left[i] == left && r->right[i] == right)
            return 1;
    return 0;
}

/* As in a real vocabulary every rule makes a new token, from tokens that exist. */
static void make_rules(struct rules *r, unsigned *state)
{
    r->n = 0;
    int n_ids = 3;
    while (n_ids < N_IDS) {
        int left = (int)(next_random(state) % (unsigned)n_ids),
            right = (int)(next_random(state) % (unsigned)n_ids);
        if (has_pair(r, left, right))
            continue;
        r->left[r->n] = left;
        r->right[r->n] = right;
        r->id[r->n++] = n_ids++;
    }
}

START_TEST(random_rows_merge_as_the_definition_says)
{
    unsigned state = 1;
    struct bpe_scratch scratch = {0};
    for (int round = 0; round < 40; round++) {
        struct rules r;
        struct bpe b;
        make_rules(&r, &state);
        ck_assert_int_eq(bpe_init(&b, (size_t)r.n), 0);
        for (int i = 0; i < r.n; i++)
            bpe_add(&b, r.left[i], r.right[i], r.id[i], (uint32_t)i);
        for (int k = 0; k < 100; k++) {
            int ids[ROW_MAX], expected[ROW_MAX], n = (int)(next_random(&state) % (k % 2 ? ROW_MAX : 30)),
                                                 found;
            for (int i = 0; i < n; i++)
                ids[i] = expected[i] = (int)(next_random(&state) % 3);
            int n_expected = merge_literally(&r, expected, n);
            ck_assert_int_eq(bpe_merge(&b, &scratch, ids, n, &found), 0);
            ck_assert_int_eq(found, n_expected);
            ck_assert(memcmp(ids, expected, (size_t)n_expected * sizeof *ids) == 0);
        }
        bpe_deinit(&b);
    }
    bpe_scratch_deinit(&scratch);
}
END_TEST

START_TEST(a_later_rule_for_the_same_pair_replaces_the_earlier)
{
    struct bpe b;
    struct bpe_scratch scratch = {0};
    int ids[] = {0, 0}, n;
    ck_assert_int_eq(bpe_init(&b, 2), 0);
    bpe_add(&b, 0, 0, 1, 0);
    bpe_add(&b, 0, 0, 2, 1);
    ck_assert_int_eq(bpe_merge(&b, &scratch, ids, 2, &n), 0);
    ck_assert_int_eq(n, 1);
    ck_assert_int_eq(ids[0], 2);
    bpe_scratch_deinit(&scratch);
    bpe_deinit(&b);
}
END_TEST

START_TEST(nothing_and_no_rules_stay_as_they_are)
{
    struct bpe b;
    struct bpe_scratch scratch = {0};
    int ids[] = {5, 5, 5}, n = -1;
    ck_assert_int_eq(bpe_init(&b, 0), 0);
    ck_assert_int_eq(bpe_merge(&b, &scratch, ids, 0, &n), 0);
    ck_assert_int_eq(n, 0);
    ck_assert_int_eq(bpe_merge(&b, &scratch, ids, 3, &n), 0);
    ck_assert_int_eq(n, 3);
    bpe_scratch_deinit(&scratch);
    bpe_scratch_deinit(&scratch);
    bpe_deinit(&b);
    bpe_deinit(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bpe");
    TCase *c = tcase_create("bpe");
    tcase_add_test(c, random_rows_merge_as_the_definition_says);
    tcase_add_test(c, a_later_rule_for_the_same_pair_replaces_the_earlier);
    tcase_add_test(c, nothing_and_no_rules_stay_as_they_are);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
