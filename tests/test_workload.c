/* workload: the three published forms of prompts, what is cut from them, and what is refused. */
#include "engine/err.h"
#include "experiments/workload.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void expect_text(const char *part)
{
    ck_assert_msg(strstr(err_text(), part) != NULL, "expected '%s' in: %s", part, err_text());
}

static void parse(struct workload *w, const char *text)
{
    *w = (struct workload){0};
    int rc = workload_parse(w, text, strlen(text), "q.jsonl", "set");
    ck_assert_msg(rc == 0, "%s", err_text());
}

static void refused(const char *text, int code, const char *part)
{
    struct workload w = {0};
    int rc = workload_parse(&w, text, strlen(text), "q.jsonl", "set");
    ck_assert_msg(rc == code, "'%s' gave %d: %s", text, rc, err_text());
    expect_text(part);
    workload_deinit(&w);
}

START_TEST(question_turns_are_read_in_order)
{
    struct workload w;
    parse(&w, "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"one\", \"two\"], "
              "\"reference\": []}\n");
    ck_assert_int_eq(w.n, 1);
    ck_assert_str_eq(w.prompts[0].id, "81");
    ck_assert_str_eq(w.prompts[0].category, "writing");
    ck_assert_str_eq(w.prompts[0].dataset, "set");
    ck_assert_ptr_null(w.prompts[0].system);
    ck_assert_int_eq(w.prompts[0].n_turns, 2);
    ck_assert_str_eq(w.prompts[0].turns[0], "one");
    ck_assert_str_eq(w.prompts[0].turns[1], "two");
    workload_deinit(&w);
}
END_TEST

START_TEST(user_messages_are_kept_and_recorded_answers_dropped)
{
    struct workload w;
    parse(&w, "{\"id\": \"x-1\", \"messages\": [{\"role\": \"system\", \"content\": \"be brief\"},"
              "{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": null},"
              "{\"role\": \"user\", \"content\": \"\\u00e9\\n\"}]}");
    ck_assert_str_eq(w.prompts[0].id, "x-1");
    ck_assert_str_eq(w.prompts[0].category, "set");
    ck_assert_str_eq(w.prompts[0].system, "be brief");
    ck_assert_int_eq(w.prompts[0].n_turns, 2);
    ck_assert_str_eq(w.prompts[0].turns[0], "a");
    ck_assert_str_eq(w.prompts[0].turns[1], "\xC3\xA9\n");
    workload_deinit(&w);
}
END_TEST

START_TEST(a_prompt_is_one_turn_and_the_line_is_its_id)
{
    struct workload w;
    parse(&w, "\n  \t\r\n{\"prompt\": \"a\"}\r\n\r\n{\"prompt\": \"b\"}");
    ck_assert_int_eq(w.n, 2);
    ck_assert_str_eq(w.prompts[0].id, "3");
    ck_assert_str_eq(w.prompts[1].id, "5");
    ck_assert_str_eq(w.prompts[1].turns[0], "b");
    ck_assert_int_eq(w.prompts[0].index, 0);
    ck_assert_int_eq(w.prompts[1].index, 1);
    workload_deinit(&w);
}
END_TEST

START_TEST(tokens_are_a_turn_of_ids)
{
    struct workload w;
    parse(&w, "{\"tokens\": [5, 0, 2147483647], \"id\": \"t\"}\n{\"prompt\": \"a\"}");
    ck_assert_int_eq(w.n, 2);
    ck_assert_int_eq(w.prompts[0].n_turns, 1);
    ck_assert_int_eq(w.prompts[0].n_tokens, 3);
    ck_assert(w.prompts[0].tokens[0] == 5 && w.prompts[0].tokens[1] == 0 &&
              w.prompts[0].tokens[2] == 2147483647);
    ck_assert_str_eq(w.prompts[0].turns[0], "3 token ids");
    ck_assert_ptr_null(w.prompts[1].tokens);
    workload_deinit(&w);
}
END_TEST

START_TEST(forms_mix_and_a_byte_order_mark_is_skipped)
{
    struct workload w;
    parse(&w, "\xEF\xBB\xBF{\"prompt\": \"a\"}\n{\"turns\": [\"b\"]}\n{\"messages\": [{\"role\": \"user\", "
              "\"content\": \"c\"}]}\n");
    ck_assert_int_eq(w.n, 3);
    ck_assert_str_eq(w.prompts[2].turns[0], "c");
    workload_deinit(&w);
}
END_TEST

START_TEST(every_mistake_names_its_line)
{
    static const struct {
        const char *text;
        int code;
        const char *part;
    } cases[] = {
        {"\n\r\n{\"prompt\": }", ERR_FORMAT, "q.jsonl:3: line 1, column 12: expected JSON"},
        {"{\"prompt\": \"a\"}\n[1]", ERR_FORMAT, "q.jsonl:2: expected an object, found an array"},
        {"\"a\"", ERR_FORMAT, "q.jsonl:1: "},
        {"{}", ERR_FORMAT,
         "q.jsonl:1: expected an object with 'turns', 'messages', 'prompt' or 'tokens', found none of them"},
        {"{\"tokens\": 5}", ERR_FORMAT, "'tokens': expected a list of token ids, found an integer"},
        {"{\"tokens\": []}", ERR_FORMAT, "'tokens': expected 1 to 16777216 token ids, found 0"},
        {"{\"tokens\": [1, \"2\"]}", ERR_FORMAT, "expected whole numbers from 0, found a string as number 2"},
        {"{\"tokens\": [-1]}", ERR_FORMAT,
         "expected whole numbers from 0, found one out of range as number 1"},
        {"{\"tokens\": [2147483648]}", ERR_FORMAT, "found one out of range as number 1"},
        {"{\"prompt\": 5}", ERR_FORMAT, "q.jsonl:1: 'prompt': expected a string, found an integer"},
        {"{\"prompt\": \"\"}", ERR_FORMAT, "'prompt': expected a question, found an empty string"},
        {"{\"turns\": []}", ERR_FORMAT,
         "'turns': expected a list of at least one string, found an empty one"},
        {"{\"turns\": \"a\"}", ERR_FORMAT, "'turns': expected a list of at least one string, found a string"},
        {"{\"turns\": [\"a\", null]}", ERR_FORMAT, "turn 2: expected a string, found null"},
        {"{\"messages\": {}}", ERR_FORMAT, "'messages': expected a list, found an object"},
        {"{\"messages\": []}", ERR_FORMAT, "expected at least one user message, found none"},
        {"{\"messages\": [5]}", ERR_FORMAT, "message 1: expected an object with 'role', found an integer"},
        {"{\"messages\": [{\"role\": \"user\"}]}", ERR_FORMAT, "message 1: expected a string, found nothing"},
        {"{\"messages\": [{\"role\": \"tool\"}]}", ERR_FORMAT,
         "expected role system, user or assistant, found 'tool'"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"system\", \"content\": "
         "\"b\"}]}",
         ERR_FORMAT, "message 2: expected a system message only as the first"},
        {"{\"prompt\": \"a\", \"id\": [1]}", ERR_FORMAT,
         "expected a whole number or a string, found an array"},
        {"{\"prompt\": \"a\", \"id\": 1.5}", ERR_FORMAT,
         "expected a whole number or a string, found a real number"},
        {"{\"prompt\": \"a\", \"category\": 1}", ERR_FORMAT,
         "'category': expected a string, found an integer"},
        {"{\"prompt\": \"a\", \"prompt\": \"b\"}", ERR_FORMAT, "duplicate"},
        {"{\"prompt\": \"a\"}\n{\"prompt\": \"b\xff\"}", ERR_FORMAT,
         "q.jsonl:2: expected UTF-8, found byte 0xff at byte offset 29 of the file"},
        {"{\"prompt\": \"\xC0\xAF\"}", ERR_FORMAT, "found byte 0xc0 at byte offset 12"},
        {"{\"prompt\": \"\xED\xA0\x80\"}", ERR_FORMAT, "found byte 0xed"},
        {"{\"prompt\": \"\xE2\x82", ERR_FORMAT, "found byte 0xe2"},
        {"{\"prompt\": \"a\\u0000b\"}", ERR_FORMAT, "q.jsonl:1: "},
        {"{\"turns\": "
         "[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\",\"15\","
         "\"16\",\"17\"]}",
         ERR_LIMIT, "q.jsonl:1: expected at most 16 user turns, found more"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].text, cases[i].code, cases[i].part);
}
END_TEST

START_TEST(a_zero_byte_in_a_line_is_refused)
{
    static const char text[] = "{\"prompt\": \"a\0b\"}";
    struct workload w = {0};
    ck_assert_int_eq(workload_parse(&w, text, sizeof text - 1, "q.jsonl", "set"), ERR_FORMAT);
    expect_text("q.jsonl:1: ");
    workload_deinit(&w);
}
END_TEST

START_TEST(deep_nesting_is_refused)
{
    char text[10001];
    memset(text, '[', 10000);
    text[10000] = 0;
    refused(text, ERR_FORMAT, "q.jsonl:1: ");
}
END_TEST

/* A folder with two data sets: a/question.jsonl (x, y, x, y) and b.jsonl (x, z). */
static char folder[64], path_a[128], path_b[128], path_empty[128];

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void make_files(void)
{
    char sub[100];
    snprintf(folder, sizeof folder, "/tmp/specbed-workload-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(sub, sizeof sub, "%s/a", folder);
    ck_assert_int_eq(mkdir(sub, 0700), 0);
    snprintf(path_a, sizeof path_a, "%s/question.jsonl", sub);
    snprintf(path_b, sizeof path_b, "%s/b.jsonl", folder);
    snprintf(path_empty, sizeof path_empty, "%s/empty.jsonl", folder);
    write_file(path_a,
               "{\"prompt\": \"a0\", \"category\": \"x\"}\n{\"prompt\": \"a1\", \"category\": \"y\"}\n"
               "{\"prompt\": \"a2\", \"category\": \"x\"}\n{\"prompt\": \"a3\", \"category\": \"y\"}\n");
    write_file(path_b, "{\"prompt\": \"b0\", \"category\": \"x\"}\n{\"prompt\": \"b1\", \"category\": "
                       "\"z\"}\n{\"prompt\": \"b2\"}\n");
    write_file(path_empty, "\n\n");
}

static void remove_files(void)
{
    unlink(path_a);
    unlink(path_b);
    unlink(path_empty);
    *strrchr(path_a, '/') = 0;
    rmdir(path_a);
    rmdir(folder);
}

static int load(struct workload *w, const char *category, int limit, int slice, int of)
{
    struct config c;
    char dataset[300], sets[3][300];
    const char *args[] = {dataset, sets[0], sets[1]};
    snprintf(dataset, sizeof dataset, "workload.dataset=[%s, %s]", path_a, path_b);
    snprintf(sets[0], sizeof sets[0], "workload.category=%s", category);
    snprintf(sets[1], sizeof sets[1], "workload.limit=%d", limit);
    ck_assert_msg(config_parse(&c, "", 0, "test", args, 3) == 0, "%s", err_text());
    int rc = workload_load(w, &c, slice, of);
    config_deinit(&c);
    return rc;
}

/* The first turns, in order, separated by spaces, with their indices. */
static void expect_prompts(const struct workload *w, const char *expected)
{
    char got[200] = "";
    for (int i = 0; i < w->n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s:%d", i ? " " : "", w->prompts[i].turns[0],
                 w->prompts[i].index);
    ck_assert_str_eq(got, expected);
}

START_TEST(category_then_limit_then_slice)
{
    static const struct {
        const char *category;
        int limit, slice, of;
        const char *expected;
    } cases[] = {
        {"[]", 0, 0, 1, "a0:0 a1:1 a2:2 a3:3 b0:4 b1:5 b2:6"},
        {"[]", 2, 0, 1, "a0:0 a1:1 b0:4 b1:5"},
        {"x", 0, 0, 1, "a0:0 a2:2 b0:4"},
        {"[y, z]", 1, 0, 1, "a1:1 b1:5"},
        {"b", 0, 0, 1, "b2:6"},
        {"[]", 0, 0, 3, "a0:0 a3:3 b2:6"},
        {"[]", 0, 1, 3, "a1:1 b0:4"},
        {"[]", 0, 2, 3, "a2:2 b1:5"},
        {"x", 0, 1, 2, "a2:2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct workload w;
        int rc = load(&w, cases[i].category, cases[i].limit, cases[i].slice, cases[i].of);
        ck_assert_msg(rc == 0, "%s", err_text());
        expect_prompts(&w, cases[i].expected);
        workload_deinit(&w);
    }
}
END_TEST

START_TEST(a_data_set_is_named_after_its_file_or_folder)
{
    struct workload w;
    ck_assert_int_eq(load(&w, "[]", 0, 0, 1), 0);
    ck_assert_str_eq(w.prompts[0].dataset, "a");
    ck_assert_str_eq(w.prompts[6].dataset, "b");
    ck_assert_str_eq(w.prompts[6].category, "b");
    workload_deinit(&w);
}
END_TEST

static void load_refused(const char *dataset, int slice, int of, int code, const char *part)
{
    struct config c;
    struct workload w;
    char set[300];
    const char *args[] = {set};
    snprintf(set, sizeof set, "workload.dataset=%s", dataset);
    ck_assert_int_eq(config_parse(&c, "", 0, "test", args, 1), 0);
    ck_assert_int_eq(workload_load(&w, &c, slice, of), code);
    expect_text(part);
    config_deinit(&c);
}

START_TEST(zero_prompts_are_a_mistake_of_configuration)
{
    struct workload w;
    ck_assert_int_eq(load(&w, "[x, writing]", 0, 0, 1), ERR_CONFIG);
    expect_text("expected categories of the data sets (x, y, z, b), found 'writing'");
    ck_assert_int_eq(load(&w, "b", 0, 1, 2), ERR_CONFIG);
    expect_text("slice 1/2: expected at least one prompt");
    ck_assert_int_eq(load(&w, "b", 0, 2, 2), ERR_CONFIG);
    expect_text("slice 2/2: expected i/n with 0 <= i < n");
    load_refused(path_empty, 0, 1, ERR_CONFIG, "expected at least one prompt, found none in");
    load_refused("[]", 0, 1, ERR_CONFIG,
                 "workload.dataset: expected at least one JSON Lines file, found none");
    load_refused("/nonexistent.jsonl", 0, 1, ERR_IO,
                 "/nonexistent.jsonl: cannot open: No such file or directory");
    load_refused(folder, 0, 1, ERR_IO, "cannot read: Is a directory");
}
END_TEST

START_TEST(request_ids_never_meet)
{
    ck_assert_uint_eq(workload_request_id(0, 0, 1), 1);
    ck_assert_uint_eq(workload_request_id(0, 1, 0), WORKLOAD_MAX_REPEATS);
    ck_assert_uint_eq(workload_request_id(1, 0, 0), WORKLOAD_MAX_REPEATS * WORKLOAD_MAX_TURNS);
    ck_assert_uint_eq(
        workload_request_id(WORKLOAD_MAX_PROMPTS - 1, WORKLOAD_MAX_TURNS - 1, WORKLOAD_MAX_REPEATS - 1),
        UINT32_MAX);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("workload");
    TCase *lines = tcase_create("lines"), *files = tcase_create("files");
    tcase_add_test(lines, question_turns_are_read_in_order);
    tcase_add_test(lines, user_messages_are_kept_and_recorded_answers_dropped);
    tcase_add_test(lines, a_prompt_is_one_turn_and_the_line_is_its_id);
    tcase_add_test(lines, forms_mix_and_a_byte_order_mark_is_skipped);
    tcase_add_test(lines, tokens_are_a_turn_of_ids);
    tcase_add_test(lines, every_mistake_names_its_line);
    tcase_add_test(lines, a_zero_byte_in_a_line_is_refused);
    tcase_add_test(lines, deep_nesting_is_refused);
    tcase_add_unchecked_fixture(files, make_files, remove_files);
    tcase_add_test(files, category_then_limit_then_slice);
    tcase_add_test(files, a_data_set_is_named_after_its_file_or_folder);
    tcase_add_test(files, zero_prompts_are_a_mistake_of_configuration);
    tcase_add_test(files, request_ids_never_meet);
    suite_add_tcase(s, lines);
    suite_add_tcase(s, files);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
