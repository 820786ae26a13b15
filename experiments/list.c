/* list: what this build and this machine have. */
#include "drafts/drafts.h"
#include "engine/backend.h"
#include "engine/err.h"
#include "engine/model_config.h"
#include "experiments/commands.h"
#include "experiments/config.h"
#include <argp.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char models_dir[] = "models";

static void print_model(const char *name)
{
    char path[512];
    struct model_config c;
    snprintf(path, sizeof path, "%s/%.400s/config.json", models_dir, name);
    if (access(path, R_OK) != 0)
        return;
    path[strlen(path) - strlen("/config.json")] = 0;
    if (model_config_read(&c, path)) {
        printf("%s\n    cannot be used: %s\n", path, err_text());
        err_clear();
        return;
    }
    printf("%s\n    %s, %.1f million parameters, %d layers, hidden %d, vocabulary %d, context %d\n", path,
           c.architecture, (double)model_config_params(&c) / 1e6, c.layers, c.hidden, c.vocab,
           c.max_positions);
}

static int list_models(void)
{
    struct dirent **names;
    int n = scandir(models_dir, &names, NULL, alphasort);
    if (n < 0 && errno == ENOENT) {
        printf("none: there is no directory ./%s here\n", models_dir);
        return 0;
    }
    if (n < 0)
        FAIL(ERR_IO, "%s: cannot list the directory: %s", models_dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.')
            print_model(names[i]->d_name);
        free(names[i]);
    }
    free(names);
    return 0;
}

static void print_draft_option(const struct draft_ops *d, const struct draft_option *o)
{
    printf("    draft.%s.%s: %s; ", d->name, o->name, o->help);
    if (!o->choices) {
        printf("%s in [%g, %g], default %g\n", o->integer ? "whole" : "number", o->lo, o->hi, o->def);
        return;
    }
    for (int i = 0; o->choices[i]; i++)
        printf("%s%s", i ? "|" : "", o->choices[i]);
    printf(", default %s\n", o->choices[(int)o->def]);
}

static int list_drafts(void)
{
    for (int i = 0; drafts_all[i]; i++) {
        const struct draft_ops *d = drafts_all[i];
        printf("%s: %s%s%s\n", d->name, d->help, d->needs & DRAFT_HIDDEN ? "; needs hidden states" : "",
               d->needs & DRAFT_REFERENCE ? "; needs draft.reference" : "");
        for (const struct draft_option *o = d->options; o->name; o++)
            print_draft_option(d, o);
    }
    return 0;
}

static int list_rules(void)
{
    for (const struct accept_rule *r = accept_rules; r->name; r++)
        printf("%s%s: %s\n", r->name, r->lossy ? " (lossy)" : "", r->help);
    return 0;
}

static int list_devices(void)
{
    for (int i = 0; backends_all[i]; i++)
        backends_all[i]->describe(stdout);
    return 0;
}

static int list_options(void)
{
    config_help(stdout);
    return 0;
}

static const struct {
    const char *name;
    int (*list)(void);
} topics[] = {
    {"models", list_models},   {"drafts", list_drafts},   {"rules", list_rules},
    {"devices", list_devices}, {"options", list_options},
};
enum { TOPICS = sizeof topics / sizeof *topics };

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    int *topic = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (*topic >= 0)
            argp_error(state, "expected one word, found another: '%s'", arg);
        for (int i = 0; i < TOPICS; i++)
            if (!strcmp(topics[i].name, arg))
                *topic = i;
        if (*topic < 0)
            argp_error(state, "expected models, drafts, rules, devices or options, found '%s'", arg);
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "expected models, drafts, rules, devices or options, found nothing");
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_list(int argc, char **argv)
{
    static const struct argp argp = {.parser = parse_option,
                                     .args_doc = "models|drafts|rules|devices|options",
                                     .doc =
                                         "Lists the models below ./models, the draft strategies with their "
                                         "options, the acceptance rules, what "
                                         "this machine computes with, or all options of experiment files."};
    int topic = -1;
    if (argp_parse(&argp, argc, argv, 0, NULL, &topic))
        FAIL(ERR_CONFIG, "list: the arguments make no sense; see --help");
    return topics[topic].list();
}
