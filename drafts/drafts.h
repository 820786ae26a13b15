/* drafts: the table of draft strategies. A new one is a file of its own with one const struct draft_ops, and a line in drafts.c. */
#ifndef DRAFTS_DRAFTS_H
#define DRAFTS_DRAFTS_H
#include "spec/draft.h"

extern const struct draft_ops draft_none, draft_ngram, draft_oracle, draft_eagle3;

extern const struct draft_ops *const drafts_all[]; /* ends with NULL */
const struct draft_ops *drafts_find(const char *name); /* NULL: unknown */
#endif
