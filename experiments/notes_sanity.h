/* notes_sanity: rules that a sound measurement keeps, always looked at. What cannot break is no rule here: the unconditional rates of metrics.h
 * count steps that accepted at least d, which never rises with d, and files of different models are not joined at all. */
#ifndef EXPERIMENTS_NOTES_SANITY_H
#define EXPERIMENTS_NOTES_SANITY_H
#include "experiments/notes.h"

/* The thresholds, which are choices. */
enum {
    NOTES_LOOPS_PERCENT = 5,   /* answers of an arm that end in a loop */
    NOTES_TREND_REQUESTS = 20, /* fewer cannot show a trend */
    NOTES_TREND_PERCENT = 3,   /* the first fifth of an arm slower or faster than the rest, besides being significant */
    NOTES_TICK_PERCENT = 1     /* a clock that counts in steps of so much of a median step */
};

/* Appends to n: prompts that only some arms answered; builds or devices that differ; answers that end in loops; a trend of step
 * times from the first fifth of an arm's requests to the rest (Mann and Whitney 1947, |z| > 3); a coarse clock; what repeats say of
 * noise. ERR_MEMORY. */
int notes_sanity(struct notes *n, const struct trace *t, const struct summary *s);
#endif
