/* The contract of every draft in drafts_all[]: a new strategy is tested here by being in the table. */
#include "engine/err.h"
#include "tests/expect.h"
#include "kernels/philox.h"
#include "tests/toy_loop.h"
#include "tests/toy_step.h"
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 8 };
static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];

static void setup(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
}

static void teardown(void)
{
    toy_close(&toy);
}

/* How many variants of a strategy's options there are: all defaults, and each option at each end of its
 * range. */
static int n_variants(const struct draft_ops *ops)
{
    int n = 0;
    while (ops->options[n].name)
        n++;
    return 1 + 2 * n;
}

static struct toy_draft variant(const struct draft_ops *ops, int k)
{
    struct toy_draft d = toy_draft(ops->name, NULL);
    if (k > 0)
        d.option[(k - 1) / 2] = k % 2 ? ops->options[(k - 1) / 2].lo : ops->options[(k - 1) / 2].hi;
    return d;
}

static struct draft_env env_of(const struct toy_draft *d)
{
    return (struct draft_env){.be = &toy.be,
                              .target = &toy.model,
                              .slots = 3,
                              .cap = 50,
                              .vocab = TOY_VOCAB,
                              .max_depth = 4,
                              .max_nodes = 6,
                              .head = "synthetic",
                              .seed = 3,
                              .option = d->option,
                              .reference = toy_reference,
                              .reference_ctx = plain};
}

/* Only options that contradict each other are refused (ngram: max at its lowest is fine, min at its highest
 * is not). */
static int opens(const struct toy_draft *d)
{
    struct draft_env env = env_of(d);
    void *self = &env;
    int rc = d->ops->open(&self, &env);
    ck_assert(rc == 0 || (rc == ERR_CONFIG && !self && *err_text()));
    d->ops->close(rc ? NULL : self);
    return rc == 0;
}

START_TEST(the_table_is_complete)
{
    for (int i = 0; drafts_all[i]; i++) {
        const struct draft_ops *ops = drafts_all[i];
        ck_assert_ptr_eq(drafts_find(ops->name), ops);
        ck_assert(ops->help && *ops->help && ops->options && ops->open && ops->max_nodes && ops->close);
        const int on_host = (ops->needs & DRAFT_HOST) != 0;
        ck_assert(on_host == (ops->enqueue == NULL));
        ck_assert(on_host == (ops->begin != NULL) && on_host == (ops->propose != NULL));
        ck_assert(on_host == (ops->observe != NULL));
        ck_assert(!!(ops->needs & DRAFT_Q) == (ops->draws != NULL));
        for (const struct draft_option *o = ops->options; o->name; o++) {
            ck_assert(*o->help && o->lo <= o->def && o->def <= o->hi);
            int words = 0;
            while (o->choices && o->choices[words])
                words++;
            ck_assert(!o->choices || (o->lo == 0 && o->hi == words - 1 && o->integer));
        }
    }
    ck_assert_ptr_null(drafts_find("nothing of the kind"));
}
END_TEST

START_TEST(greedy_output_equals_none_token_for_token)
{
    int tried = 0;
    for (int i = 0; drafts_all[i]; i++)
        for (int k = 0; k < n_variants(drafts_all[i]); k++) {
            struct toy_draft d = variant(drafts_all[i], k);
            if (!opens(&d))
                continue;
            struct spec_opts o = toy_spec_opts(&d);
            o.slots = 3;
            o.max_nodes = 9;
            o.reference = toy_reference;
            o.reference_ctx = plain;
            toy_run(&toy.model, &o, REQUESTS, NULL, answer);
            for (int r = 0; r < REQUESTS; r++)
                toy_assert_same(&plain[r], &answer[r], d.ops->name);
            tried++;
        }
    ck_assert_int_gt(tried, 10);
}
END_TEST

START_TEST(a_step_of_no_depth_or_no_nodes_gets_an_empty_tree)
{
    for (int i = 0; drafts_all[i]; i++)
        for (int k = 0; k < 2; k++) {
            struct toy_draft d = variant(drafts_all[i], 0);
            struct spec_opts o = toy_spec_opts(&d);
            o.max_depth = k ? 0 : 4;
            o.max_nodes = k ? 4 : 0;
            o.reference = toy_reference;
            o.reference_ctx = plain;
            toy_run(&toy.model, &o, REQUESTS, NULL, answer);
            for (int r = 0; r < REQUESTS; r++) {
                toy_assert_same(&plain[r], &answer[r], d.ops->name);
                ck_assert_int_eq(answer[r].proposed, 0);
            }
        }
}
END_TEST

/* Parents first, siblings different, tokens in the vocabulary, bounds kept: for every cut that a slot may ask
 * for. */
static void assert_tree_valid(const struct tree *t)
{
    ck_assert_int_le(t->n, t->max_nodes);
    for (int i = 0; i < t->n; i++) {
        const struct tree_node *n = &t->nodes[i];
        EXPECT(n->parent >= TREE_ROOT && n->parent < i && n->depth <= t->max_depth);
        EXPECT(n->token >= 0 && n->token < TOY_VOCAB && n->log_q <= 0);
        EXPECT(tree_child(t, n->parent, n->token) == i);
    }
}

enum { SLOTS = 3, CAP = 50, DEPTH = 4, NODES = 6 };

/* Short prompts with the plain answers behind them. */
static void fill_texts(int tokens[SLOTS][CAP], struct draft_text text[SLOTS])
{
    for (int s = 0; s < SLOTS; s++) {
        for (int t = 0; t < CAP; t++)
            tokens[s][t] = t < 4 ? 7 + s * t : plain[s].tokens[t - 4];
        text[s] = (struct draft_text){s, (uint32_t)s, tokens[s], 4, 4};
    }
}

static void assert_same_tree(const struct tree *a, const struct tree *b)
{
    EXPECT(a->n == b->n);
    EXPECT(memcmp(a->nodes, b->nodes, (size_t)a->n * sizeof *a->nodes) == 0);
}

static float features[3 * 8 * 64]; /* of 8 rows of the toy model */

static void check_on_host(const struct draft_ops *ops, void *self)
{
    int tokens[SLOTS][CAP];
    struct draft_text text[SLOTS];
    struct tree batch[SLOTS], alone;
    struct draft_hidden hidden = {.rows = features, .prompt = features, .max_rows = 8, .max_prompt_rows = 8};
    fill_texts(tokens, text);
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        features[i] = philox_uniform(philox(5, (uint32_t)i, 0, 92, 0).v[0]) - 0.5f;
    if (ops->tap)
        ops->tap(self, &hidden);
    ck_assert_int_eq(tree_init(&alone, NODES, DEPTH), 0);
    for (int s = 0; s < SLOTS; s++) {
        ck_assert_int_eq(tree_init(&batch[s], NODES, DEPTH), 0);
        if (ops->prefilled)
            ck_assert_int_eq(ops->prefilled(self, s, tokens[s], 0, text[s].n - 1), 0);
        ck_assert_int_eq(ops->begin(self, &text[s]), 0);
    }
    while (text[0].n < CAP) {
        struct draft_seen seen[SLOTS];
        for (int s = 0; s < SLOTS; s++) {
            tree_clear(&batch[s]);
            batch[s].max_nodes = (text[0].n + s) % (NODES + 1);
            batch[s].max_depth = batch[s].max_nodes ? 1 + (text[0].n + s) % DEPTH : 0;
        }
        ck_assert_int_eq(ops->propose(self, text, SLOTS, batch), 0);
        for (int s = SLOTS - 1; s >= 0; s--) {
            assert_tree_valid(&batch[s]);
            EXPECT(batch[s].n <= ops->max_nodes(self));
            tree_clear(&alone);
            alone.max_nodes = batch[s].max_nodes;
            alone.max_depth = batch[s].max_depth;
            ck_assert_int_eq(ops->propose(self, &text[s], 1, &alone), 0);
            assert_same_tree(&alone, &batch[s]);
        }
        for (int s = 0; s < SLOTS; s++) {
            text[s].n++;
            seen[s] = (struct draft_seen){text[s], 1, 0, NULL, 0};
        }
        ck_assert_int_eq(ops->observe(self, seen, SLOTS), 0);
    }
    for (int s = 0; s < SLOTS; s++)
        tree_deinit(&batch[s]);
    tree_deinit(&alone);
}

/* The same of a device strategy: a slot is alone when the others are not live. */
static void check_on_device(const struct draft_ops *ops, void *self)
{
    int tokens[SLOTS][CAP];
    struct draft_text text[SLOTS];
    struct tree batch[SLOTS], alone;
    struct toy_step t;
    fill_texts(tokens, text);
    toy_step_open(&t, &toy.be, &(struct trees){.slots = SLOTS, .max_nodes = NODES, .max_depth = DEPTH}, CAP);
    ck_assert_int_eq(tree_init(&alone, NODES, DEPTH), 0);
    for (int s = 0; s < SLOTS; s++)
        ck_assert_int_eq(tree_init(&batch[s], NODES, DEPTH), 0);
    for (int n = 4; n < CAP; n++)
        for (int who = -1; who < SLOTS; who++) {
            for (int s = 0; s < SLOTS; s++) {
                const int end = n + 1 + (n + s) % (DEPTH + 3);
                toy_step_text(&t, s, tokens[s], n, 4, end < CAP ? end : CAP);
                t.host.seq[s].live = who < 0 || who == s;
                batch[s].max_depth = step_depth(&t.host.seq[s], DEPTH);
            }
            toy_step_send(&t);
            ck_assert_int_eq(ops->enqueue(self, &t.on, CAP), 0);
            toy_step_fetch(&t);
            for (int s = 0; s < SLOTS; s++) {
                toy_step_tree(&t, s, who < 0 ? &batch[s] : &alone);
                EXPECT(t.host.trees.n[s] <= ops->max_nodes(self));
                if (who < 0)
                    assert_tree_valid(&batch[s]);
                else if (who == s)
                    assert_same_tree(&alone, &batch[s]);
                else
                    EXPECT(t.host.trees.n[s] == 0);
            }
        }
    for (int s = 0; s < SLOTS; s++)
        tree_deinit(&batch[s]);
    tree_deinit(&alone);
    toy_step_close(&t);
}

START_TEST(trees_keep_their_bounds_and_slots_are_independent)
{
    for (int i = 0; drafts_all[i]; i++)
        for (int k = 0; k < n_variants(drafts_all[i]); k++) {
            struct toy_draft d = variant(drafts_all[i], k);
            struct draft_env env = env_of(&d);
            void *self = NULL;
            if (!opens(&d))
                continue;
            ck_assert_int_eq(d.ops->open(&self, &env), 0);
            if (d.ops->needs & DRAFT_HOST)
                check_on_host(d.ops, self);
            else
                check_on_device(d.ops, self);
            d.ops->close(self);
        }
}
END_TEST

START_TEST(close_after_a_failed_open_is_fine)
{
    for (int i = 0; drafts_all[i]; i++) {
        struct toy_draft d = variant(drafts_all[i], 0);
        struct draft_env env = env_of(&d);
        env.reference = NULL;
        env.head = NULL;
        if (d.ops == &draft_ngram)
            d.option[0] = 4; /* min above max */
        void *self = &env;
        int rc = d.ops->open(&self, &env);
        ck_assert(rc == 0 ? d.ops == &draft_none : rc == ERR_CONFIG && self == NULL);
        d.ops->close(self);
        d.ops->close(NULL);
    }
}
END_TEST

START_TEST(needs_are_those_that_the_loop_can_give)
{
    for (int i = 0; drafts_all[i]; i++)
        ck_assert(
            (drafts_all[i]->needs & ~(unsigned)(DRAFT_HIDDEN | DRAFT_REFERENCE | DRAFT_HOST | DRAFT_Q)) == 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("drafts");
    TCase *c = tcase_create("drafts");
    tcase_set_timeout(c, 60); /* many variants, under sanitizers */
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, the_table_is_complete);
    tcase_add_test(c, greedy_output_equals_none_token_for_token);
    tcase_add_test(c, a_step_of_no_depth_or_no_nodes_gets_an_empty_tree);
    tcase_add_test(c, trees_keep_their_bounds_and_slots_are_independent);
    tcase_add_test(c, close_after_a_failed_open_is_fine);
    tcase_add_test(c, needs_are_those_that_the_loop_can_give);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
