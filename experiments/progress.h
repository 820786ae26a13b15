/* progress: how far a run is, on stderr: one line that is updated on a terminal, a plain line every five seconds elsewhere. Called between
 * steps, never inside a timed part. */
#ifndef EXPERIMENTS_PROGRESS_H
#define EXPERIMENTS_PROGRESS_H
#include "spec/loop.h"

struct progress {
    int quiet, terminal;        /* quiet: prints nothing */
    const char *label;          /* borrowed: the arm under way */
    int64_t done, total;        /* requests of this arm */
    int64_t done_before;        /* of these, from an earlier run */
    int64_t tokens, steps, accepted; /* steps 0: answers are scored */
    int64_t started, shown;     /* monotonic clock, ns */
};

void progress_init(struct progress *p, int quiet);
void progress_begin(struct progress *p, const char *label, int64_t done, int64_t total); /* an arm starts */
void progress_step(struct progress *p, const struct step_record *s);
void progress_request(struct progress *p);                                               /* one more is done */
void progress_scored(struct progress *p, int tokens);                                    /* one more is done, scored */
void progress_show(struct progress *p);  /* prints when it is time to */
void progress_end(struct progress *p);   /* the arm is over: clears the terminal's line */
#endif
