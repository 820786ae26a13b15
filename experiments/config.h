/* config: an experiment file. One table row an option (key, type, default, range, help) serves YAML, --set, --help, the printed
 * configuration and the copy in the result file. Options of draft strategies come from drafts_all[] under
 * `draft.<strategy>.`. YAML is read through libyaml. */
#ifndef EXPERIMENTS_CONFIG_H
#define EXPERIMENTS_CONFIG_H
#include "spec/loop.h"
#include <stdio.h>

enum {
    CONFIG_MAX_STRATEGIES = 16,
    CONFIG_MAX_DRAFT_OPTIONS = 16,
    CONFIG_MAX_SWEEP = 16,
    CONFIG_MAX_CELLS = 4096,
    CONFIG_MAX_ARMS = 64
};

struct config_list {
    char **items; /* owned [n], owned strings */
    int n;
};

/* One cell of an explicit list: what it sets on top of the rest of the file. */
struct config_arm {
    char *label; /* owned; NULL: from the values */
    int n;
    char *key[CONFIG_MAX_SWEEP], *value[CONFIG_MAX_SWEEP]; /* owned; as text, checked like any value */
};

/* Every string is owned and never NULL ("" when unset). Ranges and meanings: the table in config.c. */
struct config {
    char *name;
    struct {
        char *path, *synthetic; /* a directory; "" or the name of a shape that gets random weights */
        char *weights, *activations, *kv; /* "bf16" (as stored; the CPU computes in f32) or "fp8"; activations also "fp8-static" */
        char *calibration; /* a text file, or "": the checkpoint's own static scales */
        long synthetic_seed;
        int max_context;
    } model;
    struct { double expert_skew; } synthetic;
    struct {
        char *kind, *isa;
        int index, threads, graph, world, ranks_per_gpu;
        struct config_list shard; /* empty, or rank and world as text: config_shard */
    } device;
    struct {
        char *strategy, *reference;
        char *head;
        int max_depth, max_nodes;
        double option[CONFIG_MAX_STRATEGIES][CONFIG_MAX_DRAFT_OPTIONS]; /* [index in drafts_all][index in its options] */
    } draft;
    struct {
        char *rule;
        double temperature, top_p, min_p, relaxed_delta;
        int top_k, relaxed_top_k;
        long seed;
    } sampling;
    struct {
        struct config_list dataset, category, stop; /* files; only these categories when n > 0; stop strings */
        char *mode, *answers;                       /* "generate" or "score"; score: the result file with what is scored */
        char *template, *system;                    /* chat template name; system message, "" for the template's default */
        int limit, max_tokens, concurrency, repeats, warmup, ignore_eos; /* limit 0: all prompts */
    } workload;
    struct { char *level; } trace;
    struct {
        int n;
        char *key[CONFIG_MAX_SWEEP];
        struct config_list values[CONFIG_MAX_SWEEP]; /* as text, checked like any value */
    } sweep;
    struct {
        int n;
        struct config_arm *at; /* owned [n] */
    } arms; /* instead of a sweep */
};

/* Defaults, then the file, then `sets` ("key=value", later wins; a list as [a, b]; sweep.KEY=[a, b] too). Paths stay as written: relative to the
 * working directory. ERR_CONFIG with file:line, the key, what was expected and what was found; an unknown key comes with the nearest known one. */
int  config_load(struct config *c, const char *path, const char *const *sets, int n_sets);
int  config_parse(struct config *c, const char *yaml, size_t n, const char *what, const char *const *sets, int n_sets);
void config_deinit(struct config *c); /* a zeroed struct is fine */

/* Cells of the sweep: the cartesian product, last key fastest; or the arms; 1 without either. */
int  config_cells(const struct config *c);
/* Cell i as a configuration of its own, without sweep and arms; label (malloc'ed, the caller's) says what differs: "ngram, 5"
 * from the values of the swept keys, an arm's label or "weights fp8, kv fp8" from its values, or the strategy when nothing is swept (score: what the model's
 * numbers are). Checks that the cell makes sense as a whole. */
int  config_cell(const struct config *c, int i, struct config *out, char **label);
/* As YAML that config_parse reads back to the same configuration, malloc'ed. */
char *config_dump(const struct config *c);
/* Every option with type, default, range and help, for --help. */
void config_help(FILE *out);
#endif
