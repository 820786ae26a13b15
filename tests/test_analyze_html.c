/* The page: what it says, that foreign text cannot break it, that it needs nothing from outside; in a browser
 * where there is one, that no text of a plot lies on another and that nothing is wider than the window. */
#include "experiments/analyze_html.h"
#include "engine/err.h"
#include "experiments/svg.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MS = 1000000, PROMPTS = 24 };

static char dir[] = "/tmp/specbed-page-XXXXXX";
static char file[64], page_path[64], costs[64], probe[64];

static void setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/toy.h5", dir);
    snprintf(page_path, sizeof page_path, "%s/page.html", dir);
    snprintf(costs, sizeof costs, "%s/costs.json", dir);
    snprintf(probe, sizeof probe, "%s/probe.html", dir);
}

static void teardown(void)
{
    const char *paths[] = {file, page_path, costs, probe};
    for (int i = 0; i < 4; i++)
        unlink(paths[i]);
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 6);
}

/* Three steps of an arm: drafts of three, the first accepted and its sibling not. */
static void answer(struct trace *t, int arm, int prompt, int64_t clock)
{
    toy_trace_request(t, arm, prompt, 0, clock, (uint64_t)prompt);
    for (int k = 0; k < 6 / (arm ? 2 : 1); k++) {
        int64_t ns = (arm ? 12 : 10) * MS + (prompt * 7 + k) % 5 * 1000 + 1;
        toy_trace_step(t, arm ? (struct toy_step){3, 3, 1, 2, 0, ns}
                              : (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, ns});
        t->steps[t->n_steps - 1].position = 40 + 90 * k;
        t->steps[t->n_steps - 1].ns_verify = ns - 1000;
        for (int d = 0; arm && d < 3; d++)
            toy_trace_node(t, (struct trace_node){.token = 70 + d,
                                                  .parent = d - 1,
                                                  .depth = d + 1,
                                                  .accepted = d == 0,
                                                  .log_q = -0.2f * (float)(1 + d + prompt % 5),
                                                  .rank = 1 + d,
                                                  .entropy = 0.4f * (float)(1 + d)});
        t->steps[t->n_steps - 1].node_begin = t->n_nodes - (arm ? 3 : 0);
    }
}

/* Labels and prompts that mean mischief. */
static void make_file(void)
{
    struct trace t;
    toy_trace_init(&t, file);
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(&t, "<script>alert(1)</script> & \"quoted\"", "ngram", "greedy", 0, 0);
    for (int i = 0; i < PROMPTS; i++)
        toy_trace_prompt(&t, i % 2 ? "roleplay" : "<b>math", i, 0);
    for (int arm = 0; arm < 2; arm++)
        for (int i = 0; i < PROMPTS; i++)
            answer(&t, arm, i, (int64_t)(arm * PROMPTS + i) * 1000 * MS);
    toy_trace_write(&t, file);
    trace_deinit(&t);
}

static char *read_text(const char *path)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_gt(getdelim(&text, &n, 0, f), 0);
    fclose(f);
    return text;
}

static char *make_page(void)
{
    struct trace t;
    struct analyze_opts opts = analyze_defaults();
    char *text = NULL;
    size_t n = 0;
    make_file();
    FILE *f = fopen(costs, "w"), *out = open_memstream(&text, &n);
    fputs("{\"model\": \"m\", \"device\": \"Toy CPU\", \"points\": ["
          "{\"stage\": \"decode\", \"rows\": 1, \"context\": 64, \"median_s\": 0.010, \"p90_s\": 0.010, "
          "\"experts\": 1},"
          "{\"stage\": \"verify\", \"rows\": 5, \"context\": 64, \"median_s\": 0.014, \"p90_s\": 0.014, "
          "\"experts\": 3}]}",
          f);
    fclose(f);
    ck_assert_msg(!trace_read(&t, file, TRACE_READ_JUDGED | TRACE_READ_LOOPS), "%s", err_text());
    opts.summary.by = SUMMARY_BY_CATEGORY;
    opts.summary.resampling.replicates = 100;
    opts.tables = ~0u;
    opts.axes = ~0u;
    opts.tolerant = 1;
    opts.cost = costs;
    opts.html = page_path;
    ck_assert_msg(!analyze_trace(&t, &opts, out), "%s", err_text());
    fclose(out);
    free(text);
    trace_deinit(&t);
    return read_text(page_path);
}

START_TEST(a_page_has_its_verdict_plots_answer_and_provenance)
{
    char *page = make_page();
    static const char *const parts[] = {"<h2>Summary</h2>",
                                        "<b>faster</b> than plain decoding: 1.",
                                        "24 of 24 answers are plain decoding's",
                                        "Acceptance by position",
                                        "Speed against acceptance",
                                        "How long steps take",
                                        "Where a step's time goes",
                                        "AL by category",
                                        "Calibration of the draft",
                                        "Acceptance against context",
                                        "<span class=\"acc\">",
                                        "<span class=\"rej\">",
                                        "<span class=\"bonus\">",
                                        "When a further row pays",
                                        "<h2>Provenance</h2>",
                                        "000000000000feed",
                                        "abc1234",
                                        "percentile, over prompts, 100 replicates, seed 1"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        ck_assert_msg(strstr(page, parts[i]) != NULL, "no '%s'", parts[i]);
    free(page);
}
END_TEST

START_TEST(foreign_text_is_text_and_nothing_comes_from_outside)
{
    char *page = make_page();
    ck_assert_ptr_null(strstr(page, "<script"));
    ck_assert_ptr_null(strstr(page, "<b>math"));
    ck_assert_ptr_nonnull(strstr(page, "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot;"));
    ck_assert_ptr_null(strstr(page, "http:"));
    ck_assert_ptr_null(strstr(page, "https:"));
    ck_assert_ptr_null(strstr(page, "url("));
    static const char *const no_numbers[] = {">nan", "\"nan", ",nan", "-nan", ">inf", "\"inf", ",inf"};
    for (int i = 0; i < 7; i++)
        ck_assert_msg(!strstr(page, no_numbers[i]), "found %s", no_numbers[i]);
    free(page);
}
END_TEST

/* 10 ms for a row, 14 for five with two more experts: 1 ms a row, a tenth of plain decoding's time for a
 * token; 2 ms an expert. */
START_TEST(a_further_row_pays_from_its_break_even_on)
{
    char *page = make_page();
    char *at = strstr(page, "<h2>When a further row pays</h2>");
    ck_assert_ptr_nonnull(at);
    ck_assert_ptr_nonnull(strstr(at, "<td>64</td><td>5</td><td>14.000</td><td>1.400</td><td>1.000</"
                                     "td><td>10.0 %</td><td>3.00</td><td>2.0000</td>"));
    free(page);
}
END_TEST

START_TEST(escaping_keeps_bytes_out_that_are_no_text)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    svg_escape(f, "a<b>&\"\x01\xff\n");
    fclose(f);
    ck_assert_str_eq(text, "a&lt;b&gt;&amp;&quot;\xEF\xBF\xBD\n");
    free(text);
}
END_TEST

START_TEST(axes_have_round_numbers_and_empty_ranges_are_widened)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    struct svg s = {.x0 = 1, .x1 = 4.7, .y0 = 2, .y1 = 2};
    svg_begin(&s, f, "t", "x", "y", 1);
    svg_end(&s, NULL, 0, "");
    fclose(f);
    ck_assert(s.x0 == 1 && s.x1 == 5 && s.y0 == 2 && s.y1 == 4);
    ck_assert_ptr_nonnull(strstr(text, ">3</text>"));
    ck_assert_ptr_null(strstr(text, "nan"));
    free(text);
    struct svg none = {.x0 = INFINITY, .x1 = -INFINITY, .y0 = NAN, .y1 = NAN};
    f = open_memstream(&text, &n);
    svg_begin(&none, f, "t", "x", "y", 1);
    svg_end(&none, NULL, 0, "");
    fclose(f);
    ck_assert(none.x0 == 0 && none.x1 == 1 && none.y0 == 0 && none.y1 == 1);
    free(text);
}
END_TEST

static const char *browser(void)
{
    static const char *const names[] = {"chromium", "chromium-browser", "google-chrome"};
    for (int i = 0; i < 3; i++) {
        char command[64];
        snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", names[i]);
        if (system(command) == 0)
            return names[i];
    }
    return NULL;
}

/* The page with a script of ours that counts texts of a plot that lie on each other, and pixels that the page
 * is too wide. */
static void write_probe(const char *page)
{
    FILE *f = fopen(probe, "w");
    ck_assert_ptr_nonnull(f);
    fputs(page, f);
    fputs("<script>let bad=0;for(const s of document.querySelectorAll('svg')){const "
          "t=[...s.querySelectorAll('text')].map(e=>e.getBoundingClientRect());"
          "for(let i=0;i<t.length;i++)for(let k=0;k<i;k++){const "
          "a=t[i],b=t[k];if(a.left+1<b.right&&b.left+1<a.right&&a.top+2<b.bottom&&b.top+2<a.bottom)bad++}}"
          "const wide=Math.max(0,document.documentElement.scrollWidth-document.documentElement.clientWidth);"
          "document.body.innerHTML='overlaps='+bad+' wide='+wide+' width='+innerWidth</script>",
          f);
    fclose(f);
}

START_TEST(nothing_overlaps_in_a_real_browser)
{
    const char *program = browser();
    if (!program)
        return; /* said by main */
    char *page = make_page();
    write_probe(page);
    for (int width = 900; width <= 1600; width += 700) {
        char command[512], line[4096], wanted[64];
        int found = 0;
        snprintf(command, sizeof command,
                 "%s --headless --no-sandbox --disable-gpu --window-size=%d,1200 --user-data-dir=%s/profile "
                 "--dump-dom file://%s 2>/dev/null",
                 program, width, dir, probe);
        snprintf(wanted, sizeof wanted, "overlaps=0 wide=0 width=%d", width);
        FILE *f = popen(command, "r");
        ck_assert_ptr_nonnull(f);
        while (fgets(line, sizeof line, f)) {
            char *at = strstr(line, "overlaps=");
            found |= at && !strncmp(at, wanted, strlen(wanted));
            if (at && !found)
                printf("at %d: %.60s\n", width, at);
        }
        pclose(f);
        ck_assert_msg(found, "%s at %d pixels: expected '%s'", program, width, wanted);
    }
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s/profile'", dir);
    ck_assert_int_eq(system(command), 0);
    free(page);
}
END_TEST

int main(void)
{
    if (!browser())
        printf("no browser here: the page is not looked at\n");
    Suite *s = suite_create("analyze_html");
    TCase *c = tcase_create("page");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, a_page_has_its_verdict_plots_answer_and_provenance);
    tcase_add_test(c, foreign_text_is_text_and_nothing_comes_from_outside);
    tcase_add_test(c, a_further_row_pays_from_its_break_even_on);
    tcase_add_test(c, escaping_keeps_bytes_out_that_are_no_text);
    tcase_add_test(c, axes_have_round_numbers_and_empty_ranges_are_widened);
    tcase_add_test(c, nothing_overlaps_in_a_real_browser);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
