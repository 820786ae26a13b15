/* The token tree: order, siblings and bounds. */
#include "spec/tree.h"
#include <check.h>
#include <stdlib.h>

START_TEST(a_new_tree_is_empty)
{
    struct tree t;
    ck_assert_int_eq(tree_init(&t, 4, 2), 0);
    ck_assert_int_eq(t.n, 0);
    ck_assert_int_eq(tree_max_depth(&t), 0);
    ck_assert_int_eq(tree_child(&t, TREE_ROOT, 5), -1);
    tree_deinit(&t);
}
END_TEST

START_TEST(nodes_keep_order_parent_and_depth)
{
    struct tree t;
    float q[2] = {0.5f, 0.5f};
    ck_assert_int_eq(tree_init(&t, 8, 3), 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 7, -0.5f, q), 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 8, 0, NULL), 1);
    ck_assert_int_eq(tree_add(&t, 0, 9, 0, NULL), 2);
    ck_assert_int_eq(tree_add(&t, 2, 9, 0, NULL), 3);
    ck_assert_int_eq(t.nodes[0].depth, 1);
    ck_assert_int_eq(t.nodes[1].depth, 1);
    ck_assert_int_eq(t.nodes[2].depth, 2);
    ck_assert_int_eq(t.nodes[3].depth, 3);
    ck_assert_int_eq(t.nodes[3].parent, 2);
    ck_assert(t.nodes[0].log_q == -0.5f && t.nodes[0].q == q && !t.nodes[1].q);
    ck_assert_int_eq(tree_max_depth(&t), 3);
    tree_deinit(&t);
}
END_TEST

START_TEST(a_second_sibling_with_the_same_token_is_the_first)
{
    struct tree t;
    ck_assert_int_eq(tree_init(&t, 3, 3), 0);
    int a = tree_add(&t, TREE_ROOT, 1, 0, NULL), b = tree_add(&t, a, 1, 0, NULL);
    ck_assert_int_ne(a, b);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 1, 0, NULL), a);
    ck_assert_int_eq(tree_add(&t, a, 1, 0, NULL), b);
    ck_assert_int_eq(tree_add(&t, b, 1, 0, NULL), 2);
    ck_assert_int_eq(tree_add(&t, a, 1, 0, NULL), b); /* also when the tree is full */
    ck_assert_int_eq(t.n, 3);
    tree_deinit(&t);
}
END_TEST

START_TEST(a_full_tree_and_a_node_too_deep_are_refused)
{
    struct tree t;
    ck_assert_int_eq(tree_init(&t, 3, 2), 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 1, 0, NULL), 0);
    ck_assert_int_eq(tree_add(&t, 0, 2, 0, NULL), 1);
    ck_assert_int_eq(tree_add(&t, 1, 3, 0, NULL), -1);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 4, 0, NULL), 2);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 5, 0, NULL), -1);
    ck_assert_int_eq(t.n, 3);
    tree_clear(&t);
    ck_assert_int_eq(t.n, 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 5, 0, NULL), 0);
    tree_deinit(&t);
}
END_TEST

START_TEST(a_tree_of_no_nodes_refuses_all)
{
    struct tree t;
    ck_assert_int_eq(tree_init(&t, 0, 5), 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 1, 0, NULL), -1);
    tree_deinit(&t);
    ck_assert_int_eq(tree_init(&t, 5, 0), 0);
    ck_assert_int_eq(tree_add(&t, TREE_ROOT, 1, 0, NULL), -1);
    tree_deinit(&t);
}
END_TEST

START_TEST(deinit_accepts_a_zeroed_struct_and_a_second_call)
{
    struct tree t = {0};
    tree_deinit(&t);
    ck_assert_int_eq(tree_init(&t, 2, 2), 0);
    tree_deinit(&t);
    tree_deinit(&t);
    ck_assert_ptr_null(t.nodes);
}
END_TEST

START_TEST(child_finds_only_under_its_parent)
{
    struct tree t;
    ck_assert_int_eq(tree_init(&t, 4, 4), 0);
    int a = tree_add(&t, TREE_ROOT, 1, 0, NULL), b = tree_add(&t, TREE_ROOT, 2, 0, NULL);
    int c = tree_add(&t, b, 1, 0, NULL);
    ck_assert_int_eq(tree_child(&t, TREE_ROOT, 1), a);
    ck_assert_int_eq(tree_child(&t, b, 1), c);
    ck_assert_int_eq(tree_child(&t, a, 1), -1);
    ck_assert_int_eq(tree_child(&t, c, 1), -1);
    tree_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tree");
    TCase *c = tcase_create("tree");
    tcase_add_test(c, a_new_tree_is_empty);
    tcase_add_test(c, nodes_keep_order_parent_and_depth);
    tcase_add_test(c, a_second_sibling_with_the_same_token_is_the_first);
    tcase_add_test(c, a_full_tree_and_a_node_too_deep_are_refused);
    tcase_add_test(c, a_tree_of_no_nodes_refuses_all);
    tcase_add_test(c, deinit_accepts_a_zeroed_struct_and_a_second_call);
    tcase_add_test(c, child_finds_only_under_its_parent);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
