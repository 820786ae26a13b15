/* test_eagle3_device: drafts made in backend memory are those that the host makes, node for node, and change
 * no answer, whoever joins, leaves or is cut meanwhile. */
#include "drafts/drafts.h"
#include "drafts/eagle3.h"
#include "engine/err.h"
#include "tests/toy_trees.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { REQUESTS = 7, CASES = 6 };

static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];
static struct toy_trees by_host[REQUESTS], by_device[REQUESTS];
static struct draft_ops device;

static void open_toy(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
    device = draft_eagle3_device;
    device.options = draft_eagle3.options;
}

static void close_toy(void)
{
    toy_close(&toy);
}

static struct toy_draft draft_of(int i)
{
    return i == 0   ? toy_draft("eagle3", "shape=0", NULL)
           : i == 1 ? toy_draft("eagle3", "shape=1", "top_k=4", NULL)
           : i == 2 ? toy_draft("eagle3", "shape=2", "top_k=3", NULL)
           : i == 3 ? toy_draft("eagle3", "shape=2", "top_k=10", NULL)
           : i == 4 ? toy_draft("eagle3", "shape=1", "top_k=32", NULL)
                    : toy_draft("eagle3", "shape=2", "top_k=1", NULL);
}

static struct spec_opts opts_of(const struct toy_draft *d, int coupled, int slots)
{
    struct spec_opts o = toy_spec_opts(d);
    o.rule = accept_rule_find(coupled ? "coupled" : "greedy");
    o.sampling.temperature = coupled ? 0.8f : 0;
    o.slots = slots;
    o.max_nodes = 17;
    return o;
}

START_TEST(trees_are_those_of_the_host_node_for_node)
{
    const struct toy_draft d = draft_of(_i);
    for (int slots = 1; slots <= 3; slots += 2)
        for (int depth = 1; depth <= 5; depth += 2) {
            struct spec_opts o = opts_of(&d, 0, slots);
            char what[64];
            o.max_depth = depth;
            snprintf(what, sizeof what, "case %d, %d at once, depth %d", _i, slots, depth);
            toy_trees_run(&toy.model, &o, REQUESTS, NULL, by_host);
            o.draft = &device;
            toy_trees_run(&toy.model, &o, REQUESTS, NULL, by_device);
            ck_assert_int_gt(toy_trees_assert_same(by_host, by_device, REQUESTS, 0, what), 100);
        }
}
END_TEST

static void plain_answers(int coupled)
{
    const struct toy_draft none = toy_draft("none", NULL);
    const struct spec_opts o = opts_of(&none, coupled, 1);
    toy_run(&toy.model, &o, REQUESTS, NULL, plain);
}

START_TEST(answers_are_those_of_plain_decoding)
{
    int max_tokens[REQUESTS];
    for (int coupled = 0; coupled < 2; coupled++) {
        plain_answers(coupled);
        for (int i = 0; i < REQUESTS; i++)
            plain[i].n = max_tokens[i] = 1 + i * 7 % (TOY_ANSWER / 2);
        for (int slots = 1; slots <= 4; slots++) {
            const struct toy_draft d = draft_of(_i);
            struct spec_opts o = opts_of(&d, coupled, slots);
            char what[64];
            o.draft = &device;
            snprintf(what, sizeof what, "case %d, coupled %d, %d at once", _i, coupled, slots);
            toy_run(&toy.model, &o, REQUESTS, max_tokens, answer);
            for (int i = 0; i < REQUESTS; i++)
                toy_assert_same(&plain[i], &answer[i], what);
        }
    }
}
END_TEST

START_TEST(a_slot_that_is_used_again_starts_from_its_own_prompt)
{
    const struct toy_draft d = draft_of(2);
    struct spec_opts o = opts_of(&d, 0, 2);
    int max_tokens[REQUESTS];
    for (int i = 0; i < REQUESTS; i++)
        max_tokens[i] = 3 + 5 * i;
    o.draft = &device;
    toy_trees_run(&toy.model, &o, REQUESTS, max_tokens, by_device);
    o.slots = 1;
    toy_trees_run(&toy.model, &o, REQUESTS, max_tokens, by_host);
    ck_assert_int_gt(toy_trees_assert_same(by_host, by_device, REQUESTS, 0, "alone against two at once"),
                     100);
}
END_TEST

START_TEST(no_depth_and_no_nodes_are_plain_decoding)
{
    const struct toy_draft d = draft_of(2);
    struct spec_opts o = opts_of(&d, 0, 1);
    plain_answers(0);
    o.draft = &device;
    for (int i = 0; i < 2; i++) {
        o.max_depth = i ? 0 : 5;
        o.max_nodes = i ? 5 : 0;
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        for (int r = 0; r < REQUESTS; r++) {
            toy_assert_same(&plain[r], &answer[r], "no draft");
            ck_assert_int_eq(answer[r].proposed, 0);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eagle3_device");
    TCase *c = tcase_create("eagle3_device");
    tcase_add_unchecked_fixture(c, open_toy, close_toy);
    tcase_add_loop_test(c, trees_are_those_of_the_host_node_for_node, 0, CASES);
    tcase_add_loop_test(c, answers_are_those_of_plain_decoding, 0, CASES);
    tcase_add_test(c, a_slot_that_is_used_again_starts_from_its_own_prompt);
    tcase_add_test(c, no_depth_and_no_nodes_are_plain_decoding);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
