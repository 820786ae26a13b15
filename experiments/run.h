/* run: an experiment from configuration to result file. */
#ifndef EXPERIMENTS_RUN_H
#define EXPERIMENTS_RUN_H
#include "experiments/record.h"

struct run_opts {
    const char *config;        /* the YAML file */
    const char *const *sets;   /* "key=value" [n_sets] */
    int n_sets;
    const char *out;           /* result file, NULL: results/NAME.h5 */
    enum record_mode mode;
    int slice, of;             /* prompts k with k mod of = slice; 0 of 1 is all */
    int dry_run, no_progress;
    int no_table;              /* 1: no closing table */
};

/* Runs it and prints the closing table to stdout. ERR_STOP after SIGINT or SIGTERM: the active requests were finished and recorded, the
 * file is marked as interrupted. ERR_CONFIG, and the errors of everything it uses. */
int run_experiment(const struct run_opts *opts);
#endif
