/* config_table: one row an option. Ranges are what the program can do, not what is wise. */
#include "experiments/config_table.h"
#include "drafts/drafts.h"
#include "experiments/suggest.h"
#include <assert.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const char *strategy_choice(int i)
{
    return drafts_all[i] ? drafts_all[i]->name : NULL;
}

static const char *rule_choice(int i)
{
    return accept_rules[i].name;
}

static const char *device_choice(int i)
{
    return backends_all[i] ? backends_all[i]->name : NULL;
}

static const char *isa_choice(int i)
{
    static const char *const words[] = {"auto", "avx512", "avx2", "portable", NULL};
    return words[i];
}

static const char *template_choice(int i)
{
    static const char *const words[] = {"auto", "raw", "chatml", "llama3", "llama4", NULL};
    return words[i];
}

static const char *level_choice(int i)
{
    static const char *const words[] = {"steps", "nodes", "full", NULL};
    return words[i];
}

static const char *number_choice(int i)
{
    static const char *const words[] = {"bf16", "fp8", NULL};
    return words[i];
}

static const char *activation_choice(int i)
{
    static const char *const words[] = {"bf16", "fp8", "fp8-static", NULL};
    return words[i];
}

static const char *mode_choice(int i)
{
    static const char *const words[] = {"generate", "score", NULL};
    return words[i];
}

#define AT(member) .offset = offsetof(struct config, member)
#define INT(key_, member, def_, lo_, hi_, help_)                                                             \
    {                                                                                                        \
        .key = key_, .type = CONFIG_INT, .store = CONFIG_AS_INT, AT(member), .def = def_, .lo = lo_,         \
        .hi = hi_, .help = help_                                                                             \
    }
#define REAL(key_, member, def_, lo_, hi_, help_)                                                            \
    {                                                                                                        \
        .key = key_, .type = CONFIG_REAL, .store = CONFIG_AS_DOUBLE, AT(member), .def = def_, .lo = lo_,     \
        .hi = hi_, .help = help_                                                                             \
    }
#define TEXT(key_, member, def_, help_)                                                                      \
    {                                                                                                        \
        .key = key_, .type = CONFIG_TEXT, .store = CONFIG_AS_STRING, AT(member), .def = def_, .help = help_  \
    }
#define CHOICE(key_, member, def_, choice_, help_)                                                           \
    {                                                                                                        \
        .key = key_, .type = CONFIG_CHOICE, .store = CONFIG_AS_STRING, AT(member), .def = def_,              \
        .choice = choice_, .help = help_                                                                     \
    }
#define LIST(key_, member, help_)                                                                            \
    {                                                                                                        \
        .key = key_, .type = CONFIG_LIST, .store = CONFIG_AS_LIST, AT(member), .help = help_                 \
    }

/* clang-format off */
static const struct config_option table[] = {
    TEXT("name", name, "experiment", "names the experiment in tables and messages"),

    TEXT("model.path", model.path, "", "directory with config.json, tokenizer.json and safetensors"),
    TEXT("model.synthetic", model.synthetic, "", "random weights of a published shape (llama-3.1-8b, maverick, scout, ...) instead of model.path's"),
    {.key = "model.synthetic_seed", .type = CONFIG_INT, .store = CONFIG_AS_LONG, AT(model.synthetic_seed), .def = "1", .lo = 0,
     .hi = (double)LONG_MAX, .help = "of the random weights"},
    CHOICE("model.weights", model.weights, "bf16", number_choice, "bf16: as stored; fp8: E4M3 with a scale per output row, made at load"),
    CHOICE("model.activations", model.activations, "bf16", activation_choice,
           "fp8: rounded to E4M3 with a scale per token before each product, needs model.weights fp8; fp8-static: by a scale per "
           "matrix, the checkpoint's input_scale or what model.calibration gives"),
    TEXT("model.calibration", model.calibration, "",
         "text file over which fp8-static measures its scales, its first 4096 tokens; empty: the checkpoint has them"),
    CHOICE("model.kv", model.kv, "bf16", number_choice, "cells of the key/value cache; bf16 is f32 on the CPU"),
    INT("model.max_context", model.max_context, "0", 0, 1 << 20, "most tokens of one text; 0: what the workload needs"),

    REAL("synthetic.expert_skew", synthetic.expert_skew, "0", 0, 1.5,
         "model.synthetic with experts: of all tokens about a share of 1 / (1 + e)^skew goes to expert e first, by the norms of the router's "
         "rows; 0: alike"),

    CHOICE("device.kind", device.kind, "cpu", device_choice, "what computes"),
    INT("device.index", device.index, "0", 0, 1023, "which GPU, from 0; the CPU ignores it"),
    CHOICE("device.isa", device.isa, "auto", isa_choice, "instruction set of the CPU kernels; auto: the widest"),
    INT("device.threads", device.threads, "0", 0, 1024, "CPU threads; 0: one a core"),
    {.key = "device.graph", .type = CONFIG_BOOL, .store = CONFIG_AS_INT, AT(device.graph), .def = "true",
     .help = "cuda: verification passes as recorded graphs; false enqueues each operation, for debugging"},

    INT("device.world", device.world, "1", 1, 8, "ranks that hold one model together, each a share of its matrices"),
    INT("device.ranks_per_gpu", device.ranks_per_gpu, "1", 1, 8, "device.world: so many ranks in a row share a GPU, from device.index on; the CPU ignores it"),
    LIST("device.shard", device.shard,
         "[rank, world]: this one rank of a group, alone: as fast as in the group but for waiting; what it says means nothing"),

    CHOICE("sampling.rule", sampling.rule, "greedy", rule_choice, "which drafted tokens become text (specbed list rules)"),
    REAL("sampling.temperature", sampling.temperature, "0", 0, 100, "0: the most probable token; rules greedy and relaxed need 0"),
    INT("sampling.top_k", sampling.top_k, "0", 0, 1 << 24, "keep the k most probable tokens; 0: all"),
    {.key = "sampling.top_p", .type = CONFIG_REAL, .store = CONFIG_AS_DOUBLE, AT(sampling.top_p), .def = "1", .lo = 0, .hi = 1,
     .lo_open = 1, .help = "keep the most probable tokens until their sum reaches p; 1: all"},
    REAL("sampling.min_p", sampling.min_p, "0", 0, 1, "keep tokens of at least p times the top probability; 0: all"),
    {.key = "sampling.seed", .type = CONFIG_INT, .store = CONFIG_AS_LONG, AT(sampling.seed), .def = "1", .lo = 0, .hi = (double)LONG_MAX,
     .help = "of every random number"},
    INT("sampling.relaxed_top_k", sampling.relaxed_top_k, "10", 1, 1024, "rule relaxed: accept among so many top tokens"),
    REAL("sampling.relaxed_delta", sampling.relaxed_delta, "0.6", 0, 1, "rule relaxed: and at most this far below the top probability"),

    CHOICE("workload.mode", workload.mode, "generate", mode_choice,
           "score: judge given answers token by token, one at a time, with nothing generated or drafted"),
    TEXT("workload.answers", workload.answers, "", "mode score: result file whose answers to the same prompts are scored"),
    LIST("workload.dataset", workload.dataset, "JSON Lines files of prompts"),
    LIST("workload.category", workload.category, "only prompts of these categories; []: all"),
    CHOICE("workload.template", workload.template, "auto", template_choice, "chat template; auto: the checkpoint's own"),
    TEXT("workload.system", workload.system, "", "system message; empty: the template's default"),
    LIST("workload.stop", workload.stop, "texts that end an answer"),
    INT("workload.limit", workload.limit, "0", 0, 1 << 20, "prompts of each data set, from its start; 0: all"),
    INT("workload.max_tokens", workload.max_tokens, "128", 1, 1 << 20, "most tokens of an answer"),
    INT("workload.concurrency", workload.concurrency, "1", 1, 64, "sequences decoded together"),
    INT("workload.repeats", workload.repeats, "1", 1, 256, "answers to each prompt, each with its own random numbers"),
    INT("workload.warmup", workload.warmup, "1", 0, 1024, "unrecorded answers before the first"),
    {.key = "workload.ignore_eos", .type = CONFIG_BOOL, .store = CONFIG_AS_INT, AT(workload.ignore_eos), .def = "false",
     .help = "go on to max_tokens, whatever the model says"},

    CHOICE("trace.level", trace.level, "nodes", level_choice, "steps, their draft nodes, or nodes with entropies and gaps"),

    CHOICE("draft.strategy", draft.strategy, "none", strategy_choice, "who proposes tokens (specbed list drafts)"),
    INT("draft.max_depth", draft.max_depth, "5", 1, 64, "tokens ahead, at most"),
    TEXT("draft.head", draft.head, "", "eagle3: directory of its head; synthetic: random weights of the usual shape"),
    INT("draft.max_nodes", draft.max_nodes, "5", 1, 512, "nodes of a tree, at most"),
    TEXT("draft.reference", draft.reference, "", "result file with earlier outputs, for strategies that need them"),
};
/* clang-format on */
enum { TABLE_ROWS = sizeof table / sizeof *table };

/* Option k of strategy s as a row. */
static void draft_row(int s, int k, struct config_option *out)
{
    const struct draft_option *d = &drafts_all[s]->options[k];
    assert(s < CONFIG_MAX_STRATEGIES && k < CONFIG_MAX_DRAFT_OPTIONS);
    *out =
        (struct config_option){.store = CONFIG_AS_DOUBLE,
                               .offset = offsetof(struct config, draft.option) +
                                         ((size_t)s * CONFIG_MAX_DRAFT_OPTIONS + (size_t)k) * sizeof(double),
                               .lo = d->lo,
                               .hi = d->hi,
                               .words = d->choices,
                               .help = d->help};
    snprintf(out->key, sizeof out->key, "draft.%s.%s", drafts_all[s]->name, d->name);
    out->type = d->choices ? CONFIG_CHOICE : d->integer ? CONFIG_INT : CONFIG_REAL;
    if (d->choices)
        snprintf(out->def, sizeof out->def, "%s", d->choices[(int)d->def]);
    else
        snprintf(out->def, sizeof out->def, "%.17g", d->def);
}

int config_option_at(int i, struct config_option *out)
{
    if (i < TABLE_ROWS) {
        *out = table[i];
        return 1;
    }
    i -= TABLE_ROWS;
    for (int s = 0; drafts_all[s]; s++) {
        int n = 0;
        while (drafts_all[s]->options[n].name)
            n++;
        if (i < n) {
            draft_row(s, i, out);
            return 1;
        }
        i -= n;
    }
    return 0;
}

int config_option_find(const char *key, struct config_option *out)
{
    struct config_option o;
    for (int i = 0; config_option_at(i, &o); i++)
        if (!strcmp(o.key, key)) {
            *out = o;
            return 1;
        }
    return 0;
}

const char *config_option_word(const struct config_option *o, int i)
{
    return o->words ? o->words[i] : o->choice(i);
}

int config_is_section(const char *key)
{
    struct config_option o;
    size_t n = strlen(key);
    for (int i = 0; config_option_at(i, &o); i++)
        if (!strncmp(o.key, key, n) && o.key[n] == '.')
            return 1;
    return 0;
}

/* "none, ngram or oracle" */
static void list_words(const struct config_option *o, char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = 0;
    for (int i = 0; config_option_word(o, i) && used < n; i++) {
        const char *gap = i == 0 ? "" : config_option_word(o, i + 1) ? ", " : " or ";
        used += (size_t)snprintf(buf + used, n - used, "%s%s", gap, config_option_word(o, i));
    }
}

void config_option_expected(const struct config_option *o, char *buf, size_t n)
{
    switch (o->type) {
    case CONFIG_INT:
        if (o->store == CONFIG_AS_LONG)
            snprintf(buf, n, "a whole number in [%.0f, %ld]", o->lo, LONG_MAX);
        else
            snprintf(buf, n, "a whole number in [%.0f, %.0f]", o->lo, o->hi);
        break;
    case CONFIG_REAL:
        snprintf(buf, n, "a number in %c%g, %g]", o->lo_open ? '(' : '[', o->lo, o->hi);
        break;
    case CONFIG_BOOL:
        snprintf(buf, n, "true or false");
        break;
    case CONFIG_TEXT:
        snprintf(buf, n, "text");
        break;
    case CONFIG_CHOICE:
        list_words(o, buf, n);
        break;
    case CONFIG_LIST:
        snprintf(buf, n, "text or a list of texts");
        break;
    }
}

/* What follows the last dot. */
static const char *last_part(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

void config_suggest(const char *key, char *buf, size_t n)
{
    struct config_option o;
    struct suggest s;
    char best[CONFIG_KEY_MAX] = "";
    suggest_begin(&s, key);
    for (int i = 0; config_option_at(i, &o); i++) {
        s.best = NULL;
        suggest_try(&s, o.key);
        if (s.best)
            memcpy(best, o.key, sizeof best);
    }
    /* A right name in the wrong section. */
    for (int i = 0; !best[0] && config_option_at(i, &o); i++)
        if (!strcmp(last_part(o.key), last_part(key)))
            memcpy(best, o.key, sizeof best);
    if (best[0])
        snprintf(buf, n, "; did you mean '%s'?", best);
    else
        snprintf(buf, n, "; `specbed list options` lists them all");
}

void config_help(FILE *out)
{
    struct config_option o;
    for (int i = 0; config_option_at(i, &o); i++) {
        char expected[256];
        config_option_expected(&o, expected, sizeof expected);
        fprintf(out, "%s\n    %s\n    %s", o.key, o.help, expected);
        if (o.def[0])
            fprintf(out, "; default %s", o.def);
        fputc('\n', out);
    }
    fputs("sweep.KEY\n    values of any of the keys above; one experiment for each combination\n    a list\n"
          "arms\n    instead of a sweep: one experiment for each item, which sets some of the keys above and "
          "may have a label\n"
          "    a list of mappings, such as [{model.kv: bf16}, {label: KV8, model.kv: fp8}]\n",
          out);
}
