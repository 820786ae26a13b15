/* The oracle draft: the reference's continuation, spoiled as often as asked, and nothing once a text has left
 * it. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <string.h>

enum { ANSWER = 4000, VOCAB = 97, DEPTH = 5 };
static int reference_tokens[ANSWER];

static int reference(void *ctx, uint32_t request, const int **tokens)
{
    ck_assert_ptr_eq(ctx, reference_tokens);
    *tokens = reference_tokens;
    return request == 1 ? ANSWER : 0;
}

static void *open_oracle(double accept)
{
    for (int i = 0; i < ANSWER; i++)
        reference_tokens[i] = i * 31 % VOCAB;
    struct draft_env env = {.slots = 2,
                            .cap = ANSWER + 1,
                            .vocab = VOCAB,
                            .max_depth = DEPTH,
                            .max_nodes = DEPTH,
                            .seed = 5,
                            .option = &accept,
                            .reference = reference,
                            .reference_ctx = reference_tokens};
    void *self = NULL;
    ck_assert_int_eq(draft_oracle.open(&self, &env), 0);
    return self;
}

static void observe(void *self, const struct draft_text *text, int n_new)
{
    const struct draft_seen seen = {.text = *text, .n_new = n_new};
    ck_assert_int_eq(draft_oracle.observe(self, &seen, 1), 0);
}

START_TEST(proposes_the_reference_until_its_end)
{
    void *self = open_oracle(1);
    int tokens[1 + ANSWER] = {3};
    memcpy(tokens + 1, reference_tokens, sizeof reference_tokens);
    struct draft_text text = {1, 1, tokens, 1, 1};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, DEPTH, DEPTH), 0);
    ck_assert_int_eq(draft_oracle.begin(self, &text), 0);
    for (text.n = 1; text.n < 1 + ANSWER; text.n++) {
        tree_clear(&t);
        ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
        int left = ANSWER - (text.n - 1);
        ck_assert_int_eq(t.n, left < DEPTH ? left : DEPTH);
        for (int i = 0; i < t.n; i++) {
            ck_assert_int_eq(t.nodes[i].token, reference_tokens[text.n - 1 + i]);
            ck_assert_int_eq(t.nodes[i].parent, i - 1);
        }
        struct draft_text grown = text;
        grown.n++;
        observe(self, &grown, 1);
    }
    tree_deinit(&t);
    draft_oracle.close(self);
}
END_TEST

START_TEST(proposes_nothing_without_or_after_leaving_the_reference)
{
    void *self = open_oracle(1);
    int tokens[] = {3, 0, 32, 62, 93}; /* the reference begins 0, 31, 62, 93 */
    struct draft_text text = {0, 1, tokens, 1, 1}, other = {1, 2, tokens, 1, 1};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, DEPTH, DEPTH), 0);
    ck_assert_int_eq(draft_oracle.begin(self, &other), 0);
    ck_assert_int_eq(draft_oracle.propose(self, &other, 1, &t), 0);
    ck_assert_int_eq(t.n, 0);
    ck_assert_int_eq(draft_oracle.begin(self, &text), 0);
    text.n = 2;
    observe(self, &text, 1);
    ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
    ck_assert_int_eq(t.n, DEPTH);
    for (text.n = 3; text.n <= 5; text.n++) { /* agreeing again later does not help */
        tree_clear(&t);
        observe(self, &text, 1);
        ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
        ck_assert_int_eq(t.n, 0);
    }
    text.n = 1;
    ck_assert_int_eq(draft_oracle.begin(self, &text), 0); /* a new request starts afresh */
    ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
    ck_assert_int_eq(t.n, DEPTH);
    tree_deinit(&t);
    draft_oracle.close(self);
}
END_TEST

/* N = 4000 positions, true with probability 0.7: the count's standard deviation is sqrt(N 0.7 0.3) = 29, and
 * a correct generator passes 4.5 of them with a probability of 7e-6. */
START_TEST(spoils_each_position_with_the_asked_probability_and_always_the_same)
{
    void *self = open_oracle(0.7), *again = open_oracle(0.7);
    int tokens[1 + ANSWER] = {3}, right = 0;
    memcpy(tokens + 1, reference_tokens, sizeof reference_tokens);
    struct draft_text text = {0, 1, tokens, 1, 1};
    struct tree t, u;
    ck_assert_int_eq(tree_init(&t, DEPTH, DEPTH), 0);
    ck_assert_int_eq(tree_init(&u, DEPTH, DEPTH), 0);
    ck_assert_int_eq(draft_oracle.begin(self, &text), 0);
    ck_assert_int_eq(draft_oracle.begin(again, &text), 0);
    int before = -1; /* what the step before proposed for depth 2, which is this step's depth 1 */
    for (text.n = 1; text.n < ANSWER; text.n++) {
        tree_clear(&t);
        tree_clear(&u);
        ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
        ck_assert_int_eq(draft_oracle.propose(again, &text, 1, &u), 0);
        ck_assert_int_eq(t.nodes[0].token, u.nodes[0].token);
        if (before >= 0)
            ck_assert_int_eq(t.nodes[0].token, before);
        before = t.nodes[1].token;
        int truth = reference_tokens[text.n - 1];
        float u = philox_uniform(philox(5, 1, (uint32_t)text.n, PHILOX_ORACLE, 0).v[0]);
        ck_assert_int_eq(t.nodes[0].token, (double)u < 0.7 ? truth : (truth + 1) % VOCAB);
        right += t.nodes[0].token == truth;
        struct draft_text grown = text;
        grown.n++;
        observe(self, &grown, 1);
        observe(again, &grown, 1);
    }
    double expected = 0.7 * (ANSWER - 1), sigma = sqrt((ANSWER - 1) * 0.7 * 0.3);
    ck_assert_double_lt(fabs(right - expected), 4.5 * sigma);
    tree_deinit(&t);
    tree_deinit(&u);
    draft_oracle.close(self);
    draft_oracle.close(again);
}
END_TEST

START_TEST(accept_0_is_never_right)
{
    void *self = open_oracle(0);
    int tokens[] = {3};
    struct draft_text text = {0, 1, tokens, 1, 1};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, DEPTH, DEPTH), 0);
    ck_assert_int_eq(draft_oracle.begin(self, &text), 0);
    ck_assert_int_eq(draft_oracle.propose(self, &text, 1, &t), 0);
    ck_assert_int_eq(t.n, DEPTH);
    for (int i = 0; i < t.n; i++)
        ck_assert_int_ne(t.nodes[i].token, reference_tokens[i]);
    tree_deinit(&t);
    draft_oracle.close(self);
}
END_TEST

START_TEST(opening_without_a_reference_is_an_error_that_says_so)
{
    double accept = 1;
    struct draft_env env = {.slots = 1, .cap = 10, .vocab = VOCAB, .option = &accept};
    void *self = &env;
    ck_assert_int_eq(draft_oracle.open(&self, &env), ERR_CONFIG);
    ck_assert_ptr_null(self);
    ck_assert_ptr_nonnull(strstr(err_text(), "earlier run"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("oracle");
    TCase *c = tcase_create("oracle");
    tcase_add_test(c, proposes_the_reference_until_its_end);
    tcase_add_test(c, proposes_nothing_without_or_after_leaving_the_reference);
    tcase_add_test(c, spoils_each_position_with_the_asked_probability_and_always_the_same);
    tcase_add_test(c, accept_0_is_never_right);
    tcase_add_test(c, opening_without_a_reference_is_an_error_that_says_so);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
