/* config: what a file says arrives, what it should not say is refused with a sentence that helps. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "experiments/config.h"
#include "experiments/config_option.h"
#include "experiments/suggest.h"
#include <check.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void parse(struct config *c, const char *yaml)
{
    int rc = config_parse(c, yaml, strlen(yaml), "exp.yaml", NULL, 0);
    ck_assert_msg(rc == 0, "%s", err_text());
}

static void expect_text(const char *part)
{
    ck_assert_msg(strstr(err_text(), part) != NULL, "expected '%s' in: %s", part, err_text());
}

/* The file is refused and the message holds `part`. */
static void refused(const char *yaml, const char *part)
{
    struct config c;
    memset(&c, 0x5A, sizeof c);
    struct config before = c;
    int rc = config_parse(&c, yaml, strlen(yaml), "exp.yaml", NULL, 0);
    ck_assert_msg(rc == ERR_CONFIG, "'%s' gave %d", yaml, rc);
    expect_text(part);
    ck_assert_msg(!memcmp(&before, &c, sizeof c), "a failed parse wrote its result");
}

static void set_refused(const char *set, const char *part)
{
    struct config c;
    ck_assert_int_eq(config_parse(&c, "", 0, "exp.yaml", &set, 1), ERR_CONFIG);
    expect_text(part);
}

static int ngram_index(void)
{
    for (int i = 0; drafts_all[i]; i++)
        if (drafts_all[i] == &draft_ngram)
            return i;
    return -1;
}

static int ngram_option(const char *name)
{
    for (int i = 0; draft_ngram.options[i].name; i++)
        if (!strcmp(draft_ngram.options[i].name, name))
            return i;
    return -1;
}

START_TEST(an_empty_file_gives_the_defaults)
{
    struct config c;
    parse(&c, "");
    ck_assert_str_eq(c.draft.strategy, "none");
    ck_assert_int_eq(c.draft.max_depth, 5);
    ck_assert_int_eq(c.draft.max_nodes, 5);
    ck_assert_str_eq(c.draft.reference, "");
    ck_assert_str_eq(c.sampling.rule, "greedy");
    ck_assert(c.sampling.temperature == 0 && c.sampling.top_p == 1 && c.sampling.min_p == 0);
    ck_assert(c.sampling.relaxed_delta == 0.6 && c.sampling.relaxed_top_k == 10);
    ck_assert_int_eq(c.sampling.seed, 1);
    ck_assert_int_eq(c.workload.max_tokens, 128);
    ck_assert_int_eq(c.workload.concurrency, 1);
    ck_assert_int_eq(c.workload.repeats, 1);
    ck_assert_int_eq(c.workload.warmup, 1);
    ck_assert_int_eq(c.workload.ignore_eos, 0);
    ck_assert_int_eq(c.workload.dataset.n, 0);
    ck_assert_int_eq(c.device.threads, 0);
    ck_assert_int_eq(c.model.max_context, 0);
    ck_assert_str_eq(c.trace.level, "nodes");
    ck_assert_str_eq(c.model.weights, "bf16");
    ck_assert_str_eq(c.model.activations, "bf16");
    ck_assert_str_eq(c.model.kv, "bf16");
    ck_assert_str_eq(c.model.synthetic, "");
    ck_assert_int_eq(c.model.synthetic_seed, 1);
    ck_assert_int_eq(c.device.index, 0);
    ck_assert_str_eq(c.workload.mode, "generate");
    ck_assert_str_eq(c.workload.answers, "");
    ck_assert_int_eq(c.arms.n, 0);
    ck_assert_int_eq(config_cells(&c), 1);
    config_deinit(&c);
}
END_TEST

START_TEST(nested_and_dotted_keys_mean_the_same)
{
    struct config a, b;
    int s = ngram_index(), min = ngram_option("min");
    parse(&a, "draft: {strategy: ngram, ngram: {min: 2}}\nworkload:\n  stop: [\"\\n\\n\", '###']\n");
    parse(&b, "draft.strategy: ngram\ndraft: {ngram.min: 2}\nworkload.stop: [\"\\n\\n\", '###']\n");
    ck_assert(a.draft.option[s][min] == 2 && b.draft.option[s][min] == 2);
    ck_assert_str_eq(a.draft.strategy, b.draft.strategy);
    ck_assert_int_eq(b.workload.stop.n, 2);
    ck_assert_str_eq(b.workload.stop.items[0], "\n\n");
    ck_assert_str_eq(a.workload.stop.items[1], b.workload.stop.items[1]);
    config_deinit(&a);
    config_deinit(&b);
}
END_TEST

START_TEST(a_single_text_is_a_list_of_one)
{
    struct config c;
    parse(&c, "workload: {dataset: a.jsonl, category: }");
    ck_assert_int_eq(c.workload.dataset.n, 1);
    ck_assert_str_eq(c.workload.dataset.items[0], "a.jsonl");
    ck_assert_int_eq(c.workload.category.n, 0);
    config_deinit(&c);
}
END_TEST

START_TEST(a_word_of_a_draft_option_becomes_its_index)
{
    struct config c;
    int s = ngram_index(), scope = ngram_option("scope");
    ck_assert_int_ge(scope, 0);
    const char *word = draft_ngram.options[scope].choices[1];
    char yaml[100];
    snprintf(yaml, sizeof yaml, "draft.ngram.scope: %s", word);
    parse(&c, yaml);
    ck_assert(c.draft.option[s][scope] == 1);
    config_deinit(&c);
    refused("draft.ngram.scope: al", "expected all or prompt, found 'al'; did you mean 'all'?");
}
END_TEST

START_TEST(every_mistake_gets_a_sentence)
{
    static const struct {
        const char *yaml, *part;
    } cases[] = {
        {"name: x\ndraft.stratgy: ngram",
         "exp.yaml:2: unknown key 'draft.stratgy'; did you mean 'draft.strategy'?"},
        {"draft:\n  stratgy: ngram",
         "exp.yaml:2: unknown key 'draft.stratgy'; did you mean 'draft.strategy'?"},
        {"max_depth: 3", "exp.yaml:1: unknown key 'max_depth'; did you mean 'draft.max_depth'?"},
        {"drafts: {strategy: ngram}", "unknown key 'drafts'"},
        {"zzzzzzzz: 1", "`specbed list options` lists them all"},
        {"draft.max_depth: five",
         "exp.yaml:1: draft.max_depth: expected a whole number in [1, 64], found 'five'"},
        {"draft.max_depth: 5.0", "expected a whole number in [1, 64], found '5.0'"},
        {"draft.max_depth: 65", "expected a whole number in [1, 64], found '65'"},
        {"draft.max_depth: 0", "expected a whole number in [1, 64], found '0'"},
        {"draft.max_depth: 99999999999999999999", "expected a whole number in [1, 64]"},
        {"draft.max_depth: ' 5'", "expected a whole number in [1, 64], found ' 5'"},
        {"draft.max_depth:", "expected a whole number in [1, 64], found nothing"},
        {"draft.max_nodes: 513", "expected a whole number in [1, 512], found '513'"},
        {"workload.concurrency: 65", "[1, 64]"},
        {"workload.repeats: 257", "[1, 256]"},
        {"sampling.seed: -1",
         "sampling.seed: expected a whole number in [0, 9223372036854775807], found '-1'"},
        {"sampling.seed: 9223372036854775808", "found '9223372036854775808'"},
        {"sampling.top_p: 0", "expected a number in (0, 1], found '0'"},
        {"sampling.temperature: nan", "expected a number in [0, 100], found 'nan'"},
        {"sampling.temperature: 0x1", "found '0x1'"},
        {"sampling.temperature: 1e999", "found '1e999'"},
        {"workload.ignore_eos: yes", "expected true or false, found 'yes'"},
        {"draft.strategy: ngrams", "found 'ngrams'; did you mean 'ngram'?"},
        {"sampling.rule: zzz", "expected greedy, coupled, rejection or relaxed, found 'zzz'"},
        {"device.kind: tpu", "device.kind: expected cpu or cuda, found 'tpu'"},
        {"draft.strategy: {ngram: 1}", "draft.strategy: expected "},
        {"draft.strategy: {ngram: 1}", "found a mapping"},
        {"name: {}", "name: expected text, found a mapping"},
        {"model: x", "model: expected a mapping of keys to values, found a single value"},
        {"model: [x]", "model: expected a mapping of keys to values, found a list"},
        {"draft.strategy: [none, ngram]",
         "found a list of 2; to try several values, write sweep: {draft.strategy: [...]}"},
        {"draft.strategy: []", "found a list of 0"},
        {"workload.stop: ['']", "expected non-empty texts, found an empty one as item 1"},
        {"workload.dataset: [a, [b]]", "expected a list of single values, found a list in it"},
        {"workload.dataset: [a, {b: c}]", "expected a list of single values, found a mapping in it"},
        {"name: a\nname: b", "exp.yaml:2: duplicate key 'name'; it stands in line 1 already"},
        {"draft: {strategy: none}\n\ndraft.strategy: ngram",
         "exp.yaml:3: duplicate key 'draft.strategy'; it stands in line 1"},
        {"draft: {max_depth: 1}\ndraft: {max_nodes: 1}", "exp.yaml:2: duplicate key 'draft'"},
        {"name: &a x", "exp.yaml:1: anchors are not supported, found '&a'"},
        {"name: *a", "exp.yaml:1: aliases are not supported, found '*a'"},
        {"name: !!str x", "tags are not supported"},
        {"name: a\n---\nname: b", "exp.yaml:2: expected one YAML document, found a second one"},
        {"[a, b]", "expected a mapping of keys to values, such as 'name: quickstart', found a list"},
        {"word", "found a single value"},
        {"{a: {a: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}}", "expected mappings nested at most 8 deep"},
        {"? [a]\n: b", "expected a key, found a list"},
        {"name: \"a\\0b\"", "found a zero byte"},
        {"name: a\nmodel: {path: b", "exp.yaml:"},
        {"name: \xff", "expected YAML in UTF-8"},
        {"a: \tb:\n\t- c", "exp.yaml:"},
        {"sweep: [a]", "sweep: expected a mapping of keys to values, found a list"},
        {"sweep: {draft.stratgy: [none]}",
         "unknown key 'draft.stratgy' in sweep; did you mean 'draft.strategy'?"},
        {"sweep: {draft.max_depth: [1, two]}",
         "draft.max_depth: expected a whole number in [1, 64], found 'two'"},
        {"sweep: {draft.max_depth: [1, 2, 1]}", "expected each value once, found '1' twice"},
        {"sweep: {draft.max_depth: []}", "expected at least one value, found an empty list"},
        {"sweep: {draft.max_depth: {a: 1}}", "expected a list of values, found a mapping"},
        {"sweep: {draft: 1}", "unknown key 'draft' in sweep"},
        {"sweep: {draft.max_depth: [{a: 1}]}", "expected a list of values, found a list of mappings"},
        {"model.weights: fp16", "model.weights: expected bf16 or fp8, found 'fp16'"},
        {"model.synthetic_seed: -1", "model.synthetic_seed: expected a whole number in [0, "},
        {"device.index: -1", "device.index: expected a whole number in [0, 1023], found '-1'"},
        {"workload.mode: scores", "expected generate or score, found 'scores'; did you mean 'score'?"},
        {"arms: x", "arms: expected a list of mappings, such as [{draft.max_depth: 3}"},
        {"arms: [a, b]", "found a list of values"},
        {"arms: {draft.max_depth: 3}", "arms: expected a list of mappings"},
        {"arms: [{draft.max_depth: 3}, x]",
         "'arms': expected a list of mappings, found a single value in it"},
        {"arms: [{draft.max_depth: 3}, [x]]", "'arms': expected a list of mappings, found a list in it"},
        {"arms: [x, {draft.max_depth: 3}]",
         "'arms': expected a list of single values, found a mapping in it"},
        {"arms:\n  - {draft.max_dept: 3}",
         "exp.yaml:2: unknown key 'draft.max_dept' in an arm; did you mean 'draft.max_depth'?"},
        {"arms: [{draft.max_depth: two}]",
         "draft.max_depth: expected a whole number in [1, 64], found 'two'"},
        {"arms: [{draft.max_depth: [1, 2]}]",
         "draft.max_depth in an arm: expected a single value, found a list"},
        {"arms: [{draft.max_depth: {a: 1}}]", "expected a single value, found a mapping"},
        {"arms: [{draft: 1}]", "unknown key 'draft' in an arm"},
        {"arms: [{draft.max_depth: 1, draft: {max_depth: 2}}]", "duplicate key 'arms.0.draft.max_depth'"},
        {"arms: [{}]", "arms: expected at least one key in each, found none in arm 1"},
        {"arms: [{name: a, draft.max_depth: 1}, {name: b}, {draft.max_depth: 1, name: a}]",
         "expected each arm once, found arms 1 and 3 to be the same"},
        {"arms: [{name: a}]\nsweep: {draft.max_depth: [1, 2]}", "expected a sweep or arms, found both"},
        {"arms: [{label: a}]", "expected at least one key in each, found none in arm 1"},
        {"arms: [{label: '', name: a}]", "label of an arm: expected text, found nothing"},
        {"arms: [{label: [a], name: a}]", "label of an arm: expected text, found a list"},
        {"arms: [{label: a, name: a}, {label: a, name: b}]", "expected each label once, found 'a' twice"},
        {"arms.1: {name: a}", "unknown key 'arms.1'"},
        {"arms.x: {name: a}", "unknown key 'arms.x'"},
        {"arms.0.name: a", "unknown key 'arms.0.name'"},
        {"armsx: [{name: a}]", "unknown key 'armsx'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].yaml, cases[i].part);
}
END_TEST

START_TEST(hostile_sizes_are_refused)
{
    size_t n = 0, cap = 200000;
    char *yaml = malloc(cap);
    for (int i = 0; i < 5000; i++)
        n += (size_t)snprintf(yaml + n, cap - n, "k%d: 1\n", i);
    refused(yaml, "expected at most 4096 keys");
    memset(yaml, '[', 100000);
    yaml[100000] = 0;
    refused(yaml, "found a list");
    memset(yaml, '{', 100000);
    refused(yaml, "exp.yaml:1: expected a key");
    memset(yaml, 'k', 1000);
    memcpy(yaml + 1000, ": 1", 4);
    refused(yaml, "expected a key of less than 256 bytes");
    n = (size_t)snprintf(yaml, cap, "sweep: {draft.max_depth: [");
    for (int i = 1; i <= 64; i++)
        n += (size_t)snprintf(yaml + n, cap - n, "%d, ", i);
    n += (size_t)snprintf(yaml + n, cap - n, "], draft.max_nodes: [");
    for (int i = 1; i <= 65; i++)
        n += (size_t)snprintf(yaml + n, cap - n, "%d, ", i);
    snprintf(yaml + n, cap - n, "]}");
    refused(yaml, "expected at most 4096 combinations, found at least 4160");
    n = (size_t)snprintf(yaml, cap, "arms:\n");
    for (int i = 1; i <= 65; i++)
        n += (size_t)snprintf(yaml + n, cap - n, "- {sampling.seed: %d}\n", i);
    refused(yaml, "exp.yaml:66: expected at most 64 arms, found more");
    n = (size_t)snprintf(yaml, cap, "arms: ");
    for (int i = 0; i < 1000; i++)
        n += (size_t)snprintf(yaml + n, cap - n, "[{a: ");
    refused(yaml, "expected mappings nested at most 8 deep");
    free(yaml);
}
END_TEST

START_TEST(set_overrides_the_file_and_later_wins)
{
    struct config c;
    const char *yaml =
        "draft: {strategy: ngram, max_depth: 2}\nsweep: {draft.max_depth: [1, 2], sampling.seed: [1, 2]}";
    const char *sets[] = {
        "draft.strategy=oracle", "draft.strategy=none", "workload.dataset=[a, 'b c']",  "workload.category=x",
        "name=a=b: [c]",         "draft.max_depth=7",   "sweep.sampling.seed=[3, 4, 5]"};
    int rc = config_parse(&c, yaml, strlen(yaml), "exp.yaml", sets, 7);
    ck_assert_msg(rc == 0, "%s", err_text());
    ck_assert_str_eq(c.draft.strategy, "none");
    ck_assert_int_eq(c.workload.dataset.n, 2);
    ck_assert_str_eq(c.workload.dataset.items[1], "b c");
    ck_assert_str_eq(c.workload.category.items[0], "x");
    ck_assert_str_eq(c.name, "a=b: [c]");
    ck_assert_int_eq(c.draft.max_depth, 7);
    ck_assert_int_eq(c.sweep.n, 1);
    ck_assert_str_eq(c.sweep.key[0], "sampling.seed");
    ck_assert_int_eq(config_cells(&c), 3);
    config_deinit(&c);
    set_refused("draft.max_depth", "expected key=value, such as draft.max_depth=3");
    set_refused("=3", "expected key=value");
    set_refused("draft=3", "expected the key of an option, found the section 'draft'");
    set_refused("draft.max_deph=3",
                "--set 'draft.max_deph=3': unknown key 'draft.max_deph'; did you mean 'draft.max_depth'?");
    set_refused("draft.max_depth=x", "--set 'draft.max_depth=x': draft.max_depth: expected a whole number");
    set_refused("workload.dataset=[a", "--set 'workload.dataset=[a'");
    set_refused("workload.dataset=[a], [b]", "--set 'workload.dataset=[a], [b]'");
    set_refused("name=\xff", "expected UTF-8, found byte 0xff");
}
END_TEST

START_TEST(an_empty_sweep_on_the_command_line_removes_it)
{
    struct config c;
    const char *yaml = "sweep: {draft.max_depth: [1, 2]}", *set = "sweep.draft.max_depth=[]";
    ck_assert_int_eq(config_parse(&c, yaml, strlen(yaml), "exp.yaml", &set, 1), 0);
    ck_assert_int_eq(config_cells(&c), 1);
    ck_assert_int_eq(c.sweep.n, 0);
    config_deinit(&c);
}
END_TEST

START_TEST(cells_run_through_the_product_last_key_fastest)
{
    static const char *const labels[] = {"none, 1", "none, 2", "none, 3", "ngram, 1", "ngram, 2", "ngram, 3"};
    struct config c;
    parse(&c, "model.path: m\nsweep: {draft: {strategy: [none, ngram]}, draft.max_depth: [1, 2, 3]}");
    ck_assert_int_eq(config_cells(&c), 6);
    for (int i = 0; i < 6; i++) {
        struct config cell;
        char *label;
        ck_assert_msg(config_cell(&c, i, &cell, &label) == 0, "%s", err_text());
        ck_assert_str_eq(label, labels[i]);
        ck_assert_str_eq(cell.draft.strategy, i < 3 ? "none" : "ngram");
        ck_assert_int_eq(cell.draft.max_depth, i % 3 + 1);
        ck_assert_int_eq(cell.sweep.n, 0);
        ck_assert_str_eq(cell.model.path, "m");
        free(label);
        config_deinit(&cell);
    }
    config_deinit(&c);
}
END_TEST

START_TEST(arms_are_cells_of_their_own)
{
    static const char *const labels[] = {"weights bf16", "weights fp8, kv fp8", "deep: \"x\""};
    struct config c;
    parse(&c, "model: {path: m, kv: bf16}\narms:\n- {model.weights: bf16}\n- model: {weights: fp8, kv: fp8}\n"
              "- {draft: {max_depth: 3}, label: 'deep: \"x\"', name: x}\n");
    ck_assert_int_eq(config_cells(&c), 3);
    for (int i = 0; i < 3; i++) {
        struct config cell;
        char *label;
        ck_assert_msg(config_cell(&c, i, &cell, &label) == 0, "%s", err_text());
        ck_assert_str_eq(label, labels[i]);
        ck_assert_str_eq(cell.model.weights, i == 1 ? "fp8" : "bf16");
        ck_assert_str_eq(cell.model.kv, i == 1 ? "fp8" : "bf16");
        ck_assert_int_eq(cell.draft.max_depth, i == 2 ? 3 : 5);
        ck_assert_int_eq(cell.arms.n, 0);
        free(label);
        config_deinit(&cell);
    }
    config_deinit(&c);
}
END_TEST

START_TEST(the_command_line_replaces_arms_but_not_what_they_set)
{
    struct config c;
    const char *yaml = "arms: [{model.kv: fp8}, {draft.max_depth: 3}]";
    const char *drop[] = {"arms=[]", "model.kv=fp8", "sweep.draft.max_depth=[1, 2]"};
    const char *other[] = {"arms=[{sampling.seed: 1}, {sampling.seed: 2}, {sampling: {seed: 3}}]"};
    const char *clash = "model.kv=bf16", *product = "sweep.draft.max_nodes=[1, 2]";
    ck_assert_msg(config_parse(&c, yaml, strlen(yaml), "exp.yaml", drop, 3) == 0, "%s", err_text());
    ck_assert_int_eq(c.arms.n, 0);
    ck_assert_int_eq(config_cells(&c), 2);
    config_deinit(&c);
    ck_assert_msg(config_parse(&c, yaml, strlen(yaml), "exp.yaml", other, 1) == 0, "%s", err_text());
    ck_assert_int_eq(config_cells(&c), 3);
    ck_assert_str_eq(c.arms.at[2].key[0], "sampling.seed");
    ck_assert_str_eq(c.arms.at[2].value[0], "3");
    config_deinit(&c);
    ck_assert_int_eq(config_parse(&c, yaml, strlen(yaml), "exp.yaml", &clash, 1), ERR_CONFIG);
    expect_text("--set 'model.kv=bf16': the arms set model.kv themselves");
    expect_text("--set arms=[]");
    ck_assert_int_eq(config_parse(&c, yaml, strlen(yaml), "exp.yaml", &product, 1), ERR_CONFIG);
    expect_text("found both (a sweep of draft.max_nodes)");
}
END_TEST

START_TEST(a_list_option_is_swept_by_single_texts)
{
    struct config c, cell;
    char *label;
    parse(&c, "model.path: m\nworkload.dataset: [x, y]\nsweep: {workload.dataset: [a.jsonl, b.jsonl]}");
    ck_assert_int_eq(config_cell(&c, 1, &cell, &label), 0);
    ck_assert_int_eq(cell.workload.dataset.n, 1);
    ck_assert_str_eq(cell.workload.dataset.items[0], "b.jsonl");
    ck_assert_int_eq(c.workload.dataset.n, 2);
    free(label);
    config_deinit(&cell);
    config_deinit(&c);
}
END_TEST

START_TEST(without_a_sweep_the_label_is_the_strategy)
{
    struct config c, cell;
    char *label;
    parse(&c, "model.path: m\ndraft.strategy: ngram");
    ck_assert_int_eq(config_cell(&c, 0, &cell, &label), 0);
    ck_assert_str_eq(label, "ngram");
    free(label);
    config_deinit(&cell);
    config_deinit(&c);
}
END_TEST

START_TEST(without_a_sweep_the_label_of_scores_is_the_models_numbers)
{
    static const char *const cases[][2] = {{"", "bf16"}, {", weights: fp8, kv: fp8", "weights fp8, kv fp8"}};
    for (int i = 0; i < 2; i++) {
        struct config c, cell;
        char *label, yaml[160];
        snprintf(yaml, sizeof yaml, "workload: {mode: score, answers: a.h5}\nmodel: {path: m%s}",
                 cases[i][0]);
        parse(&c, yaml);
        ck_assert_msg(config_cell(&c, 0, &cell, &label) == 0, "%s", err_text());
        ck_assert_str_eq(label, cases[i][1]);
        free(label);
        config_deinit(&cell);
        config_deinit(&c);
    }
}
END_TEST

START_TEST(a_cell_that_contradicts_itself_is_refused)
{
    static const struct {
        const char *yaml, *part;
        int cell, rc;
    } cases[] = {
        {"name: x", "model.path: expected the directory of a model", 0, ERR_CONFIG},
        {"model.path: m\nsampling.temperature: 0.5",
         "rule greedy takes the most probable token and reads no temperature", 0, ERR_CONFIG},
        {"model.path: m\nsampling: {rule: relaxed, temperature: 1}",
         "or sampling.rule to coupled or rejection", 0, ERR_CONFIG},
        {"model.path: m\nsampling: {rule: coupled, temperature: 1}", "", 0, 0},
        {"model.path: m\ndraft.strategy: oracle", "draft.reference: strategy oracle replays earlier outputs",
         0, ERR_CONFIG},
        {"model.path: m\ndraft: {strategy: oracle, reference: a.h5}", "", 0, 0},
        {"model.path: m\nsweep: {draft.strategy: [none, oracle]}", "", 0, 0},
        {"model.path: m\nsweep: {draft.strategy: [none, oracle]}", "cell 'oracle' of the sweep", 1,
         ERR_CONFIG},
        {"model.path: m\narms: [{draft.strategy: none}, {draft.strategy: oracle}]", "arm 'strategy oracle'",
         1, ERR_CONFIG},
        {"model: {path: m, weights: fp8, activations: fp8, kv: fp8}", "", 0, 0},
        {"model: {path: m, kv: fp8}", "", 0, 0},
        {"model: {path: m, activations: fp8}",
         "model.activations: fp8 activations are multiplied with fp8 weights: expected model.weights fp8", 0,
         ERR_CONFIG},
        {"model.synthetic: llama-3.1-8b", "", 0, 0},
        {"model.synthetic: llama-3.1-8b\nworkload.stop: [x]",
         "workload.stop: expected no texts that end an answer, found 1: without a tokenizer", 0, ERR_CONFIG},
        {"model: {path: m, synthetic: llama-3.1-8b}", "", 0, 0},
        {"model: {path: m, synthetic: llama-9}", "llama-3.1-8b", 0, ERR_CONFIG},
        {"model: {path: m}\ndevice: {shard: [0, 8]}", "", 0, 0},
        {"model: {path: m}\ndevice: {shard: [7, 8]}", "", 0, 0},
        {"model: {path: m}\ndevice: {world: 8}", "", 0, 0},
        {"model: {path: m}\ndevice: {shard: [8, 8]}",
         "device.shard: expected the rank as a whole number in [0, 7], found '8'", 0, ERR_CONFIG},
        {"model: {path: m}\ndevice: {shard: [0, 9]}", "the world as a whole number in [1, 8], found '9'", 0,
         ERR_CONFIG},
        {"model: {path: m}\ndevice: {shard: [0]}", "expected [rank, world], found a list of 1", 0,
         ERR_CONFIG},
        {"model: {path: m}\ndevice: {shard: [0, 8], world: 2}", "expected device.world 1 beside it, found 2",
         0, ERR_CONFIG},
        {"model: {path: m, synthetic: maverick}\nsynthetic.expert_skew: 1", "", 0, 0},
        {"model: {path: m, synthetic: llama-9}", "model.synthetic", 0, ERR_CONFIG},
        {"model.path: m\nworkload.mode: score", "workload.answers: mode score judges answers that are there",
         0, ERR_CONFIG},
        {"model.path: m\nworkload.mode: score", "make one with workload.mode generate", 0, ERR_CONFIG},
        {"model.path: m\nworkload: {mode: score, answers: a.h5}", "", 0, 0},
        {"model.path: m\nworkload: {mode: score, answers: a.h5}\ndraft.strategy: ngram",
         "draft.strategy: mode score drafts nothing: expected none, found ngram", 0, ERR_CONFIG},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config c, cell;
        char *label = NULL;
        parse(&c, cases[i].yaml);
        err_clear();
        int rc = config_cell(&c, cases[i].cell, &cell, &label);
        ck_assert_msg(rc == cases[i].rc, "case %zu: %d %s", i, rc, err_text());
        expect_text(cases[i].part);
        if (rc == 0) {
            free(label);
            config_deinit(&cell);
        }
        config_deinit(&c);
    }
}
END_TEST

/* Random text: plain words, quotes, control characters, characters that YAML folds or strips. */
static const char *random_text(unsigned *seed, char *buf, int empty_allowed)
{
    static const char *const parts[] = {"a",
                                        "ngram",
                                        " ",
                                        "\"",
                                        "'",
                                        "\\",
                                        "\n",
                                        "\t",
                                        "\r",
                                        "\x01",
                                        "#",
                                        ": ",
                                        "- ",
                                        "[",
                                        "}",
                                        "\x7f",
                                        "\xC2\x85",
                                        "\xE2\x80\xA8",
                                        "\xC3\xA9",
                                        "\xE6\xBC\xA2",
                                        "\xEF\xBB\xBF",
                                        "\xF0\x9F\x98\x80",
                                        "&x",
                                        "*",
                                        "!",
                                        "true",
                                        "~",
                                        "..."};
    int n = (int)(rand_r(seed) % 6) + !empty_allowed;
    buf[0] = 0;
    for (int i = 0; i < n; i++) {
        const char *part = parts[(unsigned)rand_r(seed) % (sizeof parts / sizeof *parts)];
        memcpy(buf + strlen(buf), part, strlen(part) + 1);
    }
    return buf;
}

/* A value the option takes, as text. */
static const char *random_value(const struct config_option *o, unsigned *seed, char *buf, size_t n)
{
    double u = (double)rand_r(seed) / RAND_MAX;
    int words = 0;
    switch (o->type) {
    case CONFIG_INT:
        if (o->store == CONFIG_AS_LONG)
            snprintf(buf, n, "%ld", (long)(u * (double)(LONG_MAX / 2)));
        else
            snprintf(buf, n, "%.0f", o->lo + (double)(long)(u * (o->hi - o->lo)));
        break;
    case CONFIG_REAL:
        snprintf(buf, n, "%.17g", o->hi - u * (o->hi - o->lo) * 0.999);
        break;
    case CONFIG_BOOL:
        snprintf(buf, n, "%s", u < 0.5 ? "true" : "false");
        break;
    case CONFIG_CHOICE:
        while (config_option_word(o, words))
            words++;
        snprintf(buf, n, "%s", config_option_word(o, rand_r(seed) % words));
        break;
    default:
        random_text(seed, buf, o->type == CONFIG_TEXT);
        break;
    }
    return buf;
}

/* Up to four arms, told apart by their seeds, with a random value of one more option each. */
static void random_arms(struct config *c, unsigned *seed)
{
    int n = (int)(rand_r(seed) % 5), options = 0;
    struct config_option o;
    char text[100], label[100];
    while (config_option_at(options, &o))
        options++;
    c->arms.at = calloc((size_t)n + 1, sizeof *c->arms.at);
    for (c->arms.n = 0; c->arms.n < n; c->arms.n++) {
        struct config_arm *arm = &c->arms.at[c->arms.n];
        snprintf(text, sizeof text, "%d", c->arms.n);
        *arm = (struct config_arm){.n = 1, .key = {strdup("sampling.seed")}, .value = {strdup(text)}};
        if (rand_r(seed) % 2)
            arm->label = strdup(random_text(seed, label, 0));
        for (int i = 0; arm->label && i < c->arms.n; i++)
            if (c->arms.at[i].label && !strcmp(c->arms.at[i].label, arm->label)) {
                free(arm->label);
                arm->label = NULL;
                break;
            }
        config_option_at((int)(rand_r(seed) % (unsigned)options), &o);
        if (!strcmp(o.key, "sampling.seed"))
            continue;
        random_value(&o, seed, text, sizeof text);
        arm->key[arm->n] = strdup(o.key);
        arm->value[arm->n++] = strdup(text[0] || o.type != CONFIG_LIST ? text : "x");
    }
}

static void same_arms(const struct config *a, const struct config *b)
{
    ck_assert_int_eq(a->arms.n, b->arms.n);
    for (int i = 0; i < a->arms.n; i++) {
        ck_assert_int_eq(a->arms.at[i].n, b->arms.at[i].n);
        ck_assert_pstr_eq(a->arms.at[i].label, b->arms.at[i].label);
        for (int k = 0; k < a->arms.at[i].n; k++) {
            ck_assert_str_eq(a->arms.at[i].key[k], b->arms.at[i].key[k]);
            ck_assert_str_eq(a->arms.at[i].value[k], b->arms.at[i].value[k]);
        }
    }
}

static void random_config(struct config *c, unsigned *seed)
{
    struct config_option o;
    char text[4][100];
    parse(c, "");
    for (int i = 0; config_option_at(i, &o); i++) {
        int n = o.type == CONFIG_LIST ? (int)(rand_r(seed) % 4) : 1;
        char *items[4] = {text[0], text[1], text[2], text[3]};
        for (int k = 0; k < n; k++)
            random_value(&o, seed, text[k], sizeof text[k]);
        ck_assert_msg(config_option_set(c, &o, items, n, "test") == 0, "%s", err_text());
    }
    if (rand_r(seed) % 2) {
        random_arms(c, seed);
        return;
    }
    for (int i = 0; config_option_at(i, &o) && c->sweep.n < CONFIG_MAX_SWEEP; i++) {
        if (rand_r(seed) % 8)
            continue;
        char *item = text[0];
        random_value(&o, seed, text[0], sizeof text[0]);
        ck_assert_int_eq(config_list_copy(&c->sweep.values[c->sweep.n], &item, 1), 0);
        c->sweep.key[c->sweep.n++] = strdup(o.key);
    }
}

static void same_list(const struct config_list *a, const struct config_list *b, const char *key)
{
    ck_assert_msg(a->n == b->n, "%s: %d items became %d", key, a->n, b->n);
    for (int i = 0; i < a->n; i++)
        ck_assert_msg(!strcmp(a->items[i], b->items[i]), "%s: '%s' became '%s'", key, a->items[i],
                      b->items[i]);
}

static void same_option(const struct config *a, const struct config *b, const struct config_option *o)
{
    const char *x = (const char *)a + o->offset, *y = (const char *)b + o->offset;
    static const size_t size[] = {
        [CONFIG_AS_INT] = sizeof(int), [CONFIG_AS_LONG] = sizeof(long), [CONFIG_AS_DOUBLE] = sizeof(double)};
    if (o->store == CONFIG_AS_LIST)
        same_list((const struct config_list *)x, (const struct config_list *)y, o->key);
    else if (o->store == CONFIG_AS_STRING)
        ck_assert_msg(!strcmp(*(char *const *)x, *(char *const *)y), "%s: '%s' became '%s'", o->key,
                      *(char *const *)x, *(char *const *)y);
    else
        ck_assert_msg(!memcmp(x, y, size[o->store]), "%s changed", o->key);
}

START_TEST(a_dump_reads_back_to_the_same_configuration)
{
    unsigned seed = 20240611;
    for (int round = 0; round < 500; round++) {
        struct config a, b;
        struct config_option o;
        random_config(&a, &seed);
        char *yaml = config_dump(&a);
        ck_assert_ptr_nonnull(yaml);
        int rc = config_parse(&b, yaml, strlen(yaml), "dump", NULL, 0);
        ck_assert_msg(rc == 0, "%s in:\n%s", err_text(), yaml);
        for (int i = 0; config_option_at(i, &o); i++)
            same_option(&a, &b, &o);
        ck_assert_int_eq(a.sweep.n, b.sweep.n);
        for (int i = 0; i < a.sweep.n; i++) {
            ck_assert_str_eq(a.sweep.key[i], b.sweep.key[i]);
            same_list(&a.sweep.values[i], &b.sweep.values[i], a.sweep.key[i]);
        }
        same_arms(&a, &b);
        char *again = config_dump(&b);
        ck_assert_str_eq(yaml, again);
        free(again);
        free(yaml);
        config_deinit(&a);
        config_deinit(&b);
    }
}
END_TEST

START_TEST(a_file_that_cannot_be_read_is_a_mistake_of_usage)
{
    struct config c;
    ck_assert_int_eq(config_load(&c, "/nonexistent/x.yaml", NULL, 0), ERR_CONFIG);
    expect_text("/nonexistent/x.yaml: cannot open: No such file or directory");
    ck_assert_int_eq(config_load(&c, "/", NULL, 0), ERR_CONFIG);
    expect_text("/: cannot read: Is a directory");
}
END_TEST

START_TEST(the_committed_configurations_are_valid)
{
    static const char *const files[] = {"quickstart", "acceptance", "fp8-accuracy"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        struct config c, cell;
        snprintf(path, sizeof path, "%s/experiments/configs/%s.yaml", SPECBED_SOURCE_DIR, files[i]);
        ck_assert_msg(config_load(&c, path, NULL, 0) == 0, "%s", err_text());
        ck_assert_str_eq(c.name, files[i]);
        for (int k = 0; k < config_cells(&c); k++) {
            char *label;
            ck_assert_msg(config_cell(&c, k, &cell, &label) == 0, "%s", err_text());
            free(label);
            config_deinit(&cell);
        }
        config_deinit(&c);
    }
}
END_TEST

START_TEST(help_names_every_option)
{
    struct config_option o;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    config_help(f);
    fclose(f);
    for (int i = 0; config_option_at(i, &o); i++)
        ck_assert_msg(strstr(text, o.key) && strstr(text, o.help), "%s is missing", o.key);
    ck_assert(strstr(text, "sweep.KEY") && strstr(text, "arms\n"));
    free(text);
}
END_TEST

START_TEST(edit_distance_counts_single_mistakes)
{
    ck_assert_int_eq(suggest_distance("", ""), 0);
    ck_assert_int_eq(suggest_distance("abc", ""), 3);
    ck_assert_int_eq(suggest_distance("kitten", "sitting"), 3);
    ck_assert_int_eq(suggest_distance("lsit", "list"), 1);
    ck_assert_int_eq(suggest_distance("draft.stratgy", "draft.strategy"), 1);
    struct suggest s;
    suggest_begin(&s, "rn");
    suggest_try(&s, "list");
    ck_assert_ptr_null(s.best);
    suggest_try(&s, "run");
    ck_assert_str_eq(s.best, "run");
}
END_TEST

START_TEST(every_experiment_of_the_project_parses)
{
    const char *const pattern = SPECBED_SOURCE_DIR "/experiments/configs/*.yaml";
    glob_t found;
    ck_assert_int_eq(glob(pattern, 0, NULL, &found), 0);
    ck_assert_int_ge((int)found.gl_pathc, 6);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct config c = {0};
        ck_assert_msg(config_load(&c, found.gl_pathv[i], NULL, 0) == 0, "%s: %s", found.gl_pathv[i],
                      err_text());
        for (int k = 0; k < config_cells(&c); k++) {
            struct config cell = {0};
            char *label = NULL;
            ck_assert_msg(config_cell(&c, k, &cell, &label) == 0, "%s: %s", found.gl_pathv[i], err_text());
            config_deinit(&cell);
            free(label);
        }
        config_deinit(&c);
    }
    globfree(&found);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config");
    TCase *reading = tcase_create("reading"), *cells = tcase_create("cells"),
          *printing = tcase_create("printing");
    tcase_add_test(reading, an_empty_file_gives_the_defaults);
    tcase_add_test(reading, nested_and_dotted_keys_mean_the_same);
    tcase_add_test(reading, a_single_text_is_a_list_of_one);
    tcase_add_test(reading, a_word_of_a_draft_option_becomes_its_index);
    tcase_add_test(reading, every_mistake_gets_a_sentence);
    tcase_add_test(reading, hostile_sizes_are_refused);
    tcase_add_test(reading, set_overrides_the_file_and_later_wins);
    tcase_add_test(reading, an_empty_sweep_on_the_command_line_removes_it);
    tcase_add_test(reading, a_file_that_cannot_be_read_is_a_mistake_of_usage);
    tcase_add_test(reading, the_committed_configurations_are_valid);
    tcase_add_test(cells, cells_run_through_the_product_last_key_fastest);
    tcase_add_test(cells, arms_are_cells_of_their_own);
    tcase_add_test(cells, the_command_line_replaces_arms_but_not_what_they_set);
    tcase_add_test(cells, a_list_option_is_swept_by_single_texts);
    tcase_add_test(cells, without_a_sweep_the_label_is_the_strategy);
    tcase_add_test(cells, without_a_sweep_the_label_of_scores_is_the_models_numbers);
    tcase_add_test(cells, a_cell_that_contradicts_itself_is_refused);
    tcase_add_test(printing, a_dump_reads_back_to_the_same_configuration);
    tcase_add_test(printing, help_names_every_option);
    tcase_add_test(printing, edit_distance_counts_single_mistakes);
    suite_add_tcase(s, reading);
    suite_add_tcase(s, cells);
    tcase_add_test(printing, every_experiment_of_the_project_parses);
    suite_add_tcase(s, printing);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
