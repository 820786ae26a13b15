/* suggest: the nearest known word to one that is not known, for "did you mean". */
#ifndef EXPERIMENTS_SUGGEST_H
#define EXPERIMENTS_SUGGEST_H

/* Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours, each of cost 1. Only the first
 * SUGGEST_MAX bytes of each word count. */
enum { SUGGEST_MAX = 80 };
int suggest_distance(const char *a, const char *b);

/* Feed candidates one by one; best is the nearest so far that is near enough to be meant, NULL when none is. */
struct suggest {
    const char *word, *best; /* borrowed */
    int distance;
};
void suggest_begin(struct suggest *s, const char *word);
void suggest_try(struct suggest *s, const char *candidate);
#endif
