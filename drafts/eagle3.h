/* eagle3: what its two tables share: eagle3.c drafts on the host, eagle3_device.c in backend memory. */
#ifndef DRAFTS_EAGLE3_H
#define DRAFTS_EAGLE3_H
#include "engine/head.h"
#include "spec/draft.h"

enum eagle3_option { EAGLE3_SHAPE, EAGLE3_TOP_K, EAGLE3_SAMPLE, EAGLE3_WEIGHTS };

/* The head that draft.head names, if it is there and fits the texts. */
int eagle3_open_head(struct head *h, const struct draft_env *env);

/* In place of draft_eagle3 where nothing is drawn at random: drafts/drafts.h knows the one, and it picks. */
extern const struct draft_ops draft_eagle3_device;
#endif
