/* notes: what a reader must know before believing a table: what is missing, what cannot be, what is not comparable. */
#ifndef EXPERIMENTS_NOTES_H
#define EXPERIMENTS_NOTES_H
#include "experiments/summary.h"

enum { NOTES_FEW_PROMPTS = 20 };

struct notes {
    char **text; /* owned [n], owned strings: one sentence or two each */
    int n;
};
int  notes_init(struct notes *n, const struct trace *t, const struct summary *s); /* ERR_MEMORY */
void notes_deinit(struct notes *n); /* a zeroed struct is fine */
/* One more, as printf. ERR_MEMORY. */
int  notes_add(struct notes *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#endif
