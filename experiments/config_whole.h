/* config_whole: what a cell's options say together. */
#ifndef EXPERIMENTS_CONFIG_WHOLE_H
#define EXPERIMENTS_CONFIG_WHOLE_H
#include "engine/model.h"
#include "experiments/config.h"

/* What one option alone cannot know. ERR_CONFIG names the options and the fix. */
int  config_check_whole(const struct config *c);
int  config_scores(const struct config *c); /* 1: mode score */
struct model_opts config_numbers(const struct config *c); /* of the model */
int  config_numbers_as_stored(const struct config *c); /* 1: none of them is FP8 */
/* What a cell does, for a cell that has nothing to tell it apart: its strategy; mode score: the model's numbers. */
void config_describe(const struct config *c, FILE *out);
/* device.shard as numbers; 0 and 1 when it is empty. ERR_CONFIG. */
int config_shard(const struct config *c, int *rank, int *world);
#endif
