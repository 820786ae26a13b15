/* eagle3: what its two tables share: eagle3.c drafts on the host, eagle3_device.c in backend memory. */
#ifndef DRAFTS_EAGLE3_H
#define DRAFTS_EAGLE3_H
#include "engine/head.h"
#include "spec/draft.h"

enum eagle3_option { EAGLE3_SHAPE, EAGLE3_TOP_K, EAGLE3_SAMPLE, EAGLE3_WEIGHTS };

/* The head that draft.head names, if it is there and fits the texts. */
int eagle3_open_head(struct head *h, const struct draft_env *env);

/* Of any tree: a chain has no more than levels. */
int eagle3_nodes(const struct draft_env *env);
/* Children of a node: of a chain one. ERR_CONFIG: more than the head has ids. */
int eagle3_top_k(const struct draft_env *env, const struct head *h, int *out);
/* A row of the target's features: it takes the cell of its position. */
struct head_row eagle3_true_row(int slot, int pos, int token);

/* In place of draft_eagle3 where nothing is drawn at random: drafts/drafts.h knows the one, and it picks. */
extern const struct draft_ops draft_eagle3_device;
#endif
